"""tc redirects: every frame that comes in at one interface goes out at another one, whatever it is.

One u32 filter that matches all, with one mirred action, on the ingress hook: what the incumbent uses, and what
every kernel with tc has. It comes first (`_PRIORITY`), so that no other filter sees frames that the pod VM is to see.
"""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from caa.podnetwork.errors import PodNetworkError

# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h, linux/if_ether.h
_INGRESS_HOOK = 0xFFFFFFF2  # of the qdiscs "ingress" and "clsact" alike
_INGRESS_QDISC_HANDLE, _INGRESS_QDISC_PARENT = 0xFFFF0000, 0xFFFFFFF1
_EGRESS_REDIRECT = 1
_STOLEN = 4
_ETH_P_ALL = 0x0003
_PRIORITY = 1
# u32 wants a class id of a filter without children; a redirected frame never comes to a class.
_CLASS = 0x00010001
_ALL = "0x0/0x0+0"


class _Filter(NamedTuple):
    priority: int
    target: int | None
    """Index of the interface to which it redirects every frame, 0 if that is gone; None for any other filter."""


def ensure_redirect(connection: Any, source: int, target: int) -> None:
    """Have all that comes in at interface `source` go out at `target` (indexes); what is right is left alone."""
    filters = []
    if _hooks(connection, source):
        filters = _filters(connection, source)
    else:
        connection.tc("add", "ingress", source)
    # At whatever priority: also the incumbent's, whose tunnel this may be.
    if filters and filters[0].target == target:
        return
    in_the_way = [found for found in filters if found.priority == _PRIORITY or found.target == 0]
    if any(found.target is None for found in in_the_way):
        raise PodNetworkError(f"the pod's interface has a tc filter of another program at priority {_PRIORITY}")
    _delete(connection, source, in_the_way)
    connection.tc(
        "add-filter",
        "u32",
        source,
        parent=_INGRESS_HOOK,
        prio=_PRIORITY,
        protocol=_ETH_P_ALL,
        target=_CLASS,
        keys=[_ALL],
        action=[{"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}],
    )


def remove_redirect(connection: Any, source: int, target: int) -> None:
    """Undo `ensure_redirect`, also when interface `target` is gone. Filters of others stay, and the hook with them."""
    filters = _filters(connection, source) if _hooks(connection, source) else []
    ours = [found for found in filters if found.target in (target, 0)]
    _delete(connection, source, ours)
    if ours and len(filters) == len(ours) and "ingress" in _hooks(connection, source):
        connection.tc("del", index=source, handle=_INGRESS_QDISC_HANDLE, parent=_INGRESS_QDISC_PARENT)


def _delete(connection: Any, source: int, filters: list[_Filter]) -> None:
    for priority in sorted({found.priority for found in filters}):
        connection.tc("del-filter", index=source, parent=_INGRESS_HOOK, info=priority << 16 | socket.htons(_ETH_P_ALL))


def _hooks(connection: Any, index: int) -> list[str]:
    """The qdiscs at this interface that have the ingress hook; there is room for one."""
    kinds = [message.get("kind") for message in connection.get_qdiscs(index=index) if message["index"] == index]
    return [kind for kind in kinds if kind in ("ingress", "clsact")]


def _filters(connection: Any, index: int) -> list[_Filter]:
    """In the order in which frames pass them."""
    found = []
    for message in connection.get_filters(index=index, parent=_INGRESS_HOOK):
        options = message.get_attr("TCA_OPTIONS")
        # u32 lists its hash table too, which is no filter.
        if options is None or (message.get("kind") == "u32" and options.get_attr("TCA_U32_SEL") is None):
            continue
        found.append(_Filter(message["info"] >> 16, _redirects_to(message.get("kind"), options)))
    return sorted(found, key=lambda item: item.priority)


def _redirects_to(kind: str, options: Any) -> int | None:
    if kind != "u32" or any(key["key_mask"] for key in options.get_attr("TCA_U32_SEL")["keys"]):
        return None
    actions = options.get_attr("TCA_U32_ACT")
    action = actions.get_attr("TCA_ACT_PRIO_1") if actions else None
    if action is None or action.get_attr("TCA_ACT_KIND") != "mirred":
        return None
    parameters = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    if parameters["eaction"] != _EGRESS_REDIRECT or parameters["action"] != _STOLEN:
        return None
    return int(parameters["ifindex"])
