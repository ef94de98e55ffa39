"""The VPC client: made when first needed, shared by all threads, never retrying, never waiting without bound."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
from ibm_cloud_sdk_core import ApiException, BaseService  # type: ignore[import-untyped]
from ibm_cloud_sdk_core.authenticators import (  # type: ignore[import-untyped]
    Authenticator,
    ContainerAuthenticator,
    IAMAuthenticator,
)
from ibm_vpc import VpcV1  # type: ignore[import-untyped]
from requests.adapters import HTTPAdapter

from providers.base import ConfigError, Problem
from providers.ibmcloud.errors import token_failure, translate
from providers.ibmcloud.place import WorkerPlace
from providers.ibmcloud.settings import IbmCloudKeys

# A handshake inside IBM Cloud takes milliseconds; past this the packets are being dropped.
CONNECT_SECONDS = 5
# IBM Cloud names no bound. A create call takes seconds; past this its answer counts as lost, and is asked for again.
READ_SECONDS = 30
# As many as the service has threads for calls; fewer would make calls open and throw away connections.
CONNECTIONS = 16
# The API answers as it did on this day, whatever it learns later. Network attachments came in 2023.
API_VERSION = "2025-01-21"
# The most that one page of any listing may have.
PAGE = 100

# At debug level the SDK would write whole requests, user data with its key included.
logging.getLogger("ibm-cloud-sdk-core").setLevel(logging.INFO)


class Vpc:
    """Calls of the VPC API by the SDK's names, with the contract's errors."""

    def __init__(self, keys: IbmCloudKeys, place: WorkerPlace) -> None:
        self._keys = keys
        self._place = place
        self._lock = threading.Lock()
        self._token_lock = threading.Lock()
        self._authenticator = _authenticator(keys)
        self._service: Any = None
        self._tagging: Any = None

    def call(self, operation: str, about: Mapping[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
        """One call that may change something. Raises ProviderError; `about` has values for its sentence."""
        return self._call(operation, about or {}, parameters, changes=True)[0]

    def launch(self, about: Mapping[str, str], prototype: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """The create call: the instance, and the API's own name of the call. Raises ProviderError."""
        made, headers = self._call("create_instance", about, {"instance_prototype": dict(prototype)}, changes=True)
        return made, str(headers.get("X-Request-Id", ""))

    def read(self, operation: str, about: Mapping[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
        """One call that changes nothing. Raises ProviderError."""
        return self._call(operation, about or {}, parameters, changes=False)[0]

    def pages(
        self, operation: str, key: str, about: Mapping[str, str] | None = None, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """Every item under `key` of a listing, page by page. Raises ProviderError."""
        while True:
            page = self.read(operation, about, **parameters)
            yield from page.get(key, [])
            start = parse_qs(urlsplit(page.get("next", {}).get("href", "")).query).get("start")
            if not start:
                return
            parameters["start"] = start[0]

    def tag(self, crns: list[str], tags: list[str]) -> None:
        """Attach user tags to resources, at most 100 at once. Raises ProviderError."""
        values = {"operation": "attach_tag"}
        self._have_token()
        body = {"resources": [{"resource_id": crn} for crn in crns], "tag_names": tags}
        try:
            service = self._made()[1]
            service.send(service.prepare_request("POST", "/v3/tags/attach", params={"tag_type": "user"}, data=body))
        except (ApiException, requests.RequestException, ValueError) as error:
            raise translate(error, changes=True, about=values) from error

    def get_token(self) -> str:
        """An access token, for other services of IBM Cloud. Raises ProviderError."""
        self._have_token()
        return str(self._authenticator.token_manager.get_token())

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            made, self._service, self._tagging = (self._service, self._tagging), None, None
        for service in filter(None, made):
            service.get_http_client().close()

    def _call(
        self, operation: str, about: Mapping[str, str], parameters: dict[str, Any], *, changes: bool
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        self._have_token()
        service = self._made()[0]
        try:
            answer = getattr(service, operation)(**parameters)
        except (ApiException, requests.RequestException, ValueError, TypeError) as error:
            raise translate(error, changes=changes, about={"operation": operation, **about}) from error
        result = answer.get_result()
        return (result if isinstance(result, dict) else {}), answer.get_headers()

    def _have_token(self) -> None:
        """A valid access token, before a call: so what fails here is known to have sent nothing. Raises ProviderError.

        One thread at a time, for of several the SDK would let all but one sleep, for a minute when that one failed.
        """
        manager = self._authenticator.token_manager
        with self._token_lock:
            try:
                manager.get_token()
            except Exception as error:  # the SDK raises plain ones for a file that cannot be read
                manager.request_time = 0
                if manager.access_token and manager.expire_time > time.time():
                    return  # it was to be renewed early, and still holds
                raise token_failure(error) from error

    def _made(self) -> tuple[Any, Any]:
        """The two services."""
        if self._service is None or self._tagging is None:
            url = self._place.vpc_endpoint()
            with self._lock:
                self._service = self._service or VpcV1(version=API_VERSION, authenticator=self._authenticator)
                self._service.set_service_url(url)
                self._tagging = self._tagging or BaseService(
                    service_url=self._keys.tagging_endpoint, authenticator=self._authenticator
                )
                for service in (self._service, self._tagging):
                    _prepare(service)
                return self._service, self._tagging
        return self._service, self._tagging


def _prepare(service: Any) -> None:
    # Never an adapter with retries: the service retries, with the same name.
    adapter = HTTPAdapter(pool_connections=2, pool_maxsize=CONNECTIONS, max_retries=0)
    client = service.get_http_client()
    client.mount("https://", adapter)
    client.mount("http://", adapter)
    service.set_http_config({"timeout": (CONNECT_SECONDS, READ_SECONDS)})
    version = metadata.version("peerpod-cloud-adaptor")
    service.set_default_headers({"User-Agent": f"peerpod-cloud-adaptor/{version}"})


def _authenticator(keys: IbmCloudKeys) -> Authenticator:
    """Raises ConfigError. An API key, or a trusted profile that the worker's token stands for."""
    api_key = keys.api_key.get_secret_value()
    if bool(api_key) == bool(keys.iam_profile_id):
        said = "is required, or IBMCLOUD_IAM_PROFILE_ID" if not api_key else "and IBMCLOUD_IAM_PROFILE_ID exclude"
        raise ConfigError([Problem("IBMCLOUD_API_KEY", f"{said} each other: exactly one of them says who asks.")])
    with contextlib.suppress(ValueError):
        if api_key:
            return IAMAuthenticator(api_key, url=keys.iam_endpoint)
        return ContainerAuthenticator(
            cr_token_filename=keys.cr_token_file, iam_profile_id=keys.iam_profile_id, url=keys.iam_endpoint
        )
    text = "is not allowed: it must be the key alone, without quotes or brackets"
    raise ConfigError([Problem("IBMCLOUD_API_KEY", text)])
