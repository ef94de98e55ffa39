"""The VPC API's refusals, and those of the way to it, as the contract's errors."""

from __future__ import annotations

import json

import pytest
import requests
from ibm_cloud_sdk_core import ApiException  # type: ignore[import-untyped]
from urllib3.exceptions import MaxRetryError, NewConnectionError, ProtocolError

from providers.base import (
    CapacityError,
    DeniedError,
    InvalidRequestError,
    MissingError,
    OfferingRefusedError,
    ProviderError,
    QuotaError,
    Scope,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.ibmcloud.errors import NAME_TAKEN, token_failure, translate

ABOUT = {"operation": "create_instance", "name": "podvm-web", "type": "bx2-2x8", "zone": "us-south-1"}


def refusal(status: int, code: str = "", message: str = "said", headers: dict[str, str] | None = None) -> ApiException:
    """As the SDK raises it."""
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps({"errors": [{"code": code, "message": message}], "trace": "t-1"}).encode()
    response.headers.update(headers or {})
    return ApiException(status, http_response=response)


def translated(error: Exception, *, changes: bool = True) -> ProviderError:
    return translate(error, changes=changes, about=ABOUT)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (409, "insufficient_capacity", CapacityError),
        (500, "insufficient_capacity", CapacityError),
        (409, "subnet_insufficient_ips", CapacityError),
        (409, "dedicated_host_insufficient_capacity", CapacityError),
        (400, "over_quota", QuotaError),
        (403, "instance_vcpu_over_quota", QuotaError),
        (400, "vpc_instance_quota_exceeded", QuotaError),
        (429, "", ThrottledError),
        (429, "too_many_requests", ThrottledError),
        (401, "", DeniedError),
        (401, "not_authenticated", DeniedError),
        (403, "not_authorized", DeniedError),
        (403, "whatever", DeniedError),
        (404, "image_not_found", InvalidRequestError),
        (404, "subnet_not_found", InvalidRequestError),
        (404, "not_found", MissingError),
        (404, "instance_not_found", MissingError),
        (400, "bad_field", InvalidRequestError),
        (400, "validation_unique_failed", InvalidRequestError),
        (409, "conflict_of_some_kind", InvalidRequestError),
        (500, "internal_error", UnknownOutcomeError),
        (502, "", UnknownOutcomeError),
        (503, "service_unavailable", UnknownOutcomeError),
        (200, "", UnknownOutcomeError),
    ],
)
def test_every_kind_of_answer_to_a_change(status: int, code: str, kind: type[ProviderError]) -> None:
    error = translated(refusal(status, code))
    assert type(error) is kind
    assert "said" in str(error) or status == 200
    assert error.reason.isalpha()
    assert error.request_id == "t-1"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("validation_unique_failed", "Provided Name (podvm-web) is not unique"),
        ("bad_field", 'Handler Error: Status=400, JSON={"errors":[{"code":"validation_unique_failed"}]}'),
        ("", "Provided Name (podvm-web) is not unique"),
    ],
)
def test_a_name_that_is_taken_is_known_in_all_its_forms(code: str, message: str) -> None:
    assert translated(refusal(400, code, message)).reason == NAME_TAKEN


def test_what_reads_only_has_no_unknown_outcome() -> None:
    assert type(translated(refusal(500), changes=False)) is UnavailableError
    assert type(translated(requests.ReadTimeout(), changes=False)) is UnavailableError
    assert type(translated(refusal(404, "image_not_found"), changes=False)) is MissingError


def test_the_servers_own_word_of_how_long_to_wait_is_heeded() -> None:
    throttled = translated(refusal(429, headers={"Retry-After": "7"}))
    assert isinstance(throttled, ThrottledError)
    assert throttled.retry_after == 7
    silent = translated(refusal(429))
    assert isinstance(silent, ThrottledError)
    assert silent.retry_after is None


def test_refusals_say_how_much_they_rule_out_and_for_how_long() -> None:
    full, quota = translated(refusal(409, "subnet_insufficient_ips")), translated(refusal(400, "over_quota"))
    assert isinstance(full, OfferingRefusedError)
    assert isinstance(quota, OfferingRefusedError)
    assert (full.scope, full.seconds) == (Scope.ZONE, 180)
    assert (quota.scope, quota.seconds) == (Scope.TYPE, 600)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.ConnectTimeout(), UnavailableError),
        (
            requests.ConnectionError(MaxRetryError(None, "/", NewConnectionError(None, "refused"))),  # type: ignore[arg-type]
            UnavailableError,
        ),
        (requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), UnavailableError),
        (requests.ConnectionError(ProtocolError("Connection aborted.", ConnectionResetError())), UnknownOutcomeError),
        (requests.exceptions.ChunkedEncodingError(), UnknownOutcomeError),
        (requests.ReadTimeout(), UnknownOutcomeError),
        (ValueError("instance_prototype must be provided"), InvalidRequestError),
    ],
)
def test_calls_that_were_never_sent_are_told_apart_from_those_without_an_answer(
    error: Exception, kind: type[ProviderError]
) -> None:
    assert type(translated(error)) is kind


def test_the_sdks_own_complaints_are_not_quoted_for_they_may_hold_user_data() -> None:
    assert "PRIVATE" not in str(translated(ValueError("bad value PRIVATE KEY")))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refusal(400), DeniedError),
        (refusal(401), DeniedError),
        (refusal(429), ThrottledError),
        (refusal(500), UnavailableError),
        (requests.ReadTimeout(), UnavailableError),
        (Exception("Unable to retrieve the CR token"), DeniedError),
    ],
)
def test_an_access_token_that_cannot_be_had_never_leaves_the_outcome_unknown(
    error: Exception, kind: type[ProviderError]
) -> None:
    assert type(token_failure(error)) is kind
