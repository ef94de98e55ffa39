"""Custom images: imported from object storage by their cos:// address, and available a while later."""

from __future__ import annotations

import re

from tests.clouds.ibm import catalog
from tests.clouds.ibm.errors import ApiError, bad_field, not_found, not_unique
from tests.clouds.ibm.instances import NAME
from tests.clouds.ibm.objectstorage import Buckets
from tests.clouds.ibm.region import Region, Resource

_HREF = re.compile(r"cos://(?P<region>[a-z0-9-]+)/(?P<bucket>[^/]+)/(?P<key>.+)")
_KNOWN = {"name", "file", "operating_system", "resource_group", "allowed_use"}
_GIB = 1 << 30


def add(
    region: Region, name: str, system: str, group: str = "", *, status: str = "available", size: int = 1
) -> Resource:
    """An image, however it came to be. `size` in GiB."""
    described = catalog.systems(region.base)[system]
    allowed = {"api_version": "2025-01-21", "bare_metal_server": "true", "instance": "true"}
    return region.add(
        "images",
        name,
        group,
        allowed_use=allowed,
        catalog_offering={"managed": False},
        encryption="none",
        file={"size": size},
        minimum_provisioned_size=max(10, size),
        operating_system=described,
        status=status,
        status_reasons=[],
        user_data_format="cloud_init",
        visibility="private",
        zones=[region.zone(zone) for zone in region.zones],
    )


def create(region: Region, buckets: Buckets, asked: Resource) -> Resource:
    """POST /images."""
    for key in asked:
        if key not in _KNOWN:
            raise bad_field(key, f"{key} is no property of an image")
    name = str(asked.get("name", ""))
    if not NAME.fullmatch(name):
        raise bad_field("name", f"{name!r} is no valid name")
    if any(one["name"] == name for one in region.kinds["images"].values()):
        raise not_unique(name)
    system = str(asked.get("operating_system", {}).get("name", ""))
    if system not in catalog.systems(""):
        raise ApiError(404, "operating_system_not_found", f"{system} is no operating system", "operating_system.name")
    place = _HREF.fullmatch(str(asked.get("file", {}).get("href", "")))
    if not place:
        raise bad_field("file.href", "file.href must be cos://REGION/BUCKET/KEY")
    content = buckets.content(place["bucket"], place["key"])
    if content is None:
        raise ApiError(404, "image_file_not_found", f"There is no object {place['bucket']}/{place['key']}", "file.href")
    size = -(-len(content) // _GIB)
    image = add(region, name, system, asked.get("resource_group", {}).get("id", ""), status="pending", size=size)
    image["file"] = {"size": size}
    image["_imported_at"] = region.conditions.clock.now()
    image["_usable"] = content[:4] == b"QFI\xfb"
    return image


def settle(region: Region) -> None:
    """Imports that are over by now; what is no qcow2 becomes unusable."""
    now = region.conditions.clock.now()
    for image in region.kinds["images"].values():
        if image["status"] == "pending" and now - image["_imported_at"] >= region.conditions.image_seconds:
            image["status"] = "available" if image["_usable"] else "failed"
            if not image["_usable"]:
                text = "The image file is not in qcow2 format"
                image["status_reasons"] = [{"code": "image_provision_failed", "message": text}]


def shown(image: Resource) -> Resource:
    """Without what the emulator notes for itself."""
    return {key: value for key, value in image.items() if not key.startswith("_")}


def delete(region: Region, one: str) -> None:
    if one not in region.kinds["images"]:
        raise not_found("image", one)
    del region.kinds["images"][one]
