"""Calls of Azure's resource manager and page blobs, with the provider contract's errors. All may be repeated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import ClientSecretCredential, DefaultAzureCredential
from azure.mgmt.compute import ComputeManagementClient

from imagebuilder.publish.azurekeys import AzureImageKeys
from imagebuilder.publish.base import Work
from imagebuilder.publish.patience import patiently
from providers.base import (
    DeniedError,
    InvalidRequestError,
    MissingError,
    ProviderError,
    QuotaError,
    ThrottledError,
    UnavailableError,
)

T = TypeVar("T")
NO_WAIT = {"polling": False}
"""For what is looked at until it is done, so that a build can be ended meanwhile."""
_QUOTE = 500
# Azure says itself when to look again; this is for when it does not.
_POLL_SECONDS = 0.2


class AzureApi:
    """The compute client of one subscription, made when first needed. A call gets it, and says what it is for."""

    def __init__(self, keys: AzureImageKeys) -> None:
        self._keys = keys
        self._made: Any = None

    def close(self) -> None:
        """Close the connections."""
        made, self._made = self._made, None
        if made is not None:
            made.close()

    def _client(self) -> Any:
        if self._made is None:
            keys = self._keys
            secret = keys.client_secret.get_secret_value()
            # Only Azure's own clouds are known to its directory service.
            options = {"disable_instance_discovery": bool(keys.authority_host)}
            if keys.authority_host:
                options["authority"] = keys.authority_host  # type: ignore[assignment]
            credential: Any = (
                ClientSecretCredential(keys.tenant_id, keys.client_id, secret, **options)
                if secret
                else DefaultAzureCredential(**options)
            )
            self._made = ComputeManagementClient(
                credential,
                keys.subscription_id,
                base_url=keys.resource_manager,
                credential_scopes=[f"{keys.resource_manager.rstrip('/')}/.default"],
                retry_total=0,
                polling_interval=_POLL_SECONDS,
            )
        return self._made

    def ask(self, what: str, call: Callable[[Any], T]) -> T | None:
        """The resource, or None."""
        try:
            found: T = self.run(what, call)
            return found
        except MissingError:
            return None

    def listed(self, call: Callable[[Any], Any]) -> list[Any]:
        """Every resource of a list."""
        try:
            return translated("list", lambda: list(call(self._client())))
        except MissingError:
            return []

    def run(self, what: str, call: Callable[[Any], Any]) -> Any:
        """The call's result, and that of the operation it began, if it began one."""

        def run() -> Any:
            found = call(self._client())
            return found.result() if hasattr(found, "result") else found

        return translated(what, run)

    def put(self, what: str, work: Work, call: Callable[[Any], Any]) -> None:
        """Ask for a resource."""
        work.check()
        patiently(work, lambda: self.run(what, call))

    def until(self, work: Work, get: Callable[[Any], Any]) -> Any:
        """The resource, when it is made."""
        while True:
            found = patiently(work, lambda: self.ask("look", get))
            if found is not None and found.provisioning_state == "Succeeded":
                return found
            if found is not None and found.provisioning_state == "Failed":
                raise UnavailableError("MakingFailed", f"Azure could not make {found.name}")
            work.sleep(1.0)

    def end(self, what: str, group: Callable[[Any], Any], path: tuple[str, ...]) -> None:
        """Delete a resource of an operation group, and wait for that. Absent is done."""
        resource_group = self._keys.resource_group
        self.ask(what, lambda c: group(c).begin_delete(resource_group, *path))


def translated(what: str, call: Callable[[], T]) -> T:
    """The call's result, with Azure's errors as the contract's. All calls here may be repeated."""
    try:
        return call()
    except (ServiceRequestError, ServiceResponseError) as error:
        raise UnavailableError("Unreachable", f"{what}: Azure was not reached, or did not answer ({error})") from error
    except ClientAuthenticationError as error:
        raise DeniedError("AuthFailure", f"{what}: Azure does not accept the credentials: {_quoted(error)}") from error
    except ResourceNotFoundError as error:
        raise MissingError("ResourceMissing", f"{what}: {_quoted(error)}") from error
    except HttpResponseError as error:
        raise _error(what, error) from error


def _error(what: str, error: HttpResponseError) -> ProviderError:
    status = error.status_code or 0
    code = str(getattr(error.error, "code", "") or status)
    said = f"{what}: {_quoted(error)}"
    if status in (401, 403):
        return DeniedError("AccessDenied", f"the credentials lack a right that is needed to {said}")
    if status == 429:
        return ThrottledError("Throttled", said)
    if status >= 500 or status == 408:
        return UnavailableError("ServerError", said)
    if "Quota" in code or code == "OperationNotAllowed":
        return QuotaError("QuotaExceeded", said)
    return InvalidRequestError(re.sub(r"\W", "", code) or "Refused", said)


def _quoted(error: HttpResponseError) -> str:
    return f"(Azure: {(error.message or '').splitlines()[0][:_QUOTE] if error.message else error.status_code})"
