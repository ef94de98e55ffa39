"""Owner tags: set in the create call itself, and the only way to find instances again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from providers.aws.settings import TAG_PREFIX
from providers.base import LaunchRequest, Owner, OwnerScope

CLUSTER = TAG_PREFIX + "cluster"
NODE = TAG_PREFIX + "node"
_SANDBOX = TAG_PREFIX + "sandbox-id"
_NAMESPACE = TAG_PREFIX + "pod-namespace"
_POD = TAG_PREFIX + "pod-name"
_ATTEMPT = TAG_PREFIX + "attempt"
REQUEST = TAG_PREFIX + "request"


def tags_of(request: LaunchRequest, more: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """All tags of what a launch makes, always in the same order."""
    owner = request.owner
    pairs = (
        ("Name", request.name),
        (CLUSTER, owner.cluster),
        (NODE, owner.node),
        (_SANDBOX, owner.sandbox_id),
        (_NAMESPACE, owner.pod_namespace),
        (_POD, owner.pod_name),
        (_ATTEMPT, str(owner.attempt)),
        (REQUEST, request.digest),
        *more,
    )
    return [{"Key": key, "Value": value} for key, value in pairs]


def filters_of(scope: OwnerScope) -> list[dict[str, object]]:
    """What DescribeInstances finds this owner's instances by."""
    return [
        {"Name": f"tag:{CLUSTER}", "Values": [literal(scope.cluster)]},
        {"Name": f"tag:{NODE}", "Values": [literal(scope.node)]},
    ]


def literal(value: str) -> str:
    """A filter value that matches only itself: in filters "*" and "?" are wildcards."""
    return "".join("\\" + character if character in "*?\\" else character for character in value)


def owner_in(tags: Mapping[str, str]) -> Owner | None:
    """The owner in an instance's tags; None when they are not whole, so that somebody changed them."""
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
