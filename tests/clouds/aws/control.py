"""The control verbs: how a test shapes the emulated EC2 and reads what happened to it. JSON in, JSON out."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.moto_api._internal.models import moto_api_backend

from tests.clouds.aws.conditions import MAX_PAGE, CapacityRule, Conditions, Delays, Staleness
from tests.clouds.aws.instance import EmulatedInstance
from tests.clouds.aws.overlay import Overlay

# Loopback answers on all of 127/8 without any set-up, so instances can have addresses that work on this machine.
VPC_CIDR = "127.50.0.0/16"
SUBNET_BITS = 20  # 4,091 addresses in each zone
Verb = Callable[..., Any]


class Control:
    """Every public method is a verb; its arguments are the keys of the JSON object sent."""

    def __init__(self, conditions: Conditions, overlay: Overlay, default_region: str) -> None:
        self._conditions = conditions
        self._overlay = overlay
        self._region = default_region

    def verb(self, name: str) -> Verb | None:
        """The verb of that name, if there is one."""
        found = None if name.startswith("_") or name == "verb" else getattr(self, name, None)
        return found if callable(found) else None

    def seed(self, zones: int = 3, subnet_bits: int = SUBNET_BITS, region: str = "") -> dict[str, Any]:
        """A network with one subnet in each of the first `zones` zones, and what a launch names. Answers the ids."""
        backend: Any = self._backend(region)
        name = backend.region_name
        vpc = backend.create_vpc(VPC_CIDR)
        subnets = {}
        for index in range(zones):
            zone = f"{name}{chr(ord('a') + index)}"
            cidr = f"127.50.{index * 16}.0/{subnet_bits}"
            subnets[zone] = backend.create_subnet(vpc.id, cidr, availability_zone=zone).id
        group = backend.create_security_group("peer-pods", "peer pods", vpc_id=vpc.id)
        backend.create_key_pair("peer-pods", "ed25519", tags={})
        images = {}
        for arch in ("x86_64", "arm64"):
            image = backend.register_image(f"peer-pod-{arch}", "peer pod image")
            image.architecture, image.boot_mode = arch, "uefi"
            image.virtualization_type, image.root_device_type = "hvm", "ebs"
            images[arch] = image.id
        return {
            "region": name,
            "vpc": vpc.id,
            "subnets": subnets,
            "security_group": group.id,
            "key_name": "peer-pods",
            "images": images,
        }

    def clock(self, running: bool) -> None:
        """Stop the clock, so that only `advance` moves it, or let it run again."""
        self._conditions.clock.run(running)

    def advance(self, seconds: float) -> None:
        """Let that much time pass at once."""
        self._conditions.clock.advance(seconds)

    def delays(self, **seconds: float) -> None:
        """Of instances launched, or terminated, from now on."""
        self._conditions.delays = Delays(**seconds)

    def capacity(self, rules: list[dict[str, Any]]) -> None:
        """Replace all capacity rules."""
        self._conditions.capacity = [CapacityRule(**rule) for rule in rules]

    def quota(self, vcpus: dict[str, int]) -> None:
        """Market -> vCPUs of all its instances; a market that is not named has no quota."""
        self._conditions.vcpu_quota = vcpus

    def limits(self, limits: dict[str, tuple[float, float]]) -> None:
        """Action, or "Describe*" -> (burst, requests per second); replaces all."""
        self._conditions.set_limits({action: (burst, rate) for action, (burst, rate) in limits.items()})

    def staleness(self, **settings: Any) -> None:
        """Of instances launched from now on."""
        self._conditions.staleness = Staleness(**settings)

    def page_size(self, size: int = MAX_PAGE) -> None:
        """The most reservations in one page of DescribeInstances."""
        self._conditions.page_size = size

    def counters(self) -> dict[str, Any]:
        """Calls and errors by action, instances by state, ids by client token, and what is attached or not."""
        instances = [one for backend in self._all() for one in backend.all_instances()]
        return self._conditions.describe() | {
            "states": dict(Counter(instance.state for instance in instances)),
            "tokens": self._overlay.by_token(),
            "interfaces": sum(len(backend.enis) for backend in self._all()),
            "volumes": sum(len(backend.volumes) for backend in self._all()),
        }

    def disks(self) -> dict[str, Any]:
        """Images, snapshots that somebody tagged, and what the EBS direct APIs got."""
        images = [image for backend in self._all() for image in backend.amis.values()]
        snapshots = [one for backend in self._all() for one in backend.snapshots.values()]
        return {
            "images": {image.id: image.name for image in images},
            "snapshots": {one.id: one.status for one in snapshots if one.get_tags()},
            "ebs": self._overlay.ebs.describe(),
        }

    def end(self, instance_id: str, code: str, message: str = "") -> None:
        """Let EC2 end an instance by itself, e.g. code "Server.SpotInstanceTermination"."""
        self._instance(instance_id).end(code, message or code)

    def user_data(self, instance_id: str) -> dict[str, Any]:
        """What the instance was launched with; base64."""
        given = self._instance(instance_id).user_data
        return {"user_data": str(given) if given is not None else base64.b64encode(b"").decode()}

    def guests(self) -> dict[str, Any]:
        """The instances whose guest answers now, by each of their addresses; `version` changes when they may have."""
        instances = [one for backend in self._all() for one in backend.all_instances() if one.answers]
        found = {address: one.id for one in instances for address in (one.private_ip, one.public_ip) if address}
        return {"version": EmulatedInstance.version, "guests": found}

    def reset(self) -> None:
        """Forget everything, conditions and clock included."""
        moto_api_backend.reset()
        self._overlay.tokens.clear()
        self._overlay.ebs.reset()
        self._overlay.imports.tasks.clear()
        self._overlay.imports.tokens.clear()
        EmulatedInstance.moving.clear()
        EmulatedInstance.version += 1
        vars(self._conditions).update(vars(Conditions()))

    def _backend(self, region: str) -> Any:
        return ec2_backends[DEFAULT_ACCOUNT_ID][region or self._region]

    @staticmethod
    def _all() -> list[Any]:
        return list(ec2_backends[DEFAULT_ACCOUNT_ID].values())

    def _instance(self, instance_id: str) -> EmulatedInstance:
        for backend in self._all():
            found = backend.get_instance_by_id(instance_id)
            if isinstance(found, EmulatedInstance):
                return found
        raise KeyError(f"no instance {instance_id}")
