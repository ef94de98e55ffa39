"""The control verbs: how a test shapes the emulated IBM Cloud and reads what happened to it. JSON in, JSON out."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from tests.clouds.aws.conditions import CapacityRule, Delays, Staleness
from tests.clouds.ibm import images, instances
from tests.clouds.ibm.api import Api
from tests.clouds.ibm.catalog import profiles
from tests.clouds.ibm.conditions import MAX_PAGE

# Loopback answers on all of 127/8 without any set-up, so instances can have addresses that work on this machine.
_SUBNETS = "127.50.{}.0/{}"
_SYSTEMS = {"x86_64": "ubuntu-24-04-amd64", "s390x": "ubuntu-24-04-s390x", "secure": "hyper-protect-1-0-s390x"}
Verb = Callable[..., Any]


class Control:
    """Every public method is a verb; its arguments are the keys of the JSON object sent."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def verb(self, name: str) -> Verb | None:
        """The verb of that name, if there is one."""
        found = None if name.startswith("_") or name == "verb" else getattr(self, name, None)
        return found if callable(found) else None

    def seed(self, zones: int = 3, subnet_bits: int = 20) -> dict[str, Any]:
        """A network with one subnet in each of the first `zones` zones, and what a launch names. Answers the ids."""
        region = self._api.region
        vpc = region.add("vpcs", "peer-pods", **_VPC)
        group = self._group("peer-pods", vpc)
        vpc["default_security_group"] = {key: group[key] for key in ("crn", "href", "id", "name")}
        cluster_group = self._group("kube-c0ffee", vpc)
        subnets = {
            zone: region.add_subnet(vpc, zone, _SUBNETS.format(index * 16, subnet_bits))["id"]
            for index, zone in enumerate(region.zones[:zones])
        }
        key = region.add(
            "keys", "peer-pods", fingerprint="SHA256:x", length=256, public_key="ssh-ed25519 x", type="ed25519"
        )
        made = {arch: images.add(region, f"peer-pod-{arch.replace('_', '-')}", of) for arch, of in _SYSTEMS.items()}
        region.version += 1
        return {
            "region": region.name,
            "vpc": vpc["id"],
            "subnets": subnets,
            "security_group": group["id"],
            "cluster_group": cluster_group["id"],
            "key": key["id"],
            "images": {arch: image["id"] for arch, image in made.items()},
        }

    def dedicated(self, zone: str, vcpus: int = 4) -> dict[str, str]:
        """A dedicated host with room for so many vCPUs, in a group that has endless room. Answers both ids."""
        region = self._api.region
        fitting = [
            {"href": one["href"], "name": name, "resource_type": "instance_profile"}
            for name, one in profiles(region.base, region.zones).items()
        ]
        common: dict[str, Any] = {"supported_instance_profiles": fitting, "zone": region.zone(zone)}
        group = region.add("dedicated_host_groups", f"group-{zone}", dedicated_hosts=[], family="balanced", **common)
        group["class"] = "bx2"
        cpu = {"architecture": "amd64", "count": vcpus, "manufacturer": "intel"}
        host = region.add(
            "dedicated_hosts",
            f"host-{zone}",
            available_memory=512,
            available_vcpu=dict(cpu),
            disks=[],
            instance_placement_enabled=True,
            instances=[],
            lifecycle_state="stable",
            memory=512,
            numa={"count": 2, "nodes": []},
            profile={"href": f"{region.base}/dedicated_host/profiles/bx2-host", "name": "bx2-host"},
            provisionable=True,
            socket_count=2,
            state="available",
            vcpu=dict(cpu),
            **common,
        )
        host["group"] = region.reference(group)
        return {"host": host["id"], "group": group["id"]}

    def other_instance(self, prototype: dict[str, Any]) -> str:
        """Somebody else's, by a create call of its own. Answers its id."""
        return str(instances.create(self._api.region, prototype)["id"])

    def leave(self, name: str, zone: str, user_tags: list[str]) -> None:
        """A volume and an interface of that name that nothing uses, as a launch that came to nothing may leave them."""
        region = self._api.region
        subnet = next(one for one in region.kinds["subnets"].values() if one["zone"]["name"] == zone)
        vpc = region.kinds["vpcs"][subnet["vpc"]["id"]]
        instances._interface(region, {"name": name, "auto_delete": True}, subnet, vpc, region.take_address(subnet), "")
        volume = instances._volume(region, {"name": name, "user_tags": user_tags}, zone, "")
        volume["attachment_state"] = "unattached"

    def worker(self, document: dict[str, Any]) -> None:
        """The worker's own instance, as its metadata tells it; {} for none."""
        self._api.worker = document

    def clock(self, running: bool) -> None:
        """Stop the clock, so that only `advance` moves it, or let it run again."""
        self._api.conditions.clock.run(running)

    def advance(self, seconds: float) -> None:
        """Let that much time pass at once."""
        self._api.conditions.clock.advance(seconds)

    def delays(self, **seconds: float) -> None:
        """Of all instances."""
        self._api.conditions.delays = Delays(**seconds)

    def image_delay(self, seconds: float) -> None:
        """From the import of an image until it is available."""
        self._api.conditions.image_seconds = seconds

    def capacity(self, rules: list[dict[str, Any]]) -> None:
        """Replace all rules of what a create call is refused for."""
        self._api.conditions.capacity = [CapacityRule(**rule) for rule in rules]

    def failing(self, rules: list[dict[str, Any]]) -> None:
        """Replace all rules of what is accepted, and fails for want of capacity afterwards."""
        self._api.conditions.failing = [CapacityRule(**rule) for rule in rules]

    def quota(self, vcpus: int | None) -> None:
        """vCPUs of all instances; None for no quota."""
        self._api.conditions.vcpu_quota = vcpus

    def limits(self, limits: dict[str, tuple[float, float]], retry_after: int = 1) -> None:
        """Request -> (burst, requests a second), and what a refusal says of the time to wait; replaces all."""
        self._api.conditions.set_limits({name: (burst, rate) for name, (burst, rate) in limits.items()})
        self._api.conditions.retry_after = retry_after

    def staleness(self, **settings: Any) -> None:
        """Of instances made from now on."""
        self._api.conditions.staleness = Staleness(**settings)

    def late_addresses(self) -> None:
        """From now on an instance has its address when it runs, and is told with 0.0.0.0 until then."""
        self._api.conditions.late_addresses = True

    def keeping(self, kinds: list[str]) -> None:
        """What stays when its instance goes, whatever was asked."""
        self._api.conditions.keeping = kinds

    def page_size(self, size: int = MAX_PAGE) -> None:
        """The most in one page of any list."""
        self._api.conditions.page_size = size

    def counters(self) -> dict[str, Any]:
        """Calls and errors by request, instances by state, ids by name, what there is beside them."""
        storage = self._api.buckets.counters()
        return self._api.conditions.describe() | self._api.region.counters() | {"object_storage": storage}

    def instances(self) -> list[dict[str, Any]]:
        """All that exist, seen past every list that lags, in order of making."""
        return list(self._api.region.kinds["instances"].values())

    def overview(self) -> dict[str, Any]:
        """What a test that looks very often needs: instances in short, and what is in no instance's use, by kind."""
        kinds = self._api.region.kinds
        wanted = ("id", "name", "status", "primary_network_attachment", "boot_volume_attachment")
        unused = {
            kind: [
                one["name"] for one in kinds[kind].values() if not (one.get("target") or one.get("volume_attachments"))
            ]
            for kind in ("virtual_network_interfaces", "volumes", "floating_ips")
        }
        short = [{key: one[key] for key in wanted} for one in kinds["instances"].values()]
        region = self._api.region
        return {"instances": short, "unused": unused, "made": region.made, "ever": region.ever}

    def resources(self, kind: str) -> list[dict[str, Any]]:
        """All of a collection, such as "volumes"."""
        return [images.shown(one) for one in self._api.region.kinds[kind].values()]

    def user_data(self, instance_id: str) -> dict[str, Any]:
        """What the instance was launched with; base64."""
        given = self._api.region.lives[instance_id].user_data
        return {"user_data": base64.b64encode(given.encode()).decode()}

    def stop(self, instance_id: str, status: str = "stopped") -> None:
        """Let an instance end by itself, as one whose host failed."""
        self._api.region.kinds["instances"][instance_id]["status"] = status

    def guests(self) -> dict[str, Any]:
        """The instances whose guest answers now, by address; `version` changes when they may have."""
        return {"version": self._api.region.version, "guests": self._api.region.guests()}

    def reset(self) -> None:
        """Forget everything, conditions and clock included."""
        self._api.reset()

    def _group(self, name: str, vpc: dict[str, Any]) -> dict[str, Any]:
        region = self._api.region
        return region.add("security_groups", name, rules=[], targets=[], vpc=region.reference(vpc))


_VPC: dict[str, Any] = {
    "classic_access": False,
    "cse_source_ips": [],
    "default_network_acl": {"crn": "crn:acl", "href": "https://localhost/acl", "id": "1", "name": "acl"},
    "default_routing_table": {
        "crn": "crn:table",
        "href": "https://localhost/table",
        "id": "1",
        "name": "table",
        "resource_type": "routing_table",
    },
    "dns": {
        "enable_hub": False,
        "resolution_binding_count": 0,
        "resolver": {"configuration": "default", "servers": [], "type": "system"},
    },
    "health_reasons": [],
    "health_state": "ok",
    "public_address_ranges": [],
    "status": "available",
}
