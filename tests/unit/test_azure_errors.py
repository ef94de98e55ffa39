"""ARM's refusals, and those of the way to it, as the contract's errors."""

from __future__ import annotations

import json

import pytest
import requests
from azure.core.exceptions import AzureError, HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline.transport import HttpRequest, RequestsTransportResponse
from azure.identity import CredentialUnavailableError

from providers.azure.errors import TABLE, refusal_of, translate
from providers.base import (
    CapacityError,
    DeniedError,
    InvalidRequestError,
    OfferingRefusedError,
    ProviderError,
    QuotaError,
    Scope,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)

ABOUT = {"operation": "create_or_update of virtual_machines", "type": "Standard_D2as_v5", "zone": "1"}


def refusal(status: int, code: str = "", message: str = "said", headers: dict[str, str] | None = None) -> AzureError:
    """As the SDK raises it of a real answer."""
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps({"error": {"code": code, "message": message}}).encode()
    response.headers.update({"Content-Type": "application/json", "x-ms-request-id": "r-1"} | (headers or {}))
    return HttpResponseError(response=RequestsTransportResponse(HttpRequest("PUT", "https://arm/"), response))


def translated(error: AzureError, *, changes: bool = True) -> ProviderError:
    return translate(error, changes=changes, about=ABOUT)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (409, "SkuNotAvailable", CapacityError),
        (409, "ZonalAllocationFailed", CapacityError),
        (200, "AllocationFailed", CapacityError),
        (400, "SubnetIsFull", CapacityError),
        (409, "QuotaExceeded", QuotaError),
        (429, "", ThrottledError),
        (429, "RetryableError", ThrottledError),
        (429, "OperationNotAllowed", ThrottledError),
        (401, "ExpiredAuthenticationToken", DeniedError),
        (403, "AuthorizationFailed", DeniedError),
        (403, "RequestDisallowedByPolicy", DeniedError),
        (404, "ResourceNotFound", InvalidRequestError),
        (404, "GalleryImageNotFound", InvalidRequestError),
        (409, "PropertyChangeNotAllowed", InvalidRequestError),
        (400, "InvalidParameter", InvalidRequestError),
        # Passing: nothing was done, and the same call works later.
        (409, "AnotherOperationInProgress", UnavailableError),
        (409, "ReferencedResourceNotProvisioned", UnavailableError),
        # They do not say whether anything was done.
        (408, "", UnknownOutcomeError),
        (409, "OperationPreempted", UnknownOutcomeError),
        (409, "InternalExecutionError", UnknownOutcomeError),
        (500, "InternalServerError", UnknownOutcomeError),
        (503, "", UnknownOutcomeError),
    ],
)
def test_each_refusal_is_of_its_kind_and_names_azures_own_call(status: int, code: str, kind: type) -> None:
    error = translated(refusal(status, code))
    assert type(error) is kind
    assert error.request_id == "r-1"
    assert "said" in str(error)


def test_a_look_that_says_nothing_is_asked_again() -> None:
    assert type(translated(refusal(500, "InternalServerError"), changes=False)) is UnavailableError
    assert type(translated(refusal(408), changes=False)) is UnavailableError


def test_operation_not_allowed_is_a_quota_only_where_it_speaks_of_one() -> None:
    exceeded = "Operation could not be completed as it results in exceeding approved standardDASv5Family Cores quota."
    quota = translated(refusal(409, "OperationNotAllowed", exceeded))
    assert isinstance(quota, QuotaError)
    assert quota.scope is Scope.TYPE
    other = translated(refusal(409, "OperationNotAllowed", "The VM is being deleted."))
    assert type(other) is InvalidRequestError


def test_a_throttled_call_waits_as_long_as_azure_says() -> None:
    told = translated(refusal(429, "TooManyRequests", headers={"Retry-After": "17"}))
    assert isinstance(told, ThrottledError)
    assert told.retry_after == 17
    silent = translated(refusal(429, "TooManyRequests"))
    assert isinstance(silent, ThrottledError)
    assert silent.retry_after is None


def test_what_was_not_sent_is_told_from_what_was_not_answered() -> None:
    assert type(translated(ServiceRequestError("refused"))) is UnavailableError
    assert type(translated(ServiceResponseError("reset"))) is UnknownOutcomeError
    assert type(translated(ServiceResponseError("reset"), changes=False)) is UnavailableError


def test_an_identity_that_is_not_answered_passes_and_one_that_is_not_there_does_not() -> None:
    silent = CredentialUnavailableError(message="no response from the IMDS endpoint")
    silent.__cause__ = ServiceRequestError("timed out")
    assert type(translated(silent)) is UnavailableError
    none = CredentialUnavailableError(message="No identity has been assigned to this resource.")
    assert type(translated(none)) is DeniedError


@pytest.mark.parametrize("code", sorted(TABLE))
def test_a_failed_operation_gives_way_to_another_offering_unless_it_is_wrong_for_good(code: str) -> None:
    for_good = issubclass(TABLE[code].error, InvalidRequestError | DeniedError)
    assert isinstance(refusal_of(code, "a quota", ABOUT), OfferingRefusedError) != for_good
