"""The few calls this service makes to the API server. Each is here, and nothing else is asked for.

Rights (RBAC): `get` pods; `create` events; `create`, `list`, `patch`, `delete` peerpods.confidentialcontainers.org;
`get` nodes, `patch` nodes/status. With CAA_PULL_SECRETS also: `get` serviceaccounts and secrets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from lightkube import AsyncClient
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.core_v1 import LocalObjectReference
from lightkube.resources.core_v1 import Event, Node, NodeStatus, Pod, Secret, ServiceAccount
from lightkube.types import PatchType

from caa.kubernetes.answers import ABSENT, CONFLICT, connected, fine, translated
from caa.kubernetes.objects import NODE_LABEL, RESOURCE, SANDBOX_ANNOTATION
from caa.kubernetes.registryauths import PullSecret

PeerPod: Any = create_namespaced_resource("confidentialcontainers.org", "v1alpha1", "PeerPod", "peerpods")


class KubernetesApi:
    """Connections to the API server. Every call may raise AwayError and RefusedError."""

    def __init__(self) -> None:
        """Raises ConfigError when nothing says where the API server is."""
        self._client = connected(AsyncClient, "CAA_KUBERNETES", "true")

    async def close(self) -> None:
        """Give back the connections."""
        await self._client.aclose()

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """As much of the Pod as is of use here; None when there is none."""
        with translated(), fine(ABSENT):
            pod = await self._client.get(Pod, name, namespace=namespace)
            metadata, spec = pod.metadata, pod.spec
            assert metadata is not None
            return {
                "uid": metadata.uid,
                "created": metadata.creationTimestamp,
                "account": (spec.serviceAccountName if spec else None) or "default",
                "pull_secrets": _names(spec.imagePullSecrets if spec else None),
            }
        return None

    async def pull_secrets_of_account(self, namespace: str, name: str) -> list[str]:
        """The names that a service account adds to those of its Pods; none when there is no such account."""
        with translated(), fine(ABSENT):
            return _names((await self._client.get(ServiceAccount, name, namespace=namespace)).imagePullSecrets)
        return []

    async def pull_secret(self, namespace: str, name: str) -> PullSecret | None:
        """A Secret; None when there is none."""
        with translated(), fine(ABSENT):
            found = await self._client.get(Secret, name, namespace=namespace)
            return PullSecret(name, str(found.type), found.data or {})
        return None

    async def create_event(self, event: dict[str, Any]) -> None:
        """Write an event, unless it is there."""
        with translated(), fine(CONFLICT):
            await self._client.create(cast(Event, Event.from_dict(event)))

    async def create_peer_pod(self, peer_pod: dict[str, Any]) -> bool:
        """Write a PeerPod; False when it was there, whatever it holds."""
        with translated(), fine(CONFLICT):
            await self._client.create(PeerPod.from_dict(peer_pod))
            return True
        return False

    async def set_instance(self, namespace: str, name: str, instance_id: str) -> bool:
        """Write the instance into a PeerPod; False when there is none."""
        with translated(), fine(ABSENT):
            await self._patch(namespace, name, {"spec": {"instanceID": instance_id}})
            return True
        return False

    async def release_peer_pod(self, namespace: str, name: str) -> None:
        """Remove a PeerPod whose instance is gone; the finalizer first, so no controller looks for the instance."""
        with translated(), fine(ABSENT):
            await self._patch(namespace, name, {"metadata": {"finalizers": None}})
            await self._client.delete(PeerPod, name, namespace=namespace)

    async def peer_pods(self, label: str) -> list[tuple[str, str, str, str]]:
        """The node's PeerPods: sandbox id, namespace, name, instance id."""
        with translated():
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
        with translated():
            status = (await self._client.get(Node, node)).status
            return (status.capacity or {}).get(RESOURCE) if status is not None else None

    async def advertise(self, node: str, count: int | None) -> None:
        """Say so. None removes it. The kubelet derives from it what is allocatable."""
        patch = {"status": {"capacity": {RESOURCE: None if count is None else str(count)}}}
        with translated():
            await self._client.patch(NodeStatus, node, patch, patch_type=PatchType.MERGE)

    async def _patch(self, namespace: str, name: str, patch: dict[str, Any]) -> None:
        await self._client.patch(PeerPod, name, patch, namespace=namespace, patch_type=PatchType.MERGE)


def _names(references: Iterable[LocalObjectReference] | None) -> list[str]:
    return [str(one.name) for one in references or () if one.name]
