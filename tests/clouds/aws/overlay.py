"""Closes moto's measured gaps in EC2: what RunInstances, DescribeInstances and TerminateInstances promise.

Messages are as EC2 words them where that is known; clients go by the codes.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import moto.ec2.models.elastic_network_interfaces as moto_enis
import moto.ec2.models.instances as moto_instances
import moto.ec2.models.subnets as moto_subnets
from moto.core.responses import ActionResult
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.responses import EC2Response
from moto.ec2.utils import filter_dict_attribute_mapping, is_tag_filter

from tests.clouds.aws.conditions import MAX_PAGE, Conditions
from tests.clouds.aws.ebs import Ebs
from tests.clouds.aws.errors import Ec2Error
from tests.clouds.aws.image import Imports, deregister_image, register_image
from tests.clouds.aws.instance import EmulatedInstance
from tests.clouds.aws.subnet import EmulatedSubnet

# EC2 counts the user data before its base64 encoding.
MAX_USER_DATA = 16 << 10
MAX_TOKEN = 64
PUBLIC_CIDR = ipaddress.ip_network("127.51.0.0/16")
_MIN_PAGE = 5
# What no two requests of the same meaning must share.
_NOT_A_PARAMETER = {"Action", "Version", "ClientToken", "DryRun"}


@dataclass
class Launch:
    """What a client token stands for."""

    fingerprint: str
    reservation: Any


class Overlay:
    """The replaced actions. `tokens` is (account, region, zone or "", client token) -> launch."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.tokens: dict[tuple[str, str, str, str], Launch] = {}
        self.ebs = Ebs()
        self.imports = Imports()
        self._original_run: Callable[[EC2Response], ActionResult] = EC2Response.run_instances

    def install(self) -> None:
        """Put everything in moto's place, once in a process."""
        self.ebs.install()
        EmulatedInstance.conditions = self.conditions
        moto_instances.Instance = EmulatedInstance  # type: ignore[misc]
        moto_subnets.Subnet = EmulatedSubnet  # type: ignore[misc]
        setattr(moto_enis, "random_public_ip", _public_addresses().__next__)  # noqa: B010  mypy would refuse the plain form
        filter_dict_attribute_mapping["client-token"] = "client_token"
        replaced = {
            "run_instances": self.run_instances,
            "describe_instances": self.describe_instances,
            "terminate_instances": self.terminate_instances,
            "describe_instance_types": self.describe_instance_types,
            "register_image": register_image,
            "import_snapshot": self.imports.import_snapshot,
            "describe_import_snapshot_tasks": self.imports.describe,
            "deregister_image": deregister_image,
        }
        for name, method in replaced.items():
            setattr(EC2Response, name, _bound(method))

    # RunInstances

    def run_instances(self, call: EC2Response) -> ActionResult:
        """Check what EC2 checks, launch through moto, then keep what moto loses."""
        token = call._get_param("ClientToken") or ""
        if len(token) > MAX_TOKEN or not token.isascii():
            raise Ec2Error("InvalidParameterValue", "The client token must be at most 64 ASCII characters.")
        zone = self._zone(call)
        key = (call.current_account, call.region, zone if _is_zonal(call) else "", token)
        fingerprint = _fingerprint(call)
        known = self.tokens.get(key) if token else None
        if known is not None and not call._get_param("DryRun", False):
            return self._again(known, fingerprint)
        self._check(call, zone)
        result = self._original_run(call)
        reservation: Any = result.result
        for instance in reservation.instances:
            _keep(instance, call)
        if token:
            self.tokens[key] = Launch(fingerprint, reservation)
        return result

    def _again(self, known: Launch, fingerprint: str) -> ActionResult:
        if known.fingerprint != fingerprint:
            raise Ec2Error(
                "IdempotentParameterMismatch",
                "The client token you have provided has been used with different request parameters.",
            )
        if any(instance.gone for instance in known.reservation.instances):
            raise Ec2Error(
                "IdempotentInstanceTerminated",
                "The instance that was launched with the client token you have provided is terminated.",
            )
        return ActionResult(known.reservation)

    def _zone(self, call: EC2Response) -> str:
        subnet_id = _subnet_id(call)
        if subnet_id:
            return str(call.ec2_backend.get_subnet(subnet_id).availability_zone)
        return str(call._get_param("Placement.AvailabilityZone") or f"{call.region}a")

    def _check(self, call: EC2Response, zone: str) -> None:
        backend: Any = call.ec2_backend
        template = _template(call)
        instance_type = call._get_param("InstanceType") or template.get("InstanceType", "m1.small")
        image_id = call._get_param("ImageId") or template.get("ImageId")
        if not image_id:
            raise Ec2Error("MissingParameter", "The request must contain the parameter ImageId")
        _check_user_data(call._get_param("UserData"))
        _check_type(instance_type, zone, call)
        images = backend.describe_images(ami_ids=[image_id])
        _check_architecture(instance_type, images[0].architecture if images else None)
        key_name = call._get_param("KeyName")
        if key_name:
            backend.describe_key_pairs(key_names=[key_name])
        for group in _groups(call):
            if backend.get_security_group_from_id(group) is None:
                raise Ec2Error("InvalidGroup.NotFound", f"The security group '{group}' does not exist")
        if not call._get_param("DryRun", False):
            self._take(call, instance_type, zone)

    def _take(self, call: EC2Response, instance_type: str, zone: str) -> None:
        """What may be short though the request is right: addresses, quota, capacity."""
        backend: Any = call.ec2_backend
        count = int(call._get_param("MinCount", "1"))
        subnet_id = _subnet_id(call)
        if subnet_id and backend.get_subnet(subnet_id).available_ip_address_count < count:
            raise Ec2Error(
                "InsufficientFreeAddressesInSubnet",
                f"There are not enough free addresses in subnet '{subnet_id}' to satisfy the requested number of "
                "instances.",
            )
        market = call._get_param("InstanceMarketOptions.MarketType") or "on-demand"
        if market in self.conditions.vcpu_quota:
            wanted = vcpus(instance_type) * count
            self.conditions.check_quota(market, self._used_vcpus(backend, market), wanted)
        self.conditions.take_capacity(instance_type, zone, market, count)

    @staticmethod
    def _used_vcpus(backend: Any, market: str) -> int:
        # Instances that are shutting down still count for a while.
        instances = [i for i in backend.all_instances() if i.market == market and i.state != "terminated"]
        return sum(vcpus(instance.instance_type) for instance in instances)

    # DescribeInstances

    def describe_instances(self, call: EC2Response) -> ActionResult:
        """Lists in launch order, in pages of whole reservations, without what the lists do not know yet."""
        call.error_on_dryrun()
        filters: Any = call._filters_from_querystring()
        for name in filters:
            if name not in filter_dict_attribute_mapping and not is_tag_filter(name):
                raise Ec2Error("InvalidParameterValue", f"The filter '{name}' is invalid")
        ids = call._get_param("InstanceIds", [])
        size = self._page_size(call, ids)
        backend: Any = call.ec2_backend
        hidden = {instance.id for instance in backend.all_instances() if not instance.visible()}
        missing = sorted(hidden.intersection(ids))
        if missing:
            raise _no_instance(missing)
        if ids:
            reservations = backend.get_reservations_by_instance_ids(ids, filters=filters)
        else:
            reservations = backend.describe_instances(filters=filters)
        for reservation in reservations:
            reservation.instances = [one for one in reservation.instances if one.id not in hidden]
        reservations = [reservation for reservation in reservations if reservation.instances]
        # Launch order never changes, so a place in it stays valid while instances come and go.
        order = {reservation_id: place for place, reservation_id in enumerate(backend.reservations)}
        start = _decode_token(call._get_param("NextToken"))
        left = [reservation for reservation in reservations if order[reservation.id] >= start]
        page, rest = left[:size], left[size:]
        token = _encode_token(order[rest[0].id]) if rest else None
        return ActionResult({"Reservations": page, "NextToken": token})

    def _page_size(self, call: EC2Response, ids: list[str]) -> int:
        asked = call._get_param("MaxResults")
        if asked is None:
            return self.conditions.page_size
        if ids:
            raise Ec2Error(
                "InvalidParameterCombination",
                "The parameter instancesSet cannot be used with the parameter maxResults",
            )
        if not _MIN_PAGE <= int(asked) <= MAX_PAGE:
            raise Ec2Error(
                "InvalidParameterValue",
                f"Value ( {asked} ) for parameter maxResults is invalid. Allowed: {_MIN_PAGE} to {MAX_PAGE}.",
            )
        return min(int(asked), self.conditions.page_size)

    # TerminateInstances

    def terminate_instances(self, call: EC2Response) -> ActionResult:
        """Idempotent: a terminated instance is named again with its state."""
        ids = call._get_param("InstanceIds", [])
        call.error_on_dryrun()
        backend: Any = call.ec2_backend
        if self.conditions.staleness.terminate:
            unknown = [one.id for one in backend.all_instances() if one.id in ids and one.still_unknown]
            if unknown:
                raise _no_instance(unknown)
        ended = [
            {"InstanceId": one.id, "CurrentState": one.instance_state, "PreviousState": before}
            for one, before in backend.terminate_instances(ids)
        ]
        return ActionResult({"TerminatingInstances": ended})

    # DescribeInstanceTypes

    def describe_instance_types(self, call: EC2Response) -> ActionResult:
        """With pages, and with the one filter that finds confidential types."""
        features = "processor-info.supported-features"
        filters: Any = call._filters_from_querystring()
        wanted = filters.pop(features, None)
        types = call.ec2_backend.describe_instance_types(call._get_param("InstanceTypes", []), filters)
        if wanted is not None:
            types = [one for one in types if set(wanted) & set(_features(one["InstanceType"]))]
        types = sorted(types, key=lambda one: str(one["InstanceType"]))
        size = int(call._get_param("MaxResults") or 100)
        start = _decode_token(call._get_param("NextToken"))
        token = _encode_token(start + size) if start + size < len(types) else None
        return ActionResult({"InstanceTypes": types[start : start + size], "NextToken": token})

    def by_token(self) -> dict[str, list[str]]:
        """Client token -> ids of the instances launched with it, in any zone."""
        found: dict[str, list[str]] = {}
        for (_, _, _, token), launch in self.tokens.items():
            found.setdefault(token, []).extend(instance.id for instance in launch.reservation.instances)
        return found


def vcpus(instance_type: str) -> int:
    """Of one instance."""
    return int(INSTANCE_TYPES.get(instance_type, {}).get("VCpuInfo", {}).get("DefaultVCpus", 1))


def _public_addresses() -> Iterator[str]:
    """Addresses of this machine as well, so that a guest can be reached at its public one."""
    return (str(address) for address in itertools.cycle(PUBLIC_CIDR.hosts()))


def _bound(method: Callable[[EC2Response], ActionResult]) -> Callable[[EC2Response], ActionResult]:
    return lambda call: method(call)


def _features(instance_type: str) -> list[str]:
    return list(INSTANCE_TYPES.get(instance_type, {}).get("ProcessorInfo", {}).get("SupportedFeatures", []))


def _fingerprint(call: EC2Response) -> str:
    given = {key: value for key, value in call.querystring.items() if key not in _NOT_A_PARAMETER}
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _subnet_id(call: EC2Response) -> str | None:
    nics = call._get_param("NetworkInterfaces", [])
    found = call._get_param("SubnetId") or next((nic["SubnetId"] for nic in nics if "SubnetId" in nic), None)
    return str(found) if found else None


def _groups(call: EC2Response) -> list[str]:
    """Of the instance and of its interfaces. moto makes up a group that an interface names and nobody made."""
    found = list(call._get_param("SecurityGroupIds", []))
    for nic in call._get_param("NetworkInterfaces", []):
        found += nic.get("Groups", [])
    return found


def _template(call: EC2Response) -> dict[str, Any]:
    """The data of the launch template the request names, if any."""
    named = call._get_param("LaunchTemplate", {})
    return dict(call.ec2_backend._get_template_from_args(named).data) if named else {}


def _is_zonal(call: EC2Response) -> bool:
    """A subnet or a zone in the request narrows the token's scope from the region to that zone."""
    return bool(_subnet_id(call) or call._get_param("Placement.AvailabilityZone"))


def _check_user_data(encoded: Any) -> None:
    if encoded is None:
        return
    raw = encoded if isinstance(encoded, bytes) else str(encoded).encode()
    try:
        length = len(base64.b64decode(raw, validate=True))
    except ValueError:
        raise Ec2Error("InvalidParameterValue", "Invalid BASE64 encoding of user data.") from None
    if length > MAX_USER_DATA:
        raise Ec2Error("InvalidParameterValue", f"User data is limited to {MAX_USER_DATA} bytes")


def _check_type(instance_type: str, zone: str, call: EC2Response) -> None:
    if instance_type not in INSTANCE_TYPES:
        raise Ec2Error("InvalidParameterValue", f"Invalid value '{instance_type}' for InstanceType.")
    if call._get_param("CpuOptions.AmdSevSnp") == "enabled" and "amd-sev-snp" not in _features(instance_type):
        raise Ec2Error(
            "InvalidParameterCombination", f"The instance type '{instance_type}' does not support AMD SEV-SNP."
        )
    offerings = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(call.region, [])
    if not any(one["InstanceType"] == instance_type and one["Location"] == zone for one in offerings):
        raise Ec2Error(
            "Unsupported",
            f"Your requested instance type ({instance_type}) is not supported in your requested Availability Zone "
            f"({zone}).",
        )


def _check_architecture(instance_type: str, image: str | None) -> None:
    supported = INSTANCE_TYPES[instance_type].get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    if image and supported and image not in supported:
        raise Ec2Error(
            "InvalidParameterValue",
            f"The architecture '{','.join(supported)}' of the specified instance type does not match the architecture "
            f"'{image}' of the specified AMI. Specify an instance type and an AMI that have matching architectures, "
            "and try again.",
        )


def _keep(instance: EmulatedInstance, call: EC2Response) -> None:
    """What moto accepts and then forgets."""
    cpu = call._get_param("CpuOptions", {})
    info = INSTANCE_TYPES[instance.instance_type].get("VCpuInfo", {})
    threads = int(cpu.get("ThreadsPerCore") or info.get("DefaultThreadsPerCore", 1))
    cores = int(cpu.get("CoreCount") or info.get("DefaultCores", 1))
    instance.cpu_options = {"CoreCount": cores, "ThreadsPerCore": threads}
    if cpu.get("AmdSevSnp"):
        instance.cpu_options["AmdSevSnp"] = cpu["AmdSevSnp"]
    image = instance.ec2_backend.amis.get(instance.image_id)
    instance.boot_mode = image.boot_mode if image else None
    instance.current_instance_boot_mode = "legacy-bios" if instance.boot_mode == "legacy-bios" else "uefi"
    tags = call._parse_tag_specification().get("network-interface", {})
    for nic in instance.nics.values():
        nic.add_tags(tags)


def _no_instance(ids: list[str]) -> Ec2Error:
    if len(ids) == 1:
        return Ec2Error("InvalidInstanceID.NotFound", f"The instance ID '{ids[0]}' does not exist")
    return Ec2Error("InvalidInstanceID.NotFound", f"The instance IDs '{', '.join(ids)}' do not exist")


def _encode_token(place: int) -> str:
    return base64.urlsafe_b64encode(f"at:{place}".encode()).decode()


def _decode_token(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token).decode().removeprefix("at:"))
    except ValueError:
        raise Ec2Error("InvalidNextToken", "The token is invalid.") from None
