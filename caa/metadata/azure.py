"""Azure's instance metadata service: what Azure Resource Manager says of a VM, in the service's form.

A VM without managed identity is what a pod is told it is in; azure-identity then goes on to its next credential.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from caa.metadata.facts import Answer, DialectName, Facts, Policy, Request, as_json, dig
from caa.metadata.keys import USER_DATA

VERSIONS = (
    "2017-04-02", "2017-08-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01", "2019-02-01", "2019-03-11",
    "2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15",
    "2020-09-01", "2020-10-01", "2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-10-01",
    "2021-11-01", "2021-11-15", "2021-12-13", "2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07",
)  # fmt: skip
# Of identity and events, which have versions of their own, any date will do.
_DATE = re.compile(r"\d{4}-\d\d-\d\d(-preview)?")
_SERVER = (("Server", "IMDS"),)
_ID_PARTS = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/(?P<provider>[^/]+)/", re.I
)


class Azure:
    """The dialect of `CLOUD_PROVIDER=azure`, for one pod VM."""

    name: DialectName = "azure"

    def __init__(self, facts: Facts, policy: Policy) -> None:
        self._tree = tree(facts, policy)

    def answer(self, request: Request, now: float) -> Answer:
        """As Azure would answer."""
        if request.forwarded:
            return _error(400, "Bad request. X-Forwarded-For must not be there")
        if request.headers.get("metadata", "").lower() != "true":
            return _error(400, "Bad request. Required metadata header not specified")
        if request.method not in ("GET", "HEAD"):
            return _error(405, "Method not allowed")
        segments = request.segments
        if segments[:1] != ("metadata",):
            return _error(404, "Not found")
        if segments == ("metadata", "versions"):
            return as_json(200, {"apiVersions": list(VERSIONS)}, _SERVER)
        version = request.query.get("api-version", "")
        if segments[1:2] == ("instance",):
            return self._instance(segments[2:], version, request.query.get("format", "json"))
        return _other(segments[1:], version)

    def document(self) -> Mapping[str, Any]:
        """What a request for everything is answered."""
        return {"/metadata/instance": self._tree}

    def _instance(self, path: tuple[str, ...], version: str, form: str) -> Answer:
        refused = _refused_version(version, known=VERSIONS)
        if refused:
            return refused
        found: Any = self._tree
        for part in path:
            if isinstance(found, Mapping):
                found = found.get(part)
            elif isinstance(found, list) and re.fullmatch(r"[0-9]{1,3}", part) and int(part) < len(found):
                found = found[int(part)]
            else:
                found = None
        if found is None:
            return _error(404, "Not found")
        if form == "text":
            return Answer(200, _as_text(found).encode(), headers=_SERVER)
        if form != "json" or not isinstance(found, Mapping | list):
            return _error(400, "Bad request. format must be json, or text, which a single value needs")
        return as_json(200, found, _SERVER)


def _other(path: tuple[str, ...], version: str) -> Answer:
    match path:
        case ("identity", *_):
            refused = _refused_version(version)
            denied = {"error": "invalid_request", "error_description": "Identity not found"}
            return refused or as_json(400, denied, _SERVER)
        case ("attested", "document"):
            return _refused_version(version) or _error(403, "Signed documents are not for pods")
        case ("scheduledevents",):
            return _refused_version(version) or as_json(200, {"DocumentIncarnation": 1, "Events": []}, _SERVER)
    return _error(404, "Not found")


def _refused_version(version: str, known: tuple[str, ...] = ()) -> Answer | None:
    if not version:
        told = {"error": "Bad request. api-version was not specified in the request"}
    elif (known and version not in known) or not _DATE.fullmatch(version):
        told = {"error": "Bad request. api-version is invalid or was not specified in the request."}
    else:
        return None
    return as_json(400, {**told, "newest-versions": list(VERSIONS[:-4:-1])}, _SERVER)


def _error(status: int, message: str) -> Answer:
    return as_json(status, {"error": message}, _SERVER)


def _as_text(found: Any) -> str:
    """A value as it is; of everything else the names, with a slash where more is below."""
    if isinstance(found, Mapping):
        return "\n".join(f"{name}/" if isinstance(below, Mapping | list) else name for name, below in found.items())
    if isinstance(found, list):
        return "\n".join(
            f"{place}/" if isinstance(one, Mapping | list) else str(place) for place, one in enumerate(found)
        )
    return str(found)


def tree(facts: Facts, policy: Policy) -> dict[str, Any]:
    """All there is below /metadata/instance."""
    described = facts.description
    compute = _compute(facts, described)
    if USER_DATA in policy.allow:
        compute["userData"] = base64.b64encode(facts.attempt.user_data).decode()
    cards = [_card(card, facts.address) for card in _cards(described)] or [_card({}, facts.address)]
    return {"compute": compute, "network": {"interface": cards}}


def _compute(facts: Facts, described: Mapping[str, Any]) -> dict[str, Any]:
    offering = facts.attempt.offering
    resource_id = dig(described, "id")
    parts = _ID_PARTS.match(str(resource_id)) or {"subscription": "", "group": "", "provider": "Microsoft.Compute"}
    image = dig(described, "properties", "storageProfile", "imageReference", default={})
    os_disk = dig(described, "properties", "storageProfile", "osDisk", default={})
    tags = dig(described, "tags", default={})
    priority = dig(described, "properties", "priority") or ("Spot" if offering.market.value == "spot" else "Regular")
    return {
        "azEnvironment": "AzurePublicCloud",
        "location": dig(described, "location"),
        "name": dig(described, "name") or facts.attempt.name,
        "offer": dig(image, "offer"),
        "osProfile": {
            "adminUsername": dig(described, "properties", "osProfile", "adminUsername"),
            "computerName": dig(described, "properties", "osProfile", "computerName") or facts.attempt.name,
            "disablePasswordAuthentication": "true",
        },
        "osType": dig(os_disk, "osType") or "Linux",
        "placementGroupId": "",
        "plan": {"name": "", "product": "", "publisher": ""},
        "platformFaultDomain": "0",
        "platformUpdateDomain": "0",
        "priority": priority,
        "provider": parts["provider"],
        "publicKeys": [],
        "publisher": dig(image, "publisher"),
        "resourceGroupName": parts["group"],
        "resourceId": resource_id,
        "securityProfile": {
            "secureBootEnabled": _flag(
                dig(described, "properties", "securityProfile", "uefiSettings", "secureBootEnabled")
            ),
            "virtualTpmEnabled": _flag(dig(described, "properties", "securityProfile", "uefiSettings", "vTpmEnabled")),
        },
        "sku": dig(image, "sku"),
        "storageProfile": {
            "dataDisks": [],
            "imageReference": {key: dig(image, key) for key in ("id", "offer", "publisher", "sku", "version")},
            "osDisk": {
                "caching": dig(os_disk, "caching"),
                "createOption": dig(os_disk, "createOption"),
                "diskSizeGB": str(dig(os_disk, "diskSizeGB")),
                "managedDisk": {
                    "id": dig(os_disk, "managedDisk", "id"),
                    "storageAccountType": dig(os_disk, "managedDisk", "storageAccountType"),
                },
                "name": dig(os_disk, "name"),
                "osType": dig(os_disk, "osType") or "Linux",
            },
        },
        "subscriptionId": parts["subscription"],
        "tags": ";".join(f"{name}:{value}" for name, value in tags.items()),
        "tagsList": [{"name": name, "value": value} for name, value in tags.items()],
        "version": dig(image, "exactVersion") or dig(image, "version"),
        "vmId": dig(described, "properties", "vmId") or facts.attempt.instance_id,
        "vmScaleSetName": "",
        "vmSize": dig(described, "properties", "hardwareProfile", "vmSize") or offering.instance_type,
        "zone": dig(described, "zones", 0) or offering.zone.rpartition("-")[2],
    }


def _flag(value: Any) -> str:
    return "true" if value is True else "false"


def _cards(described: Mapping[str, Any]) -> list[Any]:
    """The interfaces, as the VM has them, or beside it where they were joined to it."""
    cards = dig(described, "networkInterfaces", default=[]) or dig(
        described, "properties", "networkProfile", "networkInterfaces", default=[]
    )
    return [card for card in cards if isinstance(card, Mapping)]


def _card(card: Mapping[str, Any], known: str) -> dict[str, Any]:
    addresses: dict[str, list[dict[str, str]]] = {"IPv4": [], "IPv6": []}
    for one in dig(card, "properties", "ipConfigurations", default=[]):
        own = dig(one, "properties", "privateIPAddress")
        public = dig(one, "properties", "publicIPAddress", "properties", "ipAddress")
        if own:
            addresses["IPv6" if ":" in own else "IPv4"].append({"privateIpAddress": own, "publicIpAddress": public})
    if not addresses["IPv4"] and known:
        addresses["IPv4"].append({"privateIpAddress": known, "publicIpAddress": ""})
    return {
        "ipv4": {"ipAddress": addresses["IPv4"], "subnet": [{"address": "", "prefix": ""}]},
        "ipv6": {"ipAddress": addresses["IPv6"]},
        "macAddress": re.sub(r"[^0-9A-Fa-f]", "", str(dig(card, "properties", "macAddress"))).upper(),
    }
