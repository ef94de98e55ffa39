"""Azure's APIs: clients made when first needed, shared by all threads, never retrying, never waiting without bound."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from azure.core.exceptions import AzureError
from azure.identity import ClientSecretCredential, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.network import NetworkManagementClient

from providers.azure.errors import translate
from providers.azure.settings import AzureKeys
from providers.base import ConfigError, Problem

# A handshake inside Azure takes milliseconds; past this the packets are being dropped.
CONNECT_SECONDS = 5
# ARM answers a PUT within seconds and does the rest later; past this its answer counts as lost, and is asked for again.
READ_SECONDS = 60
# Whoever gives out access tokens answers in much less than a second. By default the SDK waits five minutes, and asks
# the worker's metadata service six times with pauses of up to 40 s, in a thread that others wait for.
TOKEN_SECONDS = 10
REQUEST_ID = "x-ms-request-id"


class Arm:
    """Calls by the SDK's names of operation group and operation, with the contract's errors. All answers are JSON."""

    def __init__(self, keys: AzureKeys) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._credential = _credential(keys)
        self._clients: dict[tuple[str, str], Any] = {}  # by service and subscription

    def begin(
        self, group: str, operation: str, *arguments: Any, about: Mapping[str, str]
    ) -> tuple[dict[str, Any], int, str]:
        """Ask for a change: the first answer's body and status, and Azure's name of the call. Waits for nothing."""
        seen: list[Any] = []
        call = getattr(self._group("compute", group), f"begin_{operation}")
        try:
            poller = call(*arguments, polling=False, raw_response_hook=seen.append)
            result = poller.result()
        except AzureError as error:
            raise translate(error, changes=True, about=self._about(group, operation, about)) from error
        answer = seen[-1].http_response
        body = result.as_dict() if hasattr(result, "as_dict") else {}
        return body, int(answer.status_code), str(answer.headers.get(REQUEST_ID, ""))

    def delete_network(self, group: str, name: str) -> None:
        """Ask for the end of a network resource. What is not there is no error."""
        call = self._group("network", group).begin_delete
        try:
            call(self._keys.resource_group, name, polling=False)
        except AzureError as error:
            raise translate(error, changes=True, about=self._about(group, "delete", {"name": name})) from error

    def get(
        self,
        service: str,
        group: str,
        *arguments: Any,
        about: Mapping[str, str] | None = None,
        operation: str = "get",
        subscription: str = "",
        **more: Any,
    ) -> dict[str, Any]:
        """One resource, of the pod VMs' subscription unless another is given. Raises ProviderError."""
        try:
            found = getattr(self._group(service, group, subscription), operation)(*arguments, **more)
            body: dict[str, Any] = found.as_dict()
        except AzureError as error:
            raise translate(error, changes=False, about=self._about(group, operation, about or {})) from error
        return body

    def listed(self, service: str, group: str, *arguments: Any, **more: Any) -> Iterator[dict[str, Any]]:
        """Every item of a listing, page by page. Raises ProviderError."""
        try:
            for item in self._group(service, group).list(*arguments, **more):
                yield item.as_dict()
        except AzureError as error:
            raise translate(error, changes=False, about=self._about(group, "list", {})) from error

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()
        self._credential.close()

    def _about(self, group: str, operation: str, about: Mapping[str, str]) -> dict[str, str]:
        keys = self._keys
        return {
            "operation": f"{operation} of {group}",
            "region": keys.region,
            "resource_group": keys.resource_group,
            "subscription": keys.subscription_id,
            "subnet": keys.subnet_id,
            "nsg": keys.nsg_id or "(not set)",
            **about,
        }

    def _group(self, service: str, group: str, subscription: str = "") -> Any:
        key = (service, (subscription or self._keys.subscription_id).lower())
        client = self._clients.get(key)
        if client is None:
            with self._lock:
                client = self._clients.get(key) or self._made(*key)
                self._clients[key] = client
        return getattr(client, group)

    def _made(self, service: str, subscription: str) -> Any:
        kind: Any = {"compute": ComputeManagementClient, "network": NetworkManagementClient}[service]
        place = self._keys.resource_manager
        return kind(
            self._credential,
            subscription,
            base_url=place,
            credential_scopes=[f"{place}/.default"],
            retry_total=0,  # the service retries, with the same name
            connection_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            user_agent=f"peerpod-cloud-adaptor/{metadata.version('peerpod-cloud-adaptor')}",
            logging_enable=False,  # bodies hold user data
        )


def _credential(keys: AzureKeys) -> Any:
    """Raises ConfigError. Secret, else workload identity, else the worker's managed identity."""
    secret = keys.client_secret.get_secret_value()
    token_file = os.environ.get("AZURE_FEDERATED_TOKEN_FILE", "")
    if secret or token_file:
        needed = {"AZURE_CLIENT_ID": keys.client_id, "AZURE_TENANT_ID": keys.tenant_id}
        missing = [key for key, value in needed.items() if not value]
        if missing:
            why = "AZURE_CLIENT_SECRET" if secret else "AZURE_FEDERATED_TOKEN_FILE"
            raise ConfigError([Problem(key, f"is required when {why} is set.") for key in missing])
    # One authority only, so the SDK need not ask the public cloud which there are.
    more: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": CONNECT_SECONDS,
        "read_timeout": TOKEN_SECONDS,
        "disable_instance_discovery": bool(os.environ.get("AZURE_AUTHORITY_HOST")),
    }
    try:
        if secret:
            return ClientSecretCredential(keys.tenant_id, keys.client_id, secret, **more)
        if token_file:
            return WorkloadIdentityCredential(
                tenant_id=keys.tenant_id, client_id=keys.client_id, token_file_path=token_file, **more
            )
        del more["disable_instance_discovery"]  # there is nothing to discover
        return ManagedIdentityCredential(client_id=keys.client_id or None, **more)
    except ValueError as error:
        raise ConfigError([Problem("AZURE_TENANT_ID", f"{keys.tenant_id!r} is not allowed: {error}")]) from error
