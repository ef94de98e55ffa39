"""What IBM Cloud has of what the configuration names: images, subnets, profiles, groups, hosts. Looked up once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from providers.base import InvalidRequestError, MissingError, Offering
from providers.ibmcloud.client import PAGE, Vpc
from providers.ibmcloud.place import WorkerPlace
from providers.ibmcloud.settings import IbmCloudKeys

# The API's names -> the contract's.
_ARCHITECTURES = {"amd64": "x86_64"}
# Families of IBM Z: bz2, cz2, mz2; with an "e" those that run Secure Execution.
_SECURE_EXECUTION = re.compile(r"[a-z]z\d+e-")
# Operating systems of Secure Execution images.
_HYPER_PROTECT = "hyper-protect"
WITHOUT_TDX = "does not run confidential VMs (Intel TDX), and DISABLECVM is false"
WITHOUT_SE = (
    "does not run confidential VMs (Secure Execution), and DISABLECVM is false; choose a profile such as bz2e-2x8"
)


@dataclass(frozen=True, slots=True)
class Image:
    """What a launch must know of its image. `system` is its operating system's name."""

    id: str
    arch: str
    system: str = ""

    @property
    def secure_execution(self) -> bool:
        """Whether it boots on profiles with Secure Execution only."""
        return self.system.startswith(_HYPER_PROTECT)


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet and where it is."""

    id: str
    zone: str
    vpc: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What an instance profile has. `zones` is empty where the API does not tell them."""

    name: str
    vcpus: int
    memory_mib: int
    arch: str
    gpus: int = 0
    gpu_model: str = ""
    tdx: bool = False
    zones: frozenset[str] = field(default_factory=frozenset)

    @property
    def secure_execution(self) -> bool:
        """Whether its VMs run with Secure Execution; on IBM Z that is what a profile is, not a mode of it."""
        return self.arch == "s390x" and bool(_SECURE_EXECUTION.match(self.name))

    def unusable(self, *, confidential: bool) -> str:
        """Why a configuration that wants (no) confidential VMs cannot use it; "" when it can."""
        if not confidential or self.tdx or self.secure_execution:
            return ""
        return WITHOUT_SE if self.arch == "s390x" else WITHOUT_TDX


@dataclass(frozen=True, slots=True)
class Target:
    """A dedicated host or host group. `profiles` are those that fit on it; empty where the API does not tell them."""

    id: str
    zone: str
    profiles: frozenset[str]


class Catalog:
    """Lookups that several threads share. Nothing of what is read here ever changes but the profiles there are.

    No lock: two threads that look the same up at once get the same, and no call waits for another's.
    """

    def __init__(self, vpc: Vpc, keys: IbmCloudKeys, place: WorkerPlace) -> None:
        self._vpc = vpc
        self._keys = keys
        self._place = place
        self._images: dict[str, Image] = {}
        self._subnets: dict[str, Subnet] = {}
        self._profiles: dict[str, Profile] = {}
        self._targets: dict[str, Target] = {}
        self._cluster_group = ""

    # Images

    def image(self, image_id: str) -> Image:
        """Raises InvalidRequestError when there is no such image, or none that can be booted from."""
        known = self._images.get(image_id)
        if known is None:
            try:
                found = self._vpc.read("get_image", {"image": image_id}, id=image_id)
            except MissingError as error:
                text = f"{image_id!r} (IBMCLOUD_PODVM_IMAGE_ID) is no image in this region"
                raise InvalidRequestError("ImageMissing", text) from error
            known = self._images[image_id] = _image(found)
        return known

    def image_for(self, arch: str) -> Image:
        """The first configured image of an architecture. Raises InvalidRequestError naming all there are."""
        images = [self.image(image_id) for image_id in self._keys.image_ids]
        chosen = next((image for image in images if image.arch == arch), None)
        if chosen is None:
            have = ", ".join(f"{image.id} ({image.arch})" for image in images) or "none"
            raise InvalidRequestError("ImageMissing", f"IBMCLOUD_PODVM_IMAGE_ID has no {arch} image; it has {have}")
        return chosen

    def image_arch(self) -> str:
        """That of the configured images; "" when they have several."""
        found = {self.image(image_id).arch for image_id in self._keys.image_ids}
        return found.pop() if len(found) == 1 else ""

    # Network

    def subnet_ids(self) -> tuple[str, ...]:
        """Those of the configuration, else the worker's."""
        return self._keys.all_subnets or (self._place.subnet(),)

    def subnet(self, subnet_id: str) -> Subnet:
        """Raises InvalidRequestError when there is no such subnet."""
        known = self._subnets.get(subnet_id)
        if known is None:
            try:
                found = self._vpc.read("get_subnet", {"subnet": subnet_id}, id=subnet_id)
            except MissingError as error:
                text = f"{subnet_id!r} (IBMCLOUD_VPC_SUBNET_ID) is no subnet in this region"
                raise InvalidRequestError("SubnetMissing", text) from error
            known = self._subnets[subnet_id] = Subnet(found["id"], found["zone"]["name"], found["vpc"]["id"])
        return known

    def subnets(self) -> tuple[Subnet, ...]:
        """All of them. Raises InvalidRequestError."""
        return tuple(self.subnet(subnet_id) for subnet_id in self.subnet_ids())

    def subnet_for(self, zone: str, token: str) -> Subnet:
        """The subnet of a launch: of those in its zone one by its token, so that a repeat gets the same."""
        in_zone = [subnet for subnet in self.subnets() if subnet.zone == zone]
        if not in_zone:
            zones = ", ".join(sorted({subnet.zone for subnet in self.subnets()}))
            raise InvalidRequestError(
                "ZoneWithoutSubnet",
                f"no subnet of IBMCLOUD_VPC_SUBNET_ID or IBMCLOUD_VPC_SUBNET_IDS is in zone {zone!r}; zones: {zones}",
            )
        return in_zone[int.from_bytes(hashlib.sha256(token.encode()).digest()[:8]) % len(in_zone)]

    def security_groups(self, vpc: str) -> tuple[str, ...]:
        """Those of the configuration, and the cluster's. Raises InvalidRequestError when the cluster has none."""
        if not self._keys.cluster_id:
            return self._keys.security_group_ids
        name = f"kube-{self._keys.cluster_id}"
        if not self._cluster_group:
            found = self._vpc.pages("list_security_groups", "security_groups", vpc_id=vpc, limit=PAGE)
            group = next((one["id"] for one in found if one["name"] == name), "")
            if not group:
                raise InvalidRequestError(
                    "GroupMissing", f"the VPC {vpc} has no security group {name!r}, which IBMCLOUD_CLUSTER_ID asks for"
                )
            self._cluster_group = group
        return tuple(dict.fromkeys((*self._keys.security_group_ids, self._cluster_group)))

    # Hosts

    def targets(self, zone: str) -> tuple[str, ...]:
        """Where a launch in this zone is to be placed, in the order of trying; ("",) for anywhere."""
        host = next((one.id for one in self.hosts() if one.zone == zone), "")
        group = next((one.id for one in self.host_groups() if one.zone == zone), "")
        return tuple(target for target in (host, group) if target) or ("",)

    def hosts(self) -> tuple[Target, ...]:
        """The dedicated hosts of the configuration. Raises InvalidRequestError."""
        ids = self._keys.dedicated_host_ids
        return tuple(self._target("get_dedicated_host", "IBMCLOUD_DEDICATED_HOST_IDS", one) for one in ids)

    def host_groups(self) -> tuple[Target, ...]:
        """The dedicated host groups of the configuration. Raises InvalidRequestError."""
        ids = self._keys.dedicated_host_group_ids
        return tuple(self._target("get_dedicated_host_group", "IBMCLOUD_DEDICATED_HOST_GROUP_IDS", one) for one in ids)

    def _target(self, operation: str, key: str, target_id: str) -> Target:
        known = self._targets.get(target_id)
        if known is None:
            try:
                found = self._vpc.read(operation, id=target_id)
            except MissingError as error:
                raise InvalidRequestError("HostMissing", f"{target_id!r} ({key}) is not in this region") from error
            names = frozenset(profile["name"] for profile in found.get("supported_instance_profiles", []))
            known = self._targets[target_id] = Target(target_id, found["zone"]["name"], names)
        return known

    # Profiles

    def profiles(self) -> dict[str, Profile]:
        """All configured profiles that the region has, as it has them now."""
        wanted = set(self._keys.all_profiles)
        listed = self._vpc.pages("list_instance_profiles", "profiles", limit=PAGE)
        found = {one["name"]: _profile(one) for one in listed if one["name"] in wanted}
        self._profiles.update(found)
        return found

    def profile(self, name: str) -> Profile:
        """As it was when it was last looked at. Raises InvalidRequestError when there is no such profile."""
        known = self._profiles.get(name)
        if known is None:
            try:
                known = _profile(self._vpc.read("get_instance_profile", {"type": name}, name=name))
            except MissingError as error:
                text = f"{name!r} (IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME, _LIST) is no instance profile in this region"
                raise InvalidRequestError("InstanceTypeUnknown", text) from error
            self._profiles[name] = known
        return known

    def offerings(self) -> Sequence[Offering]:
        """Profile x zone of our subnets, of what the region has; what it would refuse as things are is unusable."""
        zones = sorted({subnet.zone for subnet in self.subnets()})
        return [
            Offering(
                instance_type=profile.name,
                zone=zone,
                vcpus=profile.vcpus,
                memory_mib=profile.memory_mib,
                arch=profile.arch,
                gpus=profile.gpus,
                gpu_model=profile.gpu_model,
                unusable=profile.unusable(confidential=not self._keys.disable_cvm),
            )
            for profile in sorted(self.profiles().values(), key=lambda profile: profile.name)
            for zone in zones
            if not profile.zones or zone in profile.zones
        ]


def _image(found: dict[str, Any]) -> Image:
    image_id, status = found["id"], found.get("status", "available")
    if status not in ("available", "deprecated"):
        raise InvalidRequestError(
            "ImageNotReady", f"the image {image_id} (IBMCLOUD_PODVM_IMAGE_ID) is {status}, not available"
        )
    system = found.get("operating_system", {})
    return Image(image_id, _arch(system.get("architecture", "amd64")), system.get("name", ""))


def _profile(found: dict[str, Any]) -> Profile:
    models = (found.get("gpu_model") or {}).get("values") or [""]
    return Profile(
        name=found["name"],
        vcpus=_number(found.get("vcpu_count")),
        memory_mib=_number(found.get("memory")) * 1024,  # the API counts GiB
        arch=_arch((found.get("vcpu_architecture") or {}).get("value", "amd64")),
        gpus=_number(found.get("gpu_count")),
        gpu_model=models[0],
        tdx="tdx" in ((found.get("confidential_compute_modes") or {}).get("values") or []),
        zones=frozenset(zone["name"] for zone in found.get("zones") or []),
    )


def _number(capability: dict[str, Any] | None) -> int:
    """Of a capability that is fixed, or that has a default among several; 0 where it depends on something else."""
    told = capability or {}
    return int(told.get("value") or told.get("default") or 0)


def _arch(name: str) -> str:
    return _ARCHITECTURES.get(name, name)
