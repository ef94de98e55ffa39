"""ARM's error codes, and those of the way to it, as the contract's errors: one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError

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
from providers.meanings import LONGEST_QUOTE, About, Meaning, error_of

_NONE_LEFT = Meaning(CapacityError, "Azure has no {type} left in zone {zone} of {region} ({market})")
_GAVE_UP = Meaning(CapacityError, "Azure gave up on a {type} in zone {zone}", "ProvisioningFailed")
_GUEST = Meaning(InvalidRequestError, "the image's guest did not come up", "GuestFailed")
_NONE_IN_REGION = Meaning(CapacityError, "Azure has no {type} left in {region} ({market})", scope=Scope.TYPE)
_NOT_OFFERED = Meaning(
    CapacityError,
    "Azure does not offer {type} ({market}) to this subscription in zone {zone} of {region} now",
)
_QUOTA = Meaning(
    QuotaError,
    "a quota of the subscription does not allow another {type} ({market}); ask Azure to raise it",
    reason="QuotaExceeded",
    scope=Scope.TYPE,
)
_ADDRESSES = Meaning(
    QuotaError,
    "the quota of public addresses is used up; ask Azure to raise it, or set USE_PUBLIC_IP=false",
    scope=Scope.MARKET,
)
_SUBNET_FULL = Meaning(
    CapacityError, "the subnet AZURE_SUBNET_ID={subnet} has no free address left", scope=Scope.MARKET
)
_THROTTLED = Meaning(ThrottledError, "Azure takes fewer calls than it was sent", reason="Throttled")
_CREDENTIALS = Meaning(
    DeniedError,
    "Azure does not accept the credentials (AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or an identity)",
    reason="AuthFailure",
)
_RIGHT = Meaning(DeniedError, "the credentials lack a right: {operation}", reason="AccessDenied")
_POLICY = Meaning(DeniedError, "a policy of the subscription forbids it: {operation}")
_SUBSCRIPTION = Meaning(DeniedError, "AZURE_SUBSCRIPTION_ID={subscription} cannot be used")
_GROUP = Meaning(
    InvalidRequestError,
    "AZURE_RESOURCE_GROUP={resource_group} is no resource group of the subscription",
    "GroupMissing",
)
_IMAGE = Meaning(InvalidRequestError, "AZURE_IMAGE_ID={image} is no image that can be used in {region}", "ImageMissing")
_TYPE = Meaning(
    InvalidRequestError,
    "{type} (AZURE_INSTANCE_SIZE, AZURE_INSTANCE_SIZES) is no VM size in {region}",
    "InstanceTypeUnknown",
)
_REFERENCE = Meaning(
    InvalidRequestError,
    "something that {operation} names is not there: AZURE_RESOURCE_GROUP={resource_group}, AZURE_SUBNET_ID={subnet}, "
    "AZURE_NSG_ID={nsg}, or the image {image}",
    "ReferenceMissing",
)
_CHANGED = Meaning(InvalidRequestError, "the name {name} is in use already, for another VM", "NameTaken")
_ASKED_WRONG = Meaning(InvalidRequestError, "Azure refuses {operation} as it was asked for")
_BUSY = Meaning(UnavailableError, "Azure is still at something else that {operation} needs", "Busy")
_MISSING = Meaning(MissingError, "there is no {instance} in {resource_group}", "InstanceMissing")

TABLE: dict[str, Meaning] = {
    "AllocationFailed": _NONE_IN_REGION,
    "OverconstrainedAllocationRequest": _NONE_LEFT,
    "ZonalAllocationFailed": _NONE_LEFT,
    "OverconstrainedZonalAllocationRequest": _NONE_LEFT,
    "SkuNotAvailable": _NOT_OFFERED,
    "NotAvailableForSubscription": _NOT_OFFERED,
    "LowPriorityQuotaExceeded": _QUOTA,
    "QuotaExceeded": _QUOTA,
    "OperationNotAllowed": _QUOTA,  # when it speaks of a quota; see `_meaning`
    "ResourceQuotaExceeded": _QUOTA,
    "PublicIPCountLimitReached": _ADDRESSES,
    "SubnetIsFull": _SUBNET_FULL,
    "SubnetWithInsufficientAddresses": _SUBNET_FULL,
    "TooManyRequests": _THROTTLED,
    "SubscriptionRequestsThrottled": _THROTTLED,
    "OperationNotAllowedThrottled": _THROTTLED,
    "InvalidAuthenticationToken": _CREDENTIALS,
    "InvalidAuthenticationTokenTenant": _CREDENTIALS,
    "ExpiredAuthenticationToken": _CREDENTIALS,
    "AuthenticationFailed": _CREDENTIALS,
    "AuthorizationFailed": _RIGHT,
    "LinkedAuthorizationFailed": _RIGHT,
    "RequestDisallowedByPolicy": _POLICY,
    "SubscriptionNotFound": _SUBSCRIPTION,
    "InvalidSubscriptionId": _SUBSCRIPTION,
    "ReadOnlyDisabledSubscription": _SUBSCRIPTION,
    "MissingSubscriptionRegistration": _SUBSCRIPTION,
    "ResourceGroupNotFound": _GROUP,
    "ResourceGroupBeingDeleted": _GROUP,
    "ImageNotFound": _IMAGE,
    "GalleryImageNotFound": _IMAGE,
    "InvalidImageReference": _IMAGE,
    "PlatformImageNotFound": _IMAGE,
    "InvalidResourceReference": _REFERENCE,
    "PropertyChangeNotAllowed": _CHANGED,
    "AnotherOperationInProgress": _BUSY,
    "ReferencedResourceNotProvisioned": _BUSY,
    "RetryableError": _BUSY,
    "RetryableErrorDueToAnotherOperation": _BUSY,
    "ResourceNotFound": _MISSING,
    "NotFound": _MISSING,
}
# Azure gave up in the middle, whatever the status: these say as little as an answer that never came.
_UNTOLD = ("InternalExecutionError", "OperationPreempted", "RequestTimeout")
# For what comes without a code that says it.
_STATUSES = {401: _CREDENTIALS, 403: _RIGHT, 404: _MISSING, 429: _THROTTLED}


def translate(error: AzureError, *, changes: bool, about: Mapping[str, str]) -> ProviderError:
    """The contract's error for a call that failed. `changes`: whether the call may have changed something.

    A refusal (status 4xx, or a code of the table whatever its status) says that nothing was done. What is neither
    leaves the outcome of a change unknown.
    """
    values = About(about)
    if isinstance(error, HttpResponseError) and error.response is not None:
        answered = _answered(error, changes=changes, values=values)
        answered.request_id = request_id_of(error)
        return answered
    said = f"{type(error).__name__}: {str(error)[:LONGEST_QUOTE]}"
    if isinstance(error, ClientAuthenticationError):  # the credential's, before anything was sent
        if _no_token_now(error):
            return UnavailableError("Unreachable", f"no access token could be had for {values['operation']} ({said})")
        return DeniedError("NoCredentials", f"{_CREDENTIALS.sentence}: {said}")
    if isinstance(error, ServiceRequestError) or not changes:
        return UnavailableError(
            "Unreachable", f"{values['operation']} did not reach Azure, or was not answered ({said})"
        )
    return UnknownOutcomeError("NoAnswer", f"{values['operation']} was sent, and no answer came ({said})")


def _no_token_now(error: ClientAuthenticationError) -> bool:
    """Whether the same call may get an access token later.

    Of the worker's metadata service the SDK tells no status, only what it said: `invalid_request` where the worker has
    no such identity, something else or nothing while it is overloaded or starts (429, 404, 410 and 5xx in Microsoft's
    description of it).
    """
    if isinstance(error.__cause__, ServiceRequestError | ServiceResponseError):
        return True
    return isinstance(error, CredentialUnavailableError) and not any(
        word in str(error) for word in ("invalid_request", "Identity not found", "No identity")
    )


def refusal_of(code: str, message: str, about: Mapping[str, str]) -> ProviderError:
    """Why an operation that ARM had accepted failed: of the offering, or for good.

    What says neither, such as a defect inside Azure, rules out the offering for a while: the VM is lost anyway, and
    another one may not meet it.
    """
    meaning = _meaning(code, 0, message)
    if code.startswith("OSProvisioning"):
        meaning = _GUEST
    elif meaning is None or not issubclass(meaning.error, OfferingRefusedError | InvalidRequestError | DeniedError):
        meaning = _GAVE_UP
    sentence = f"{meaning.sentence.format_map(About(about))} (Azure: {code}, {message[:LONGEST_QUOTE]})"
    return error_of(meaning, meaning.reason or code, sentence, None)


def request_id_of(error: HttpResponseError) -> str:
    """Azure's own name of a call that it refused."""
    return str(_headers(error).get("x-ms-request-id", ""))


def _answered(error: HttpResponseError, *, changes: bool, values: About) -> ProviderError:
    status = error.status_code or 0
    code = str(error.error.code) if error.error is not None and error.error.code else ""
    message = str(error.error.message) if error.error is not None and error.error.message else str(error.message)
    quoted = f"(Azure: {code or status}, {message[:LONGEST_QUOTE]})"
    meaning = _meaning(code, status, message)
    if meaning is _MISSING and values["operation"].startswith("create_or_update"):
        meaning = _REFERENCE  # what is to be made cannot be missing
    if meaning is None:
        kind = UnknownOutcomeError if changes else UnavailableError
        return kind("ServerError", f"{values['operation']} failed inside Azure {quoted}")
    reason, sentence = meaning.reason or code or "Refused", f"{meaning.sentence.format_map(values)} {quoted}"
    return error_of(meaning, reason, sentence, _retry_after(error))


def _meaning(code: str, status: int, message: str) -> Meaning | None:
    """None for an answer that does not say whether anything was done."""
    if status == 429:
        return _THROTTLED
    if status == 408 or code in _UNTOLD:
        return None
    if code == "OperationNotAllowed" and "quota" not in message.lower():
        return _ASKED_WRONG
    return TABLE.get(code) or _STATUSES.get(status) or (_ASKED_WRONG if 400 <= status < 500 else None)


def _retry_after(error: HttpResponseError) -> float | None:
    told = str(_headers(error).get("Retry-After", ""))
    return float(told) if told.isdigit() else None


def _headers(error: HttpResponseError) -> Mapping[str, str]:
    response: Any = error.response  # typed without what every transport's has
    return {} if response is None else dict(response.headers)
