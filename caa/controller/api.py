"""The controller's calls to the API server. Each is here, and nothing else is asked for but kopf's watches.

Their rights are in docker/kubernetes/controller/rbac.yaml, each with its reason.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from typing import Any

import httpx2
from lightkube import AsyncClient
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericNamespacedResource,
    create_api_info,
    create_global_resource,
)
from lightkube.types import PatchType

from caa.controller.kataconfig import GROUP, PLURAL, VERSION, KataConfig
from caa.controller.nodes import LABEL
from caa.controller.reading import MANAGER
from caa.kubernetes.answers import ABSENT, CONFLICT, AwayError, connected, fine, translated
from caa.kubernetes.api import PeerPod
from caa.kubernetes.objects import NODE_LABEL, node_label

Body = dict[str, Any]
# A list of a large cluster takes a while; what takes longer is broken.
TIMEOUT_SECONDS = 30.0
# All pods of a cluster are listed in pages of this size, kubectl's own.
PAGE = 500
# Events of objects without a namespace are in this one.
EVENTS_NAMESPACE = "default"


class _Node(GenericGlobalResource):
    _api_info = create_api_info("", "v1", "Node", "nodes")


class _Pod(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Pod", "pods")


class _Event(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "Event", "events")


class _ConfigMap(GenericNamespacedResource):
    _api_info = create_api_info("", "v1", "ConfigMap", "configmaps")


class _DaemonSet(GenericNamespacedResource):
    _api_info = create_api_info("apps", "v1", "DaemonSet", "daemonsets")


class _RuntimeClass(GenericGlobalResource):
    _api_info = create_api_info("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")


class _Lease(GenericNamespacedResource):
    _api_info = create_api_info("coordination.k8s.io", "v1", "Lease", "leases")


_KataConfig: Any = create_global_resource(GROUP, VERSION, "KataConfig", PLURAL)


class ConflictError(AwayError):
    """Somebody else wrote in the meantime: look again."""


class ControllerApi:
    """Connections to the API server. Every call may raise AwayError (ConflictError too) and RefusedError."""

    def __init__(self, namespace: str | None) -> None:
        """`namespace` is the controller's; None takes the service account's. Raises ConfigError."""

        def make(**_: object) -> Any:  # its overloads know no objects that are plain JSON
            return AsyncClient(namespace=namespace, timeout=httpx2.Timeout(TIMEOUT_SECONDS))

        self._client = connected(make, "KUBECONFIG", os.environ.get("KUBECONFIG", ""))
        self.namespace: str = self._client.namespace

    async def close(self) -> None:
        """Give back the connections."""
        await self._client.aclose()

    # What there is

    async def kata_configs(self) -> list[Body]:
        """All of them. RefusedError with 404 when their definition is not installed."""
        return await self._all(_KataConfig)

    async def nodes(self) -> list[Body]:
        """All of them."""
        return await self._all(_Node)

    async def runtime_classes(self) -> list[Body]:
        """All of them."""
        return await self._all(_RuntimeClass)

    async def daemon_sets(self) -> dict[str, Body]:
        """Of the controller's namespace, by name."""
        found = await self._all(_DaemonSet, namespace=self.namespace)
        return {one["metadata"]["name"]: one for one in found}

    async def own_pods(self) -> list[Body]:
        """Pods of the controller's namespace."""
        return await self._all(_Pod, namespace=self.namespace)

    async def every_pod(self) -> AsyncIterator[Body]:
        """Pods of the whole cluster. There is no field selector for a runtime class."""
        with errors():
            async for one in self._client.list(_Pod, namespace="*", chunk_size=PAGE):
                yield _plain(one)

    async def image_of(self, pod: str) -> str:
        """The image of the container `controller` of a Pod of this namespace; "" when there is none."""
        found = await self._get(_Pod, pod) or {}
        containers = (found.get("spec") or {}).get("containers") or ()
        return next((str(one["image"]) for one in containers if one.get("name") == "controller"), "")

    # What is written

    async def set_finalizers(self, config: KataConfig, finalizers: list[str]) -> None:
        """All of a KataConfig's, if it is still as it was seen."""
        patch = {"metadata": {"finalizers": finalizers, "resourceVersion": config.version}}
        with errors(absent_is_fine=True):
            await self._client.patch(_KataConfig, config.name, patch, patch_type=PatchType.MERGE)

    async def set_status(self, config: KataConfig, status: Mapping[str, Any]) -> None:
        """The whole status, if it is still as it was seen. What earlier versions wrote stays."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "KataConfig",
            "metadata": {"name": config.name, "resourceVersion": config.version},
            "status": {**config.status, **status},
        }
        with errors(absent_is_fine=True):
            await self._client.replace(_KataConfig.Status(body), config.name)

    async def label(self, node: str, value: str | None) -> None:
        """Set or (None) remove our label of a node; a node that is gone needs none."""
        patch = {"metadata": {"labels": {LABEL: value}}}
        with errors(absent_is_fine=True):
            await self._client.patch(_Node, node, patch, patch_type=PatchType.MERGE)

    async def write_daemon_set(self, body: Body) -> None:
        """Make it or, if it has a version, replace that."""
        await self._write(_DaemonSet, body, self.namespace)

    async def delete_daemon_set(self, name: str) -> None:
        """Its pods end, too."""
        with errors(absent_is_fine=True):
            await self._client.delete(_DaemonSet, name, namespace=self.namespace)

    async def write_runtime_class(self, body: Body) -> None:
        """Make it or, if it has a version, replace that."""
        await self._write(_RuntimeClass, body)

    async def delete_runtime_class(self, name: str) -> None:
        """Pods that run are not touched; new ones are refused."""
        with errors(absent_is_fine=True):
            await self._client.delete(_RuntimeClass, name)

    async def create_event(self, config: KataConfig, reason: str, message: str, *, warning: bool, at: datetime) -> None:
        """An event of a KataConfig."""
        time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "KataConfig", "name": config.name, "uid": config.uid}
        body: Body = {
            "metadata": {"name": f"{config.name[:200]}.{secrets.token_hex(8)}", "namespace": EVENTS_NAMESPACE},
            "involvedObject": about,
            "reason": reason,
            "message": message[:1024],
            "type": "Warning" if warning else "Normal",
            "source": {"component": MANAGER},
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        }
        with errors():
            await self._client.create(_Event(**body), namespace=EVENTS_NAMESPACE)

    # Small objects of its own

    async def lease(self, name: str) -> Body | None:
        """A Lease; None when there is none."""
        return await self._get(_Lease, name)

    async def write_lease(self, body: Body) -> Body:
        """Make it or, if it has a version, replace that. ConflictError when somebody was faster."""
        return await self._write(_Lease, body, self.namespace)

    async def config_map(self, name: str) -> Body | None:
        """A ConfigMap; None when there is none."""
        return await self._get(_ConfigMap, name)

    async def write_config_map(self, body: Body) -> Body:
        """Make it or, if it has a version, replace that; as it is then."""
        return await self._write(_ConfigMap, body, self.namespace)

    # PeerPods of nodes that are gone

    async def peer_pods_of(self, cluster: str, node: str) -> list[tuple[str, str]]:
        """Namespace and name of a node's PeerPods; none where there is no definition of them."""
        label = {NODE_LABEL: node_label(cluster, node)}
        with errors(absent_is_fine=True):
            found = [_plain(one)["metadata"] async for one in self._client.list(PeerPod, namespace="*", labels=label)]
            return [(str(one["namespace"]), str(one["name"])) for one in found]
        return []

    async def release_peer_pod(self, namespace: str, name: str) -> None:
        """Remove one whose instance is gone; the finalizer first."""
        with errors(absent_is_fine=True):
            patch = {"metadata": {"finalizers": None}}
            await self._client.patch(PeerPod, name, patch, namespace=namespace, patch_type=PatchType.MERGE)
            await self._client.delete(PeerPod, name, namespace=namespace)

    # Inside

    async def _all(self, kind: Any, **where: Any) -> list[Body]:
        with errors():
            return [_plain(one) async for one in self._client.list(kind, **where)]

    async def _get(self, kind: Any, name: str) -> Body | None:
        with errors(absent_is_fine=True):
            return _plain(await self._client.get(kind, name, namespace=self.namespace))
        return None

    async def _write(self, kind: Any, body: Body, namespace: str | None = None) -> Body:
        where = {"namespace": namespace} if namespace else {}
        with errors():
            if body["metadata"].get("resourceVersion"):
                return _plain(await self._client.replace(kind(body), body["metadata"]["name"], **where))
            return _plain(await self._client.create(kind(body), **where))


def _plain(one: Any) -> Body:
    # The library keeps the JSON in a dict of its own kind.
    return dict(one)


@contextlib.contextmanager
def errors(*, absent_is_fine: bool = False) -> Iterator[None]:
    """What a call may raise, as this package knows it."""
    with translated(), fine(ABSENT) if absent_is_fine else contextlib.nullcontext():
        try:
            yield
        except httpx2.HTTPStatusError as error:
            if error.response is not None and error.response.status_code == CONFLICT:
                raise ConflictError(str(error)) from error
            raise
