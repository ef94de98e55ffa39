"""tc redirects: every frame that comes in at one interface goes out at another one.

On the way in from a pod VM packets to the metadata addresses are kept from it: they must never reach the worker's own
metadata service.

One u32 filter that matches all, with one mirred action, on the ingress hook: what the incumbent uses, and what
every kernel with tc has. It comes first (`_PRIORITY`), so that no other filter sees frames that the pod VM is to see.
What is kept is matched by u32 alone, without an action of tc's that a kernel may lack; it goes on to the interface's
own namespace.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from caa.podnetwork.errors import PodNetworkError

# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h, linux/if_ether.h
_INGRESS_HOOK = 0xFFFFFFF2  # of the qdiscs "ingress" and "clsact" alike
_INGRESS_QDISC_HANDLE, _INGRESS_QDISC_PARENT = 0xFFFF0000, 0xFFFFFFF1
_EGRESS_REDIRECT = 1
_STOLEN = 4
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
# Where a header has its destination (RFC 791, RFC 8200); options come after it.
_DESTINATION = {4: 16, 6: 24}
_WORD, _WHOLE = 4, 0xFFFFFFFF
# struct nlattr, tc_u32_sel and tc_u32_key: mask and value in the wire's order, offset and its mask in the machine's.
_ATTRIBUTE_HEADER, _SELECTOR_BYTES, _KEY_BYTES = 4, 16, 16
_PRIORITY = 1
# u32 wants a class id of a filter without children; a redirected frame never comes to a class.
_CLASS = 0x00010001
_ALL = "0x0/0x0+0"


class _Key(NamedTuple):
    """Four bytes of a packet that a filter looks at."""

    value: int
    mask: int
    offset: int
    """In the packet, from the header of its Ethernet type's protocol on."""


class _Filter(NamedTuple):
    priority: int
    protocol: int
    """The Ethernet type that it looks at, in the byte order of the wire."""
    target: int | None
    """Index of the interface to which it redirects every frame, 0 if that is gone; None for any other filter."""
    keeps: str = ""
    """The destination address whose packets it lets go on to the interface's own namespace; "" for any other filter."""


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
    _add_redirect(connection, source, target, _PRIORITY)


def ensure_redirect_but(connection: Any, source: int, target: int, kept: Sequence[str]) -> None:
    """As `ensure_redirect`, but packets to the addresses `kept` go on to the interface's own namespace.

    Interface `source` must be ours alone: if anything is not as it should be, all its filters are made anew, those that
    keep first, so that no packet slips through.
    """
    filters = []
    if _hooks(connection, source):
        filters = _filters(connection, source)
    else:
        connection.tc("add", "ingress", source)
    if [found.keeps for found in filters[: len(kept)]] == list(kept) and [
        found.target for found in filters[len(kept) : len(kept) + 1]
    ] == [target]:
        return
    for found in filters:
        _delete(connection, source, [found])
    for place, address in enumerate(kept):
        version = ipaddress.ip_address(address).version
        connection.tc(
            "add-filter",
            "u32",
            source,
            parent=_INGRESS_HOOK,
            prio=_PRIORITY + place,
            protocol=_ETH_P_IP if version == 4 else _ETH_P_IPV6,
            target=_CLASS,
            keys=[f"{word:#x}/0xffffffff+{offset}" for word, offset in _destination_words(address)],
        )
    _add_redirect(connection, source, target, _PRIORITY + len(kept))


def _add_redirect(connection: Any, source: int, target: int, priority: int) -> None:
    connection.tc(
        "add-filter",
        "u32",
        source,
        parent=_INGRESS_HOOK,
        prio=priority,
        protocol=_ETH_P_ALL,
        target=_CLASS,
        keys=[_ALL],
        action=[{"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}],
    )


def _destination_words(address: str) -> list[tuple[int, int]]:
    """(value, offset in the packet) of each 32 bits of a destination address."""
    packed, start = ipaddress.ip_address(address).packed, _DESTINATION[ipaddress.ip_address(address).version]
    return [
        (int.from_bytes(packed[place : place + _WORD], "big"), start + place) for place in range(0, len(packed), _WORD)
    ]


def remove_redirect(connection: Any, source: int, target: int) -> None:
    """Undo `ensure_redirect`, also when interface `target` is gone. Filters of others stay, and the hook with them."""
    filters = _filters(connection, source) if _hooks(connection, source) else []
    ours = [found for found in filters if found.target in (target, 0)]
    _delete(connection, source, ours)
    if ours and len(filters) == len(ours) and "ingress" in _hooks(connection, source):
        connection.tc("del", index=source, handle=_INGRESS_QDISC_HANDLE, parent=_INGRESS_QDISC_PARENT)


def _delete(connection: Any, source: int, filters: list[_Filter]) -> None:
    for priority, protocol in sorted({(found.priority, found.protocol) for found in filters}):
        connection.tc("del-filter", index=source, parent=_INGRESS_HOOK, info=priority << 16 | protocol)


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
        priority, protocol = message["info"] >> 16, message["info"] & 0xFFFF
        found.append(
            _Filter(
                priority, protocol, _redirects_to(message.get("kind"), options), _keeps(message.get("kind"), options)
            )
        )
    return sorted(found, key=lambda item: item.priority)


def _redirects_to(kind: str, options: Any) -> int | None:
    if kind != "u32" or any(key.mask for key in _keys(options)):
        return None
    actions = options.get_attr("TCA_U32_ACT")
    action = actions.get_attr("TCA_ACT_PRIO_1") if actions else None
    if action is None or action.get_attr("TCA_ACT_KIND") != "mirred":
        return None
    parameters = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
    if parameters["eaction"] != _EGRESS_REDIRECT or parameters["action"] != _STOLEN:
        return None
    return int(parameters["ifindex"])


def _keeps(kind: str, options: Any) -> str:
    if kind != "u32" or options.get_attr("TCA_U32_ACT"):
        return ""
    keys = _keys(options)
    packed = b"".join(key.value.to_bytes(_WORD, "big") for key in keys)
    if len(packed) not in (4, 16) or any(key.mask != _WHOLE for key in keys):
        return ""
    address = str(ipaddress.ip_address(packed))
    return address if [(key.value, key.offset) for key in keys] == _destination_words(address) else ""


def _keys(options: Any) -> list[_Key]:
    """What a u32 filter compares. pyroute2 0.9 takes the keys apart four bytes too early, so this does it."""
    selector = options.get_attr("TCA_U32_SEL")
    start = selector.offset + _ATTRIBUTE_HEADER + _SELECTOR_BYTES
    found = []
    for place in range(start, start + selector["nkeys"] * _KEY_BYTES, _KEY_BYTES):
        mask, value = struct.unpack_from(">II", selector.data, place)
        (offset,) = struct.unpack_from("=i", selector.data, place + 8)
        found.append(_Key(value, mask, offset))
    return found
