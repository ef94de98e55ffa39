"""The VPC API's error codes, IAM's, and those of the way to both, as the contract's errors: one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import requests
from ibm_cloud_sdk_core import ApiException  # type: ignore[import-untyped]
from urllib3.exceptions import MaxRetryError, NameResolutionError, NewConnectionError

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
from providers.meanings import LONGEST_QUOTE, About, Meaning, error_of, refused

NAME_TAKEN = "NameTaken"


_NONE_LEFT = Meaning(CapacityError, "IBM Cloud has no {type} left in {zone}")
# No word of capacity, but of a host, a network or a disk that failed; elsewhere there are others.
_NOT_STARTED = Meaning(CapacityError, "IBM Cloud could not start an instance of {type} in {zone}")
_NOT_HERE = Meaning(CapacityError, "IBM Cloud does not offer {type} in {zone} now")
_HOST_FULL = Meaning(CapacityError, "the dedicated host or host group {target} has no room for another {type}")
_NO_ADDRESS = Meaning(
    CapacityError, "the subnet {subnet} in {zone} (IBMCLOUD_VPC_SUBNET_ID) has no free address left", scope=Scope.ZONE
)
_QUOTA = Meaning(
    QuotaError,
    "a quota of the account does not allow another {type}; ask IBM Cloud to raise it",
    scope=Scope.TYPE,
)
_THROTTLED = Meaning(ThrottledError, "IBM Cloud takes fewer calls than it was sent", reason="Throttled")
_CREDENTIALS = Meaning(
    DeniedError,
    "IBM Cloud does not accept the credentials (IBMCLOUD_API_KEY, or IBMCLOUD_IAM_PROFILE_ID with its token)",
    "AuthFailure",
)
_RIGHT = Meaning(DeniedError, "the credentials lack the right to call {operation}", "AccessDenied")
_ACCOUNT = Meaning(DeniedError, "IBM Cloud does not let this account make instances now")
_TAKEN = Meaning(InvalidRequestError, "the name {name} is in use already, by what is not of this request", NAME_TAKEN)
_IMAGE = Meaning(
    InvalidRequestError, "IBMCLOUD_PODVM_IMAGE_ID={image} is no image that can be used in this region", "ImageMissing"
)
_SUBNET = Meaning(InvalidRequestError, "IBMCLOUD_VPC_SUBNET_ID={subnet} is no subnet in this region", "SubnetMissing")
_VPC = Meaning(InvalidRequestError, "IBMCLOUD_VPC_ID={vpc} is no VPC in this region", "VpcMissing")
_GROUP = Meaning(
    InvalidRequestError, "IBMCLOUD_SECURITY_GROUP_IDS={groups} are not all security groups of the VPC", "GroupMissing"
)
_KEY = Meaning(InvalidRequestError, "IBMCLOUD_SSH_KEY_ID={key} is no key in this region", "KeyMissing")
_TYPE = Meaning(
    InvalidRequestError,
    "{type} (IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME, _LIST) is no instance profile in this region",
    "InstanceTypeUnknown",
)
_RESOURCE_GROUP = Meaning(
    InvalidRequestError,
    "IBMCLOUD_RESOURCE_GROUP_ID={resource_group} is no resource group of the account",
    "ResourceGroupMissing",
)
_HOST = Meaning(
    InvalidRequestError,
    "IBMCLOUD_DEDICATED_HOST_IDS or IBMCLOUD_DEDICATED_HOST_GROUP_IDS: {target} cannot be used",
    "HostMissing",
)
_ASKED_WRONG = Meaning(InvalidRequestError, "IBM Cloud refuses {operation} as it was asked for")
_MISSING = Meaning(MissingError, "there is no {instance} in this region", "InstanceMissing")

_TABLE: dict[str, Meaning] = {
    "insufficient_capacity": _NONE_LEFT,
    "cannot_start_capacity": _NONE_LEFT,
    "cannot_start_reservation_capacity": _NONE_LEFT,
    "instance_capacity_unavailable": _NONE_LEFT,
    "cannot_start": _NOT_STARTED,
    "cannot_start_compute": _NOT_STARTED,
    "cannot_start_network": _NOT_STARTED,
    "cannot_start_storage": _NOT_STARTED,
    "instance_profile_not_available": _NOT_HERE,
    "profile_not_available_in_zone": _NOT_HERE,
    "dedicated_host_insufficient_capacity": _HOST_FULL,
    "placement_target_insufficient_capacity": _HOST_FULL,
    "cannot_start_placement_group": _HOST_FULL,
    "subnet_insufficient_ips": _NO_ADDRESS,
    "insufficient_ip_addresses": _NO_ADDRESS,
    "cannot_start_ip_address": _NO_ADDRESS,
    "over_quota": _QUOTA,
    "quota_exceeded": _QUOTA,
    "too_many_requests": _THROTTLED,
    "rate_limit_exceeded": _THROTTLED,
    "not_authenticated": _CREDENTIALS,
    "unauthenticated": _CREDENTIALS,
    "invalid_auth_token": _CREDENTIALS,
    "token_expired": _CREDENTIALS,
    "not_authorized": _RIGHT,
    "forbidden": _RIGHT,
    "account_suspended": _ACCOUNT,
    "validation_unique_failed": _TAKEN,
    "name_not_unique": _TAKEN,
    "image_not_found": _IMAGE,
    "image_not_available": _IMAGE,
    "subnet_not_found": _SUBNET,
    "vpc_not_found": _VPC,
    "security_group_not_found": _GROUP,
    "key_not_found": _KEY,
    "profile_not_found": _TYPE,
    "instance_profile_not_found": _TYPE,
    "resource_group_not_found": _RESOURCE_GROUP,
    "dedicated_host_not_found": _HOST,
    "dedicated_host_group_not_found": _HOST,
    "not_found": _MISSING,
    "instance_not_found": _MISSING,
}
# For codes that the table does not have, e.g. "instance_vcpu_over_quota".
_ENDINGS = {"_over_quota": _QUOTA, "quota_exceeded": _QUOTA, "_insufficient_capacity": _NONE_LEFT}
# For what comes without a code that says it.
_STATUSES = {401: _CREDENTIALS, 403: _RIGHT, 404: _MISSING, 429: _THROTTLED}
# Before anything of the call was sent.
_NEVER_CONNECTED = (NewConnectionError, NameResolutionError)


def translate(error: Exception, *, changes: bool, about: Mapping[str, str]) -> ProviderError:
    """The contract's error for a call that failed. `changes`: whether the call may have changed something.

    A refusal (status 4xx, or a code of the table whatever its status) says that nothing was done. What is neither
    leaves the outcome of a change unknown.
    """
    values = About(about)
    if isinstance(error, ApiException):
        answered = _answered(error, changes=changes, values=values)
        answered.request_id = request_id_of(error)
        return answered
    said = f"{type(error).__name__}: {str(error)[:LONGEST_QUOTE]}"
    if not isinstance(error, requests.RequestException):
        # The SDK's own checks; the text would quote parameters, of which the user data is one.
        return InvalidRequestError("InvalidParameter", f"{values['operation']} was given what the API does not have")
    if isinstance(error, requests.exceptions.SSLError):
        text = "its certificate was not accepted; REQUESTS_CA_BUNDLE may name the CA"
        return UnavailableError("Unreachable", f"{values['operation']} did not reach IBM Cloud: {text} ({said})")
    if not changes or _never_sent(error):
        return UnavailableError(
            "Unreachable", f"{values['operation']} did not reach IBM Cloud, or was not answered ({said})"
        )
    return UnknownOutcomeError("NoAnswer", f"{values['operation']} was sent, and no answer came ({said})")


def token_failure(error: Exception) -> ProviderError:
    """The contract's error for an access token that could not be had. Nothing else was sent then."""
    if isinstance(error, ApiException) and 400 <= error.status_code < 500 and error.status_code != 429:
        return DeniedError(_CREDENTIALS.reason, f"{_CREDENTIALS.sentence} (IAM: {_quote(error)})")
    if isinstance(error, ApiException) and error.status_code == 429:
        return ThrottledError("Throttled", f"{_THROTTLED.sentence} (IAM: {_quote(error)})", _retry_after(error))
    if isinstance(error, (ApiException, requests.RequestException)):
        said = f"{type(error).__name__}: {str(error)[:LONGEST_QUOTE]}"
        return UnavailableError("Unreachable", f"no access token could be had at IBMCLOUD_IAM_ENDPOINT ({said})")
    # The compute resource token of a trusted profile is a file.
    return DeniedError("NoCredentials", f"{_CREDENTIALS.sentence}: {str(error)[:LONGEST_QUOTE]}")


def given_up(reasons: Iterable[Mapping[str, Any]], about: Mapping[str, str]) -> OfferingRefusedError | None:
    """What the reasons of an instance's status say of the offering that it was; None when they say nothing of it.

    IBM Cloud takes a launch before it looks for a host, so want of capacity mostly shows here.
    """
    for one in reasons:
        code = str(one.get("code", ""))
        meaning = _TABLE.get(code)
        if meaning is not None:
            quoted = f"(IBM Cloud: {code}, {str(one.get('message', ''))[:LONGEST_QUOTE]})"
            sentence = f"{meaning.sentence.format_map(About(about))} {quoted}"
            refusal = refused(meaning, _reason(meaning, code), sentence)
            if refusal is not None:
                return refusal
    return None


def request_id_of(error: ApiException) -> str:
    """The API's own name of a call that it refused."""
    headers = error.http_response.headers if error.http_response is not None else {}
    return str(headers.get("X-Request-Id") or _body(error).get("trace") or "")


def _answered(error: ApiException, *, changes: bool, values: About) -> ProviderError:
    first: dict[str, Any] = next(iter(_body(error).get("errors") or []), {})
    code, status = str(first.get("code", "")), int(error.status_code)
    quoted = f"(IBM Cloud: {code or status}, {_quote(error)})"
    meaning = _meaning(code, status, str(first.get("message", "")))
    if status == 404 and not changes:
        meaning = _MISSING  # what was looked for itself, and nothing that it names
    if meaning is None:
        kind = UnknownOutcomeError if changes else UnavailableError
        return kind("ServerError", f"{values['operation']} failed inside IBM Cloud {quoted}")
    sentence = f"{meaning.sentence.format_map(values)} {quoted}"
    return error_of(meaning, _reason(meaning, code), sentence, _retry_after(error))


def _reason(meaning: Meaning, code: str) -> str:
    return meaning.reason or "".join(word.capitalize() for word in code.split("_")) or "Refused"


def _meaning(code: str, status: int, message: str) -> Meaning | None:
    """None for an answer that does not say whether anything was done."""
    found = _TABLE.get(code) or next((row for ending, row in _ENDINGS.items() if code.endswith(ending)), None)
    if found:
        return found
    # Parts of the API pass on an inner service's refusal in their own message.
    if 400 <= status < 500 and ("validation_unique_failed" in message or "is not unique" in message):
        return _TAKEN
    return _STATUSES.get(status) or (_ASKED_WRONG if 400 <= status < 500 else None)


def _never_sent(error: requests.RequestException) -> bool:
    if isinstance(error, (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError)):
        return True
    inner = error.args[0] if error.args else None
    reason = inner.reason if isinstance(inner, MaxRetryError) else inner
    return isinstance(reason, _NEVER_CONNECTED)


def _body(error: ApiException) -> dict[str, Any]:
    if error.http_response is None:
        return {}
    try:
        body = error.http_response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _quote(error: ApiException) -> str:
    return str(error.message)[:LONGEST_QUOTE]


def _retry_after(error: ApiException) -> float | None:
    headers = error.http_response.headers if error.http_response is not None else {}
    told = str(headers.get("Retry-After", ""))
    return float(told) if told.isdigit() else None
