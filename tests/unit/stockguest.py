"""How a stock guest reads its user data: written from what is known of its behaviour, not from our code."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import yaml

WRITABLE = {
    f"/run/peerpod/{name}"
    for name in ("aa.toml", "cdh.toml", "apf.json", "auth.json", "initdata", "scratch-space.marker")
}


class Refused(Exception):
    """The stock guest would not come up."""


class _StrictLoader(yaml.SafeLoader):
    """As Go's UnmarshalStrict: a key twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise Refused("a key twice")
        return super().construct_mapping(node, deep)


def read_cloud_config(text: bytes) -> dict[str, str]:
    """Path -> content of the files it would write. Any key it does not know makes it refuse the whole."""
    try:
        document = yaml.load(text.decode(), _StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refused(str(error)) from error
    if document is None:
        return {}
    if not isinstance(document, dict) or set(document) - {"write_files"}:
        raise Refused(f"keys other than write_files: {document}")
    files: dict[str, str] = {}
    for entry in document.get("write_files") or []:
        if not isinstance(entry, dict) or set(entry) - {"path", "content"}:
            raise Refused(f"keys other than path and content: {sorted(entry)}")
        path, content = entry.get("path", ""), entry.get("content") or ""
        if not isinstance(path, str) or not isinstance(content, str):
            raise Refused("path and content are text")
        if path in WRITABLE:
            files[path] = content
    return files


_TOP = {
    "pod-network": True,
    "pod-namespace": True,
    "pod-name": True,
    "tls-server-key": False,
    "tls-server-cert": False,
    "tls-client-ca": False,
    "tls-min-version": False,
    "tls-cipher-suites": False,
}
_NETWORK = {
    "podip": True,
    "pod-hw-addr": True,
    "interface": True,
    "worker-node-ip": True,
    "tunnel-type": True,
    "routes": True,
    "neighbors": True,
    "mtu": True,
    "index": True,
    "vxlan-port": False,
    "vxlan-id": False,
    "dedicated": True,
    "external-net-via-pod-vm": True,
}
_ROUTE = {"dst": True, "gw": True, "dev": False, "protocol": False, "scope": False}
_NEIGHBOR = {"ip": True, "hw-addr": False, "dev": False, "state": False}


def check_apf(text: str) -> None:
    """Order, omissions and kinds of apf.json as the stock worker writes them and the stock forwarder reads them."""
    document = json.loads(text)
    if text != json.dumps(document, indent=4):
        raise Refused("not indented by four spaces")
    _shape("apf.json", document, _TOP)
    network = document["pod-network"]
    if network is None:
        return
    _shape("pod-network", network, _NETWORK)
    for key in ("podip", "worker-node-ip"):
        if network[key] and "/" not in network[key]:
            raise Refused(f"{key} is no prefix")
        ipaddress.ip_interface(network[key] or "0.0.0.0/0")
    for route in network["routes"] or []:
        _shape("routes", route, _ROUTE)
        if route.get("protocol", "boot") not in ("static", "boot", "dhcp", "kernel"):
            raise Refused(f"protocol {route['protocol']}")
        if route.get("scope", "link") not in ("site", "link", "host", "nowhere"):
            raise Refused(f"scope {route['scope']}")
    for neighbor in network["neighbors"] or []:
        _shape("neighbors", neighbor, _NEIGHBOR)


def _shape(what: str, given: dict[str, Any], keys: dict[str, bool]) -> None:
    wanted = [key for key, always in keys.items() if always or key in given]
    if list(given) != wanted:
        raise Refused(f"{what} has {list(given)}, expected {wanted}")
    empty = [key for key, always in keys.items() if not always and key in given and not given[key]]
    if empty:
        raise Refused(f"{what}: {empty} is left out when empty")


def is_base64_of_gzip(text: str) -> bool:
    return re.fullmatch(r"H4sI[A-Za-z0-9+/]*={0,2}\n?", text) is not None
