"""The one create call of a launch. Pure: the same request and place give the same bytes on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from providers.base import InvalidRequestError, LaunchRequest
from providers.ibmcloud.catalog import Image, Profile, Subnet
from providers.ibmcloud.owner import network_attachment, user_tags, volume_attachment
from providers.ibmcloud.settings import IbmCloudKeys

# As IBM Cloud's page on user data has it.
USER_DATA_LIMIT = 64 * 1024
# One hop ends in the pod VM itself: a pod in its own network namespace reaches nothing of the VM's metadata.
METADATA_HOPS = 1
VOLUME_PROFILE = "general-purpose"


@dataclass(frozen=True, slots=True)
class Place:
    """What a launch takes from the account. `target` is a dedicated host or host group; "" for none."""

    image: Image
    profile: Profile
    subnet: Subnet
    groups: tuple[str, ...]
    target: str = ""


def check_request(request: LaunchRequest) -> None:
    """Raises InvalidRequestError for a request that does not go into a create call, whatever is configured."""
    network_attachment(request)
    size = len(request.user_data)
    if size > USER_DATA_LIMIT:
        raise InvalidRequestError(
            "UserDataTooLarge",
            f"the user data of {request.name!r} has {size} bytes, and IBM Cloud takes at most {USER_DATA_LIMIT}; "
            "initdata (INITDATA, or the pod's annotation) is the part that grows",
        )


def check_place(place: Place) -> None:
    """Raises InvalidRequestError naming image and profile when they do not go together."""
    image, profile = place.image, place.profile
    if image.arch != profile.arch:
        raise InvalidRequestError(
            "ArchitectureMismatch",
            f"the profile {profile.name} is {profile.arch}, and the image {image.id} is {image.arch}",
        )
    if image.secure_execution and not profile.secure_execution:
        raise InvalidRequestError(
            "ArchitectureMismatch",
            f"the image {image.id} ({image.system}) boots with Secure Execution only, which the profile "
            f"{profile.name} does not have; choose one such as bz2e-2x8",
        )


def instance_prototype(request: LaunchRequest, keys: IbmCloudKeys, place: Place) -> dict[str, Any]:
    """The body of the create call.

    All that comes with the instance is spelled out and goes with it; interface and volume have its name.
    """
    prototype: dict[str, Any] = {
        "name": request.name,
        "profile": {"name": place.profile.name},
        "image": {"id": place.image.id},
        "zone": {"name": place.subnet.zone},
        "vpc": {"id": keys.vpc_id or place.subnet.vpc},
        "user_data": request.user_data.decode(),
        "primary_network_attachment": {
            "name": network_attachment(request),
            "virtual_network_interface": _interface(request, place),
        },
        "boot_volume_attachment": {
            "name": volume_attachment(request),
            "delete_volume_on_instance_delete": True,
            "volume": {
                "name": request.name,
                "profile": {"name": VOLUME_PROFILE},
                "user_tags": user_tags(request, keys.tags),
            },
        },
        "metadata_service": {"enabled": True, "protocol": "https", "response_hop_limit": METADATA_HOPS},
        # A pod VM never comes back by itself: its sandbox is over when it stops.
        "availability_policy": {"host_failure": "stop"},
    }
    if keys.resource_group_id:
        prototype["resource_group"] = {"id": keys.resource_group_id}
    if keys.ssh_key_id:
        prototype["keys"] = [{"id": keys.ssh_key_id}]
    if place.target:
        prototype["placement_target"] = {"id": place.target}
    if place.profile.arch == "x86_64" and place.profile.tdx:
        # On s390x confidential is what the profile is, and not a mode.
        prototype["confidential_compute_mode"] = "disabled" if keys.disable_cvm else "tdx"
        prototype["enable_secure_boot"] = not keys.disable_cvm
    return prototype


def _interface(request: LaunchRequest, place: Place) -> dict[str, Any]:
    interface: dict[str, Any] = {
        "name": request.name,
        "subnet": {"id": place.subnet.id},
        "auto_delete": True,
        # As the API has it by default; said, for it is what keeps a pod VM from taking another's address.
        "allow_ip_spoofing": False,
    }
    if place.groups:
        interface["security_groups"] = [{"id": group} for group in place.groups]
    return interface
