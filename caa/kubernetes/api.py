"""The few calls this service makes to the API server. Each is here, and nothing else is asked for.

Rights (RBAC): `get` pods; `create` events; `create`, `list`, `patch`, `delete` peerpods.confidentialcontainers.org;
`get` nodes, `patch` nodes/status.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, cast

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.resources.core_v1 import Event, Node, NodeStatus, Pod
from lightkube.types import PatchType

from caa.kubernetes.objects import NODE_LABEL, RESOURCE, SANDBOX_ANNOTATION
from providers.base import ConfigError, Problem

PeerPod: Any = create_namespaced_resource("confidentialcontainers.org", "v1alpha1", "PeerPod", "peerpods")
# A healthy API server answers in well under a second, also when it is throttled by its own limits.
TIMEOUT_SECONDS = 5.0
GONE, CONFLICT = 404, 409
# The server cannot answer now: try again later. 401 is a token about to be renewed.
PASSING = frozenset({401, 408, CONFLICT, 429, 500, 502, 503, 504})


class AwayError(Exception):
    """The API server cannot be reached, or is not able to answer now."""


class RefusedError(Exception):
    """The API server said no, and will again: a right or a kind of object is missing, or the namespace goes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KubernetesApi:
    """Connections to the API server. Every call may raise AwayError and RefusedError."""

    def __init__(self) -> None:
        """Raises ConfigError when nothing says where the API server is."""
        try:
            self._client = AsyncClient(timeout=httpx2.Timeout(TIMEOUT_SECONDS))
        except (LightkubeConfigError, OSError) as error:
            raise _nowhere(str(error)) from error
        except Exception as error:
            # What the library makes of a file that lacks something. It may quote the file, tokens included.
            file = os.environ.get("KUBECONFIG", "") or "the configuration of kubectl"
            raise _nowhere(f"{file} is not one that can be read: {type(error).__name__}") from error

    async def close(self) -> None:
        """Give back the connections."""
        await self._client.aclose()

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The Pod's metadata; None when there is none."""
        with _errors(), _absent_is_fine():
            metadata = (await self._client.get(Pod, name, namespace=namespace)).metadata
            assert metadata is not None
            return {"uid": metadata.uid, "created": metadata.creationTimestamp}
        return None

    async def create_event(self, event: dict[str, Any]) -> None:
        """Write an event, unless it is there."""
        with _errors(), _there_is_fine():
            await self._client.create(cast(Event, Event.from_dict(event)))

    async def create_peer_pod(self, peer_pod: dict[str, Any]) -> bool:
        """Write a PeerPod; False when it was there, whatever it holds."""
        with _errors(), _there_is_fine():
            await self._client.create(PeerPod.from_dict(peer_pod))
            return True
        return False

    async def set_instance(self, namespace: str, name: str, instance_id: str) -> bool:
        """Write the instance into a PeerPod; False when there is none."""
        with _errors(), _absent_is_fine():
            await self._patch(namespace, name, {"spec": {"instanceID": instance_id}})
            return True
        return False

    async def release_peer_pod(self, namespace: str, name: str) -> None:
        """Remove a PeerPod whose instance is gone; the finalizer first, so no controller looks for the instance."""
        with _errors(), _absent_is_fine():
            await self._patch(namespace, name, {"metadata": {"finalizers": None}})
            await self._client.delete(PeerPod, name, namespace=namespace)

    async def peer_pods(self, label: str) -> list[tuple[str, str, str, str]]:
        """The node's PeerPods: sandbox id, namespace, name, instance id."""
        with _errors():
            return [
                (
                    str((one.metadata.annotations or {}).get(SANDBOX_ANNOTATION, "")),
                    str(one.metadata.namespace),
                    str(one.metadata.name),
                    str((one.get("spec") or {}).get("instanceID", "")),
                )
                async for one in self._client.list(PeerPod, namespace="*", labels={NODE_LABEL: label})
            ]

    async def advertised(self, node: str) -> str | None:
        """How many pod VMs the node says it has room for."""
        with _errors():
            status = (await self._client.get(Node, node)).status
            return (status.capacity or {}).get(RESOURCE) if status is not None else None

    async def advertise(self, node: str, count: int | None) -> None:
        """Say so. None removes it. The kubelet derives from it what is allocatable."""
        patch = {"status": {"capacity": {RESOURCE: None if count is None else str(count)}}}
        with _errors():
            await self._client.patch(NodeStatus, node, patch, patch_type=PatchType.MERGE)

    async def _patch(self, namespace: str, name: str, patch: dict[str, Any]) -> None:
        await self._client.patch(PeerPod, name, patch, namespace=namespace, patch_type=PatchType.MERGE)


def _nowhere(why: str) -> ConfigError:
    text = f"'true' is not allowed here: where the API server is cannot be told ({why})"
    return ConfigError([Problem("CAA_KUBERNETES", text)])


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except httpx2.HTTPStatusError as error:
        status = error.response.status_code
        if status in PASSING:
            raise AwayError(f"the API server answered {status}: {error}") from error
        raise RefusedError(status, str(error)) from error
    except (httpx2.TransportError, OSError) as error:
        raise AwayError(f"the API server cannot be reached: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _fine(status: int) -> Iterator[None]:
    try:
        yield
    except httpx2.HTTPStatusError as error:
        if error.response.status_code != status:
            raise


def _absent_is_fine() -> contextlib.AbstractContextManager[None]:
    return _fine(GONE)


def _there_is_fine() -> contextlib.AbstractContextManager[None]:
    return _fine(CONFLICT)
