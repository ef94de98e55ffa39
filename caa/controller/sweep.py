"""Which nodes are gone, and which of their VMs are nobody's any more. Pure.

A node's own service ends what it launched. When the node is gone, nobody does. Only nodes that were seen in this
cluster with our label are ever swept: a name that was never seen is somebody else's, whatever the owner tags say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from providers.base import Instance, InstanceState, OwnerScope

# Long enough for a node that is replaced under the same name, and for whoever deletes a Node by mistake.
GRACE = timedelta(minutes=10)

Nodes = Mapping[str, datetime | None]
"""Names of nodes that ran peer pods; when they were found gone, None for one that is there."""


def remembered(before: Nodes, there: Mapping[str, bool], now: datetime) -> dict[str, datetime | None]:
    """What to remember. `there` are all nodes of the cluster, and whether each has our label."""
    if not there:  # no cluster is without a node: whoever asks runs on one, so this answer says nothing
        return dict(before)
    after: dict[str, datetime | None] = {name: None for name, labelled in there.items() if labelled}
    for name, since in before.items():
        after[name] = None if name in there else since or now
    return after


def due(nodes: Nodes, now: datetime, grace: timedelta = GRACE) -> list[str]:
    """Nodes that have been gone for long enough."""
    return sorted(name for name, since in nodes.items() if since is not None and now - since >= grace)


def orphans(
    instances: Iterable[Instance],
    scope: OwnerScope,
    first_seen: Mapping[str, datetime],
    now: datetime,
    grace: timedelta,
) -> list[str]:
    """Ids of the instances of a node that is gone. None that is younger than the grace time, none of anybody else.

    `first_seen` is when an instance was first listed here, for clouds that do not say when it was made.
    """
    return sorted(
        one.id
        for one in instances
        if one.owner is not None
        and (one.owner.cluster, one.owner.node) == (scope.cluster, scope.node)
        and one.state is not InstanceState.TERMINATING
        and now - (one.created_at or first_seen.get(one.id, now)) >= grace
    )


def stored(nodes: Nodes) -> dict[str, str]:
    """As the data of a ConfigMap: the time, or nothing."""
    return {name: since.isoformat() if since else "" for name, since in sorted(nodes.items())}


def restored(data: Mapping[str, str]) -> dict[str, datetime | None]:
    """The other way. What somebody garbled is a node that is there: it is gone from now on."""
    return {name: _time(text) for name, text in data.items()}


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def batches(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    """Of what one call takes."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]
