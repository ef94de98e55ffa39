"""The resources of the emulated region, and how they refer to each other. No rules of what may be done: see `api`."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from typing import Any

from tests.clouds.ibm import catalog
from tests.clouds.ibm.conditions import Conditions

ACCOUNT = "a/aa2432b1fa4d4ace891e9b80fc104e34"
# When the emulator's clock began.
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# IBM Cloud keeps the first four addresses of a subnet and the last one.
_FIRST_ADDRESS = 4
# The collections, by their names in the API.
KINDS = (
    *("vpcs", "subnets", "security_groups", "keys", "images", "volumes", "virtual_network_interfaces"),
    *("floating_ips", "dedicated_hosts", "dedicated_host_groups", "instances"),
)
# Those whose resources do not say what they are.
_WITHOUT_TYPE = ("security_groups", "keys", "floating_ips")
Resource = dict[str, Any]


@dataclass
class Life:
    """What the API does not show of an instance, or only as time goes by."""

    made_at: float
    user_data: str
    fails: bool  # gets no host
    hidden_calls: int
    hidden_until: float
    deleted_at: float | None = None


@dataclass
class Region:
    """Everything there is, in order of making."""

    name: str
    conditions: Conditions
    base: str = ""  # of every href
    kinds: dict[str, dict[str, Resource]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    lives: dict[str, Life] = field(default_factory=dict)
    user_tags: dict[str, list[str]] = field(default_factory=dict)  # of instances, by CRN
    made: dict[str, list[str]] = field(default_factory=dict)  # name of an instance -> ids that it ever had
    ever: Counter[str] = field(default_factory=Counter)  # of each kind, how many were made
    version: int = 0  # changes whenever another guest may answer
    _numbers: Any = field(default_factory=lambda: itertools.count(1))
    _answering: frozenset[str] = frozenset()
    _free: dict[str, list[str]] = field(default_factory=dict)  # subnet -> addresses, the one freed longest ago first

    @property
    def zones(self) -> list[str]:
        return [f"{self.name}-{number}" for number in (1, 2, 3)]

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.conditions.clock.now())

    # Making

    def add(self, kind: str, name: str, group: str = "", /, **more: Any) -> Resource:
        """A new resource, with what all of them have."""
        one = f"r006-{uuid.UUID(int=next(self._numbers))}"
        word = kind.removesuffix("s").replace("_", "-")
        resource = {
            "id": one,
            "name": name,
            "crn": f"crn:v1:bluemix:public:is:{self.name}:{ACCOUNT}::{word}:{one}",
            "href": f"{self.base}/{kind}/{one}",
            "created_at": self.now().strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "resource_group": self.resource_group(group),
            "resource_type": word.replace("-", "_"),
            **more,
        }
        if kind in _WITHOUT_TYPE:
            del resource["resource_type"]
        self.kinds[kind][one] = resource
        self.ever[kind] += 1
        return resource

    def resource_group(self, one: str) -> Resource:
        one = one or "0" * 32
        href = f"https://resource-controller.cloud.ibm.com/v2/resource_groups/{one}"
        return {"href": href, "id": one, "name": "Default" if one == "0" * 32 else f"group-{one[:6]}"}

    def zone(self, name: str) -> Resource:
        return {"href": f"{self.base}/regions/{self.name}/zones/{name}", "name": name}

    @staticmethod
    def reference(resource: Resource) -> Resource:
        """How another resource names this one."""
        return {key: resource[key] for key in ("crn", "href", "id", "name", "resource_type")}

    # Addresses

    def add_subnet(self, vpc: Resource, zone: str, cidr: str) -> Resource:
        network = IPv4Network(cidr)
        subnet = self.add(
            "subnets",
            f"subnet-{zone}",
            available_ipv4_address_count=network.num_addresses - _FIRST_ADDRESS - 1,
            ip_version="ipv4",
            ipv4_cidr_block=cidr,
            network_acl={"crn": "crn:acl", "href": f"{self.base}/network_acls/1", "id": "1", "name": "acl"},
            routing_table={
                "crn": "crn:table",
                "href": f"{self.base}/routing_tables/1",
                "id": "1",
                "name": "table",
                "resource_type": "routing_table",
            },
            status="available",
            total_ipv4_address_count=network.num_addresses,
            vpc=self.reference(vpc),
            zone=self.zone(zone),
        )
        self._free[subnet["id"]] = [str(network[n]) for n in range(_FIRST_ADDRESS, network.num_addresses - 1)]
        return subnet

    def take_address(self, subnet: Resource) -> str:
        """ "" when there is none left."""
        free = self._free[subnet["id"]]
        if not free:
            return ""
        subnet["available_ipv4_address_count"] -= 1
        return free.pop(0)

    def give_back(self, subnet_id: str, address: str) -> None:
        """To be given again as late as can be: a guest may still be there for a moment."""
        self.kinds["subnets"][subnet_id]["available_ipv4_address_count"] += 1
        self._free[subnet_id].append(address)

    # Instances as time goes by

    def settle(self) -> None:
        """Bring every instance to what it is now. Before every look and after every change."""
        now = self.conditions.clock.now()
        delays = self.conditions.delays
        for one in list(self.lives):
            life, instance = self.lives[one], self.kinds["instances"][one]
            if life.deleted_at is not None:
                if now - life.deleted_at >= delays.shutting_down:
                    self._forget(one)
            elif instance["status"] in ("pending", "starting") and now - life.made_at >= delays.pending:
                self._start(instance, life)
        answering = frozenset(one for one in self.lives if self._answers(one, now))
        if answering != self._answering:
            self._answering = answering
            self.version += 1

    @staticmethod
    def _start(instance: Resource, life: Life) -> None:
        if life.fails:
            instance["status"], instance["lifecycle_state"] = "failed", "failed"
            text = "Can't start instance because resource capacity is unavailable."
            instance["status_reasons"] = [{"code": "cannot_start_capacity", "message": text}]
        else:
            instance["status"], instance["lifecycle_state"], instance["health_state"] = "running", "stable", "ok"

    def _answers(self, one: str, now: float) -> bool:
        life, delays = self.lives[one], self.conditions.delays
        running = self.kinds["instances"][one]["status"] == "running"
        return running and now - life.made_at >= delays.pending + delays.boot

    def guests(self) -> dict[str, str]:
        """Address -> id of the instance whose guest answers there now."""
        return {self.address(one): one for one in sorted(self._answering)}

    def address(self, one: str) -> str:
        return str(self.kinds["instances"][one]["primary_network_attachment"]["primary_ip"]["address"])

    def _forget(self, one: str) -> None:
        instance = self.kinds["instances"].pop(one)
        del self.lives[one]
        self.user_tags.pop(instance["crn"], None)
        attachment = instance["primary_network_attachment"]
        interface = self.kinds["virtual_network_interfaces"][attachment["virtual_network_interface"]["id"]]
        keeping = self.conditions.keeping
        if interface["auto_delete"] and "virtual_network_interfaces" not in keeping:
            self.remove_interface(interface["id"])
        else:
            del interface["target"]
        volume = self.kinds["volumes"][instance["boot_volume_attachment"]["volume"]["id"]]
        if volume["volume_attachments"][0]["delete_volume_on_instance_delete"] and "volumes" not in keeping:
            del self.kinds["volumes"][volume["id"]]
        else:
            volume["volume_attachments"], volume["attachment_state"] = [], "unattached"

    def remove_interface(self, one: str) -> None:
        interface = self.kinds["virtual_network_interfaces"].pop(one)
        self.give_back(interface["subnet"]["id"], interface["primary_ip"]["address"])

    def counters(self) -> dict[str, Any]:
        """States, and how many there are of what costs money."""
        found = self.kinds["instances"].values()
        return {
            "states": dict(Counter(one["status"] for one in found)),
            "made": self.made,
            "interfaces": len(self.kinds["virtual_network_interfaces"]),
            "volumes": len(self.kinds["volumes"]),
            "floating_ips": len(self.kinds["floating_ips"]),
            "tagged": self.user_tags,
        }


def vcpus_in_use(region: Region) -> int:
    """What quotas count; instances that are ending count until they are gone."""
    return sum(catalog.vcpus(one["profile"]["name"]) for one in region.kinds["instances"].values())
