"""Names and tags of all that a launch makes. Pure.

Azure has no token: the VM's name is the key, and what comes with it is named after it. So any later process finds all
of it without having recorded it, and without a list, which may lag behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from providers.azure.settings import TAG_PREFIX
from providers.base import LaunchRequest, Owner, OwnerScope

CLUSTER = TAG_PREFIX + "cluster"
NODE = TAG_PREFIX + "node"
_SANDBOX = TAG_PREFIX + "sandbox-id"
_NAMESPACE = TAG_PREFIX + "pod-namespace"
_POD = TAG_PREFIX + "pod-name"
_ATTEMPT = TAG_PREFIX + "attempt"
REQUEST = TAG_PREFIX + "request"


@dataclass(frozen=True, slots=True)
class Names:
    """Of one VM and its parts, as the incumbent has them."""

    vm: str

    @property
    def interface(self) -> str:
        """The network interface."""
        return f"{self.vm}-net"

    @property
    def disk(self) -> str:
        """The root disk."""
        return f"{self.vm}-disk"

    @property
    def public_ip(self) -> str:
        """The public address, if it has one."""
        return f"{self.vm}-ip"


def name_in(resource_id: str) -> str:
    """The last part of a resource's id: its name."""
    return resource_id.rsplit("/", 1)[-1]


def parts_of(resource_id: str) -> dict[str, str]:
    """The id's pairs of kind and name, kinds in lower case, which ARM does not care about."""
    words = resource_id.strip("/").split("/")
    return {kind.lower(): name for kind, name in zip(words[::2], words[1::2], strict=False)}


def tags_of(request: LaunchRequest, more: Iterable[tuple[str, str]]) -> dict[str, str]:
    """All tags of what a launch makes."""
    owner = request.owner
    return {
        **dict(more),
        CLUSTER: owner.cluster,
        NODE: owner.node,
        _SANDBOX: owner.sandbox_id,
        _NAMESPACE: owner.pod_namespace,
        _POD: owner.pod_name,
        _ATTEMPT: str(owner.attempt),
        REQUEST: request.digest,
    }


def is_of(tags: Mapping[str, str], scope: OwnerScope) -> bool:
    """Whether a resource with these tags was made for this node."""
    return (tags.get(CLUSTER), tags.get(NODE)) == (scope.cluster, scope.node)


def owner_in(tags: Mapping[str, str]) -> Owner | None:
    """The owner in a resource's tags; None when they are not whole, so that somebody changed them."""
    try:
        return Owner(
            cluster=tags[CLUSTER],
            node=tags[NODE],
            sandbox_id=tags[_SANDBOX],
            pod_namespace=tags[_NAMESPACE],
            pod_name=tags[_POD],
            attempt=int(tags[_ATTEMPT]),
        )
    except (KeyError, ValueError):
        return None
