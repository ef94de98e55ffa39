"""What AWS has of what the configuration names: images, subnets with their zones, instance types. Looked up once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from providers.aws.client import Ec2
from providers.aws.metadata import WorkerMetadata
from providers.aws.settings import AwsKeys
from providers.base import InvalidRequestError, Market, Offering

SNP = "amd-sev-snp"
WITHOUT_SNP = "does not run confidential VMs (AMD SEV-SNP), and DISABLECVM is false"
# In the order of choice, for types that run more than one.
_ARCHITECTURES = ("x86_64", "arm64")


@dataclass(frozen=True, slots=True)
class Image:
    """What a launch must know of its image. Sizes in GiB."""

    id: str
    arch: str
    root_device: str
    root_size: int


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet and the zone it is in."""

    id: str
    zone: str
    vpc: str


@dataclass(frozen=True, slots=True)
class InstanceType:
    """What a type has."""

    name: str
    vcpus: int
    memory_mib: int
    arch: str
    gpus: int
    gpu_model: str
    snp: bool
    markets: frozenset[Market]


class Catalog:
    """Lookups that several threads share. Images and subnets never change in what is read of them here.

    No lock: two threads that look the same up at once get the same, and no call waits for another's.
    """

    def __init__(self, ec2: Ec2, keys: AwsKeys, worker: WorkerMetadata) -> None:
        self._ec2 = ec2
        self._keys = keys
        self._worker = worker
        self._images: dict[str, Image] = {}
        self._subnets: tuple[Subnet, ...] = ()

    def image(self, image_id: str) -> Image:
        """Raises InvalidRequestError when there is no such image, or none that can be booted from."""
        known = self._images.get(image_id)
        if known is None:
            found = self._ec2.read("describe_images", {"image": image_id}, ImageIds=[image_id]).get("Images", [])
            if not found:
                raise InvalidRequestError("ImageMissing", f"{image_id!r} (PODVM_AMI_ID) is no image in this region")
            known = self._images[image_id] = _image(found[0])
        return known

    def subnet_ids(self) -> tuple[str, ...]:
        """Those of the configuration, else the worker's."""
        return self._keys.all_subnets or (self._worker.subnet(),)

    def subnets(self) -> tuple[Subnet, ...]:
        """All that exist of them. By filter, for by id one missing subnet would fail the call for all."""
        if not self._subnets:
            wanted = [{"Name": "subnet-id", "Values": list(self.subnet_ids())}]
            found = self._ec2.pages("describe_subnets", "Subnets", Filters=wanted)
            listed = [Subnet(one["SubnetId"], one["AvailabilityZone"], one["VpcId"]) for one in found]
            self._subnets = tuple(sorted(listed, key=lambda subnet: subnet.id))
        return self._subnets

    def subnet_for(self, zone: str, token: str) -> Subnet:
        """The subnet of a launch: of those in its zone one by its token, so that a repeat gets the same."""
        in_zone = [subnet for subnet in self.subnets() if subnet.zone == zone]
        if not in_zone:
            zones = ", ".join(sorted({subnet.zone for subnet in self.subnets()})) or "none, there is no such subnet"
            raise InvalidRequestError(
                "ZoneWithoutSubnet", f"no subnet of AWS_SUBNET_ID or AWS_SUBNET_IDS is in zone {zone!r}; zones: {zones}"
            )
        return in_zone[int.from_bytes(hashlib.sha256(token.encode()).digest()[:8]) % len(in_zone)]

    def security_groups(self) -> tuple[str, ...]:
        """Those of the configuration, else those of the launch template (named by none), else the worker's."""
        if self._keys.security_group_ids or self._keys.use_launch_template:
            return self._keys.security_group_ids
        return self._worker.security_groups()

    def key_pair(self) -> str:
        """The configured one, else that of the launch template (named by ""), else the worker's; "" is none."""
        if self._keys.key_pair or self._keys.use_launch_template:
            return self._keys.key_pair
        return self._worker.key_pair()

    def types(self) -> dict[str, InstanceType]:
        """All configured types that the region has. By filter, for the reason of `subnets`."""
        wanted = [{"Name": "instance-type", "Values": list(self._keys.all_types)}]
        found = self._ec2.pages("describe_instance_types", "InstanceTypes", Filters=wanted, MaxResults=100)
        return {kind.name: kind for kind in map(_instance_type, found)}

    def zones_of_types(self) -> set[tuple[str, str]]:
        """(type, zone) of every configured type in every zone of our subnets where AWS has it."""
        filters = [
            {"Name": "instance-type", "Values": list(self._keys.all_types)},
            {"Name": "location", "Values": sorted({subnet.zone for subnet in self.subnets()})},
        ]
        found = self._ec2.pages(
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
            Filters=filters,
            MaxResults=1000,
        )
        return {(row["InstanceType"], row["Location"]) for row in found}

    def offerings(self) -> Sequence[Offering]:
        """Type x zone x market, of what the region has; what EC2 would refuse as things are is marked as unusable."""
        types = self.types()
        return [
            Offering(
                instance_type=name,
                zone=zone,
                vcpus=types[name].vcpus,
                memory_mib=types[name].memory_mib,
                market=market,
                arch=types[name].arch,
                gpus=types[name].gpus,
                gpu_model=types[name].gpu_model,
                unusable="" if types[name].snp or self._keys.disable_cvm else WITHOUT_SNP,
            )
            for name, zone in sorted(self.zones_of_types())
            if name in types
            for market in self._keys.markets
            if market in types[name].markets
        ]


def _image(found: dict[str, Any]) -> Image:
    image_id, state = found["ImageId"], found.get("State", "available")
    if state != "available":
        raise InvalidRequestError("ImageNotReady", f"the image {image_id} (PODVM_AMI_ID) is {state}, not available")
    root = found.get("RootDeviceName", "")
    mapping = next((m for m in found.get("BlockDeviceMappings", []) if m.get("DeviceName") == root), None)
    if not root or mapping is None or "Ebs" not in mapping:
        raise InvalidRequestError(
            "ImageWithoutRoot", f"the image {image_id} (PODVM_AMI_ID) has no EBS root volume to boot from"
        )
    return Image(image_id, found.get("Architecture", ""), root, int(mapping["Ebs"].get("VolumeSize", 0)))


def _instance_type(found: dict[str, Any]) -> InstanceType:
    processor = found.get("ProcessorInfo", {})
    supported = processor.get("SupportedArchitectures", [])
    gpus = found.get("GpuInfo", {}).get("Gpus", [])
    return InstanceType(
        name=found["InstanceType"],
        vcpus=found["VCpuInfo"]["DefaultVCpus"],
        memory_mib=found["MemoryInfo"]["SizeInMiB"],
        arch=next((arch for arch in _ARCHITECTURES if arch in supported), ",".join(supported)),
        gpus=sum(gpu.get("Count", 0) for gpu in gpus),
        gpu_model=gpus[0].get("Name", "") if gpus else "",
        snp=SNP in processor.get("SupportedFeatures", []),
        markets=frozenset(market for market in Market if market.value in found.get("SupportedUsageClasses", [])),
    )
