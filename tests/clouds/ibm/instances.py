"""Making, listing and deleting instances: the rules of the create call, and what comes with an instance."""

from __future__ import annotations

import re
from typing import Any

from tests.clouds.ibm import catalog
from tests.clouds.ibm.errors import ApiError, bad_field, not_found, not_unique
from tests.clouds.ibm.region import Life, Region, Resource, vcpus_in_use

USER_DATA_LIMIT = 64 * 1024
NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")
_NAME_LIMIT = 63
_TAG = re.compile(r"[A-Za-z0-9:_ .-]{1,128}")
# Everything that a create call may say, as far as it is emulated. A word that is not here is refused.
_KNOWN: dict[str, set[str]] = {
    "": {
        *("name", "profile", "image", "zone", "vpc", "user_data", "primary_network_attachment", "keys"),
        *("boot_volume_attachment", "metadata_service", "availability_policy", "resource_group", "placement_target"),
        *("confidential_compute_mode", "enable_secure_boot"),
    },
    "primary_network_attachment": {"name", "virtual_network_interface"},
    "virtual_network_interface": {"name", "subnet", "auto_delete", "allow_ip_spoofing", "security_groups"},
    "boot_volume_attachment": {"name", "delete_volume_on_instance_delete", "volume"},
    "volume": {"name", "profile", "capacity", "user_tags"},
    "metadata_service": {"enabled", "protocol", "response_hop_limit"},
}
_TARGETS = {"dedicated_hosts": "dedicated_host", "dedicated_host_groups": "dedicated_host_group"}


def create(region: Region, asked: Resource) -> Resource:
    """POST /instances. All is checked before anything is made."""
    name, profile, image = _essentials(region, asked)
    zone = _named(asked, "zone")
    if zone not in region.zones:
        raise ApiError(404, "zone_not_found", f"The zone {zone} was not found", "zone.name", zone)
    interface = _part(asked, "primary_network_attachment", "virtual_network_interface")
    attachment = _part(asked, "boot_volume_attachment")
    volume = _part(attachment, "volume")
    subnet = _found(region, "subnets", interface, "subnet")
    vpc = region.kinds["vpcs"][subnet["vpc"]["id"]]
    _check_network(region, asked, interface, subnet, zone)
    for key in asked.get("keys", []):
        _existing(region, "keys", key.get("id", ""))
    _check_names(region, name, asked, interface, volume, vpc)
    _check_mode(asked, profile)
    host = _placed(region, asked, zone)
    quota = region.conditions.vcpu_quota
    if quota is not None and vcpus_in_use(region) + catalog.vcpus(profile) > quota:
        raise ApiError(400, "over_quota", f"Quota exceeded: the limit of vCPUs for instances is {quota}")
    region.conditions.take_capacity(profile, zone)
    address = region.take_address(subnet)
    if not address:
        raise ApiError(409, "subnet_insufficient_ips", f"The subnet {subnet['id']} has no available addresses")
    return _make(region, asked, image, subnet, vpc, address, host)


def _essentials(region: Region, asked: Resource) -> tuple[str, str, Resource]:
    _check_words("", asked)
    name = str(asked.get("name", ""))
    _check_name("name", name)
    profile = _named(asked, "profile")
    if profile not in catalog.profiles("", []):
        raise ApiError(404, "instance_profile_not_found", f"The profile {profile} was not found", "profile.name")
    image = _found(region, "images", asked, "image")
    if image["status"] != "available":
        raise ApiError(400, "image_not_available", f"The image {image['id']} is {image['status']}", "image.id")
    arch = image["operating_system"]["architecture"]
    if arch != catalog.arch_of_profile(profile):
        raise bad_field("image.id", f"The image is {arch}, and the profile {profile} is not")
    if len(str(asked.get("user_data", "")).encode()) > USER_DATA_LIMIT:
        raise bad_field("user_data", f"user_data has more than {USER_DATA_LIMIT} bytes")
    return name, profile, image


def _check_words(part: str, asked: Any) -> None:
    if not isinstance(asked, dict):
        raise bad_field(part, f"{part} must be an object")
    for key, value in asked.items():
        if key not in _KNOWN[part]:
            raise bad_field(f"{part}.{key}".lstrip("."), f"{key} is no property of {part or 'an instance'}")
        if key in _KNOWN:
            _check_words(key, value)


def _check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name) or len(name) > _NAME_LIMIT:
        raise bad_field(field, f"{name!r} is no valid name")


def _check_names(
    region: Region, name: str, asked: Resource, interface: Resource, volume: Resource, vpc: Resource
) -> None:
    for field in ("primary_network_attachment", "boot_volume_attachment"):
        _check_name(f"{field}.name", str(asked[field].get("name", "")))
    if any(one["name"] == name for one in region.kinds["instances"].values()):
        raise not_unique(name)
    _check_name("virtual_network_interface.name", str(interface.get("name", "")))
    for one in region.kinds["virtual_network_interfaces"].values():
        if one["name"] == interface["name"] and one["vpc"]["id"] == vpc["id"]:
            raise not_unique(interface["name"])
    _check_name("volume.name", str(volume.get("name", "")))
    if any(one["name"] == volume["name"] for one in region.kinds["volumes"].values()):
        raise not_unique(volume["name"])
    for tag in volume.get("user_tags", []):
        if not _TAG.fullmatch(tag):
            raise bad_field("boot_volume_attachment.volume.user_tags", f"{tag!r} is no valid tag")


def _check_network(region: Region, asked: Resource, interface: Resource, subnet: Resource, zone: str) -> None:
    if subnet["zone"]["name"] != zone:
        raise bad_field("zone.name", f"The subnet {subnet['id']} is not in {zone}")
    if "vpc" in asked and _found(region, "vpcs", asked, "vpc")["id"] != subnet["vpc"]["id"]:
        raise bad_field("vpc.id", "The VPC is not that of the subnet")
    for group in interface.get("security_groups", []):
        if _existing(region, "security_groups", group.get("id", ""))["vpc"]["id"] != subnet["vpc"]["id"]:
            raise bad_field("security_groups", f"The security group {group['id']} is in another VPC")


def _check_mode(asked: Resource, profile: str) -> None:
    offered = catalog.profiles("", [])[profile]
    mode = asked.get("confidential_compute_mode")
    if mode is not None and mode not in offered["confidential_compute_modes"]["values"]:
        raise bad_field("confidential_compute_mode", f"{profile} does not support {mode}")
    boot = asked.get("enable_secure_boot")
    if boot is not None and boot not in offered["secure_boot_modes"]["values"]:
        raise bad_field("enable_secure_boot", f"{profile} does not support {boot}")


def _placed(region: Region, asked: Resource, zone: str) -> Resource | None:
    if "placement_target" not in asked:
        return None
    one = asked["placement_target"].get("id", "")
    for kind, word in _TARGETS.items():
        target = region.kinds[kind].get(one)
        if target is None:
            continue
        if target["zone"]["name"] != zone:
            raise bad_field("placement_target", f"The {word} {one} is not in {zone}")
        if kind == "dedicated_hosts":
            if target["available_vcpu"]["count"] < catalog.vcpus(_named(asked, "profile")):
                raise ApiError(409, "dedicated_host_insufficient_capacity", f"The host {one} is full")
            target["available_vcpu"]["count"] -= catalog.vcpus(_named(asked, "profile"))
        return {"crn": target["crn"], "href": target["href"], "id": one, "name": target["name"], "resource_type": word}
    raise not_found("dedicated_host", one)


def _make(
    region: Region,
    asked: Resource,
    image: Resource,
    subnet: Resource,
    vpc: Resource,
    address: str,
    host: Resource | None,
) -> Resource:
    group = asked.get("resource_group", {}).get("id", "")
    zone, profile = _named(asked, "zone"), _named(asked, "profile")
    wanted_card, wanted_disk = asked["primary_network_attachment"], asked["boot_volume_attachment"]
    interface = _interface(region, wanted_card["virtual_network_interface"], subnet, vpc, address, group)
    volume = _volume(region, wanted_disk["volume"], zone, group)
    kind = catalog.profiles(region.base, region.zones)[profile]
    instance = region.add("instances", asked["name"], group)
    card = {
        "href": f"{instance['href']}/network_attachments/1",
        "id": f"0717-{interface['id']}",
        "name": wanted_card["name"],
        "primary_ip": interface["primary_ip"],
        "resource_type": "instance_network_attachment",
        "subnet": region.reference(subnet),
        "virtual_network_interface": region.reference(interface),
    }
    disk = {
        "href": f"{instance['href']}/volume_attachments/1",
        "id": f"0717-{volume['id']}",
        "name": wanted_disk["name"],
        "volume": region.reference(volume),
    }
    interface["target"] = {key: card[key] for key in ("href", "id", "name", "resource_type")}
    volume["volume_attachments"] = [
        {
            "delete_volume_on_instance_delete": wanted_disk.get("delete_volume_on_instance_delete", True),
            "instance": {key: instance[key] for key in ("crn", "href", "id", "name")},
            "type": "boot",
            **{key: disk[key] for key in ("href", "id", "name")},
        }
    ]
    view = {key: value for key, value in card.items() if key not in ("virtual_network_interface", "resource_type")}
    view["resource_type"] = "network_interface"
    metadata = asked.get("metadata_service", {})
    instance |= {
        "availability": {"class": "standard"},
        "availability_policy": {
            "host_failure": "restart",
            "preemption": "stop",
            **asked.get("availability_policy", {}),
        },
        "bandwidth": 4000,
        "boot_volume_attachment": disk,
        "cluster_network_attachments": [],
        "confidential_compute_mode": asked.get("confidential_compute_mode", "disabled"),
        "disks": [],
        "enable_secure_boot": asked.get("enable_secure_boot", False),
        "health_reasons": [],
        "health_state": "inapplicable",
        "image": region.reference(image),
        "lifecycle_reasons": [],
        "lifecycle_state": "pending",
        "memory": kind["memory"]["value"],
        "metadata_service": {
            "enabled": metadata.get("enabled", False),
            "protocol": metadata.get("protocol", "http"),
            "response_hop_limit": metadata.get("response_hop_limit", 1),
        },
        "network_attachments": [card],
        "network_interfaces": [view],
        "primary_network_attachment": card,
        "primary_network_interface": view,
        "profile": {"href": kind["href"], "name": profile, "resource_type": "instance_profile"},
        "reservation_affinity": {"policy": "disabled", "pool": []},
        "software_attachments": [],
        "startable": True,
        "status": "pending",
        "status_reasons": [],
        "threads_per_core": 2,
        "total_network_bandwidth": 3000,
        "total_volume_bandwidth": 1000,
        "vcpu": {
            "architecture": kind["vcpu_architecture"]["value"],
            "burst": {"limit": 100},
            "count": kind["vcpu_count"]["value"],
            "manufacturer": kind["vcpu_manufacturer"]["value"],
            "percentage": 100,
        },
        "volume_attachments": [disk],
        "volume_bandwidth_qos_mode": "pooled",
        "vpc": region.reference(vpc),
        "zone": region.zone(zone),
    }
    if host:
        instance["placement_target"] = host
    conditions = region.conditions
    now = conditions.clock.now()
    region.kinds["instances"][instance["id"]] = instance
    region.lives[instance["id"]] = Life(
        made_at=now,
        user_data=str(asked.get("user_data", "")),
        fails=conditions.fails(profile, zone),
        hidden_calls=conditions.staleness.calls,
        hidden_until=now + conditions.staleness.seconds,
    )
    region.made.setdefault(instance["name"], []).append(instance["id"])
    return instance


def _interface(region: Region, wanted: Resource, subnet: Resource, vpc: Resource, address: str, group: str) -> Resource:
    groups = [region.kinds["security_groups"][one["id"]] for one in wanted.get("security_groups", [])]
    groups = groups or [vpc["default_security_group"]]
    interface = region.add(
        "virtual_network_interfaces",
        wanted["name"],
        group,
        allow_ip_spoofing=wanted.get("allow_ip_spoofing", False),
        auto_delete=wanted.get("auto_delete", False),
        enable_infrastructure_nat=True,
        lifecycle_state="stable",
        primary_ip={
            "address": address,
            "href": f"{subnet['href']}/reserved_ips/{address}",
            "id": f"0717-{address}",
            "name": f"ip-{address.replace('.', '-')}",
            "resource_type": "subnet_reserved_ip",
        },
        protocol_state_filtering_mode="auto",
        security_groups=[{key: one[key] for key in ("crn", "href", "id", "name")} for one in groups],
        subnet=region.reference(subnet),
        vpc=region.reference(vpc),
        zone=subnet["zone"],
    )
    interface["ips"] = [interface["primary_ip"]]
    return interface


def _volume(region: Region, wanted: Resource, zone: str, group: str) -> Resource:
    return region.add(
        "volumes",
        wanted["name"],
        group,
        active=True,
        adjustable_capacity_states=["attached"],
        adjustable_iops_states=["attached"],
        attachment_state="attached",
        bandwidth=393,
        busy=False,
        capacity=wanted.get("capacity", 100),
        encryption="provider_managed",
        health_reasons=[],
        health_state="ok",
        iops=3000,
        profile={"href": f"{region.base}/volume/profiles/general-purpose", "name": "general-purpose"},
        software_attachments=[],
        status="available",
        status_reasons=[],
        storage_generation=1,
        user_tags=list(wanted.get("user_tags", [])),
        volume_attachments=[],
        zone=region.zone(zone),
    )


# Looking and ending


def visible(region: Region) -> list[Resource]:
    """What a list shows now. Counts as one look for what lists do not know yet."""
    now = region.conditions.clock.now()
    found = []
    for one, life in region.lives.items():
        if life.hidden_calls > 0:
            life.hidden_calls -= 1
        elif now >= life.hidden_until:
            found.append(shown(region, region.kinds["instances"][one]))
    return found


def get(region: Region, one: str) -> Resource:
    if one not in region.lives or _hidden(region, one):
        raise not_found("instance", one)
    return shown(region, region.kinds["instances"][one])


def shown(region: Region, instance: Resource) -> Resource:
    """As the API tells it now."""
    if not region.conditions.late_addresses or instance["status"] != "pending":
        return instance
    nowhere = {"primary_ip": {**instance["primary_network_attachment"]["primary_ip"], "address": "0.0.0.0"}}
    card = {**instance["primary_network_attachment"], **nowhere}
    view = {**instance["primary_network_interface"], **nowhere}
    told = {"primary_network_attachment": card, "network_attachments": [card]}
    return {**instance, **told, "primary_network_interface": view, "network_interfaces": [view]}


def delete(region: Region, one: str) -> None:
    """DELETE /instances/ID: accepted again while it is on its way out."""
    if one not in region.lives or (region.conditions.staleness.terminate and _hidden(region, one)):
        raise not_found("instance", one)
    life, instance = region.lives[one], region.kinds["instances"][one]
    if life.deleted_at is None:
        life.deleted_at = region.conditions.clock.now()
        instance["status"], instance["lifecycle_state"] = "deleting", "deleting"


def _hidden(region: Region, one: str) -> bool:
    life = region.lives[one]
    return life.hidden_calls > 0 or region.conditions.clock.now() < life.hidden_until


def _part(asked: Resource, *path: str) -> Resource:
    for name in path:
        if not isinstance(asked.get(name), dict):
            raise ApiError(400, "missing_field", f"{name} is required", name)
        asked = asked[name]
    return asked


def _named(asked: Resource, field: str) -> str:
    return str(_part(asked, field).get("name", ""))


def _found(region: Region, kind: str, asked: Resource, field: str) -> Resource:
    return _existing(region, kind, str(_part(asked, field).get("id", "")))


def _existing(region: Region, kind: str, one: str) -> Resource:
    found = region.kinds[kind].get(one)
    if found is None:
        raise not_found(kind.removesuffix("s"), one)
    return found
