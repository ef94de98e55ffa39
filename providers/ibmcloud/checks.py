"""What is wrong with the configuration or the account, found without making anything."""

from __future__ import annotations

from collections.abc import Iterator

from providers.base import DeniedError, MissingError, Problem, ProviderError
from providers.checking import looked
from providers.ibmcloud.catalog import Catalog, Image, Subnet
from providers.ibmcloud.client import Vpc
from providers.ibmcloud.settings import IbmCloudKeys

_PROFILE = "IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME"
_PROFILES = "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST"
_IMAGE = "IBMCLOUD_PODVM_IMAGE_ID"
_SUBNET = "IBMCLOUD_VPC_SUBNET_ID"
_GROUPS = "IBMCLOUD_SECURITY_GROUP_IDS"
_HOSTS = "IBMCLOUD_DEDICATED_HOST_IDS"
_HOST_GROUPS = "IBMCLOUD_DEDICATED_HOST_GROUP_IDS"


def problems(vpc: Vpc, keys: IbmCloudKeys, catalog: Catalog) -> list[Problem]:
    """All problems at once. When the API cannot be asked at all, that alone."""
    refused = _access(vpc, keys)
    if refused:
        return [refused]
    found: list[Problem] = []
    images = [image for one in keys.image_ids if (image := looked(found, _IMAGE, lambda one=one: catalog.image(one)))]  # type: ignore[misc]
    if not keys.image_ids:
        found.append(Problem(_IMAGE, "is not set, and no image was built yet", image_missing=True))
    ids = looked(found, _SUBNET, catalog.subnet_ids) or ()
    subnets = [subnet for one in ids if (subnet := looked(found, _SUBNET, lambda one=one: catalog.subnet(one)))]  # type: ignore[misc]
    for key, check in (
        (_SUBNET, lambda: _network(vpc, keys, subnets)),
        (_GROUPS, lambda: _groups(vpc, keys, catalog, subnets)),
        ("IBMCLOUD_SSH_KEY_ID", lambda: _ssh_key(vpc, keys)),
        (_PROFILES, lambda: _profiles(keys, catalog, images, subnets)),
        (_HOSTS, lambda: _hosts(keys, catalog, subnets)),
    ):
        found += looked(found, key, lambda check=check: list(check())) or []  # type: ignore[misc]
    return found


def _access(vpc: Vpc, keys: IbmCloudKeys) -> Problem | None:
    """Whether the API can be reached and takes the credentials."""
    try:
        vpc.read("list_instances", limit=1)
    except DeniedError as error:
        return Problem("IBMCLOUD_API_KEY" if not keys.iam_profile_id else "IBMCLOUD_IAM_PROFILE_ID", str(error))
    except ProviderError as error:
        return Problem("IBMCLOUD_ZONE" if error.reason == "NoMetadata" else "IBMCLOUD_VPC_ENDPOINT", str(error))
    return None


def _network(vpc: Vpc, keys: IbmCloudKeys, subnets: list[Subnet]) -> Iterator[Problem]:
    if len({subnet.vpc for subnet in subnets}) > 1:
        listed = ", ".join(f"{subnet.id} in {subnet.vpc}" for subnet in subnets)
        yield Problem("IBMCLOUD_VPC_SUBNET_IDS", f"all subnets must be in one VPC; they are: {listed}")
    zones = sorted({subnet.zone for subnet in subnets})
    if keys.zone and subnets and keys.zone not in zones:
        yield Problem("IBMCLOUD_ZONE", f"{keys.zone!r} has none of the subnets; they are in: {', '.join(zones)}")
    if not keys.vpc_id:
        return
    try:
        vpc.read("get_vpc", id=keys.vpc_id)
    except MissingError:
        yield Problem("IBMCLOUD_VPC_ID", f"{keys.vpc_id!r} is no VPC in this region")
        return
    for subnet in subnets:
        if subnet.vpc != keys.vpc_id:
            yield Problem("IBMCLOUD_VPC_ID", f"{keys.vpc_id!r} is not the VPC of {subnet.id}, which is in {subnet.vpc}")


def _groups(vpc: Vpc, keys: IbmCloudKeys, catalog: Catalog, subnets: list[Subnet]) -> Iterator[Problem]:
    for group in keys.security_group_ids:
        try:
            found = vpc.read("get_security_group", id=group)
        except MissingError:
            yield Problem(_GROUPS, f"{group!r} is no security group in this region")
            continue
        if subnets and found["vpc"]["id"] != subnets[0].vpc:
            yield Problem(
                _GROUPS, f"{group!r} is in {found['vpc']['id']}, and the subnet {subnets[0].id} in {subnets[0].vpc}"
            )
    if keys.cluster_id and subnets:
        try:
            catalog.security_groups(subnets[0].vpc)
        except ProviderError as error:
            yield Problem("IBMCLOUD_CLUSTER_ID", str(error))


def _ssh_key(vpc: Vpc, keys: IbmCloudKeys) -> Iterator[Problem]:
    if keys.ssh_key_id:
        try:
            vpc.read("get_key", id=keys.ssh_key_id)
        except MissingError:
            yield Problem("IBMCLOUD_SSH_KEY_ID", f"{keys.ssh_key_id!r} is no key in this region")


def _profiles(keys: IbmCloudKeys, catalog: Catalog, images: list[Image], subnets: list[Subnet]) -> Iterator[Problem]:
    there = catalog.profiles()
    zones = sorted({subnet.zone for subnet in subnets})
    complete = len(images) == len(keys.image_ids)
    for name in keys.all_profiles:
        key = _PROFILE if name == keys.profile else _PROFILES
        profile = there.get(name)
        if profile is None:
            yield Problem(key, f"{name!r} is no instance profile in this region")
            continue
        if zones and profile.zones and not profile.zones.intersection(zones):
            yield Problem(key, f"{name!r} is offered in none of the subnets' zones: {', '.join(zones)}")
        if complete and profile.arch not in {image.arch for image in images}:
            have = ", ".join(f"{image.id} is {image.arch}" for image in images)
            yield Problem(key, f"{name!r} is {profile.arch}, and of the images of {_IMAGE} none is: {have}")
        unusable = profile.unusable(confidential=not keys.disable_cvm)
        if unusable:
            yield Problem(key, f"{name!r} {unusable}")


def _hosts(keys: IbmCloudKeys, catalog: Catalog, subnets: list[Subnet]) -> Iterator[Problem]:
    zones = sorted({subnet.zone for subnet in subnets})
    for key, look in ((_HOSTS, catalog.hosts), (_HOST_GROUPS, catalog.host_groups)):
        try:
            targets = look()
        except ProviderError as error:
            yield Problem(key, str(error))
            continue
        for target in targets:
            if zones and target.zone not in zones:
                yield Problem(key, f"{target.id!r} is in {target.zone}, and the subnets are in {', '.join(zones)}")
            unfit = [name for name in keys.all_profiles if target.profiles and name not in target.profiles]
            if unfit:
                yield Problem(key, f"{target.id!r} does not take: {', '.join(unfit)}")
