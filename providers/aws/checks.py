"""What is wrong with the configuration or the account, found without making anything."""

from __future__ import annotations

from collections.abc import Iterator

from providers.aws.catalog import Catalog, Image, Subnet
from providers.aws.client import Ec2
from providers.aws.parameters import Place, run_instances
from providers.aws.settings import AwsKeys
from providers.base import (
    DeniedError,
    InvalidRequestError,
    LaunchRequest,
    Market,
    Offering,
    Owner,
    Problem,
    ProviderError,
)
from providers.checking import looked

# EC2's answer to a dry run that would have worked.
_WOULD_WORK = "DryRunOperation"
_TYPES = "PODVM_INSTANCE_TYPES"


def problems(ec2: Ec2, keys: AwsKeys, catalog: Catalog) -> list[Problem]:
    """All problems at once. When EC2 cannot be asked at all, that alone."""
    refused = _access(ec2, keys)
    if refused:
        return [refused]
    found: list[Problem] = []
    image = looked(found, "PODVM_AMI_ID", lambda: catalog.image(keys.ami_id)) if keys.ami_id else None
    if not keys.ami_id:
        found.append(Problem("PODVM_AMI_ID", "is not set, and no image was built yet", image_missing=True))
    subnets = looked(found, "AWS_SUBNET_ID", catalog.subnets) or ()
    groups = looked(found, "AWS_SG_IDS", catalog.security_groups) or ()
    for key, check in (
        ("AWS_SUBNET_ID", lambda: _subnets(catalog, subnets)),
        ("AWS_SG_IDS", lambda: _groups(ec2, groups, subnets)),
        ("SSH_KP_NAME", lambda: _key_pair(ec2, keys)),
        ("PODVM_LAUNCHTEMPLATE_NAME", lambda: _launch_template(ec2, keys)),
        (_TYPES, lambda: _types(keys, catalog, image, subnets)),
    ):
        found += looked(found, key, lambda check=check: list(check())) or []  # type: ignore[misc]
    if not found and image and subnets:
        found += looked(found, "", lambda: _launching(ec2, keys, catalog, image, subnets[0])) or []
    return found


def _access(ec2: Ec2, keys: AwsKeys) -> Problem | None:
    """Whether EC2 can be reached and takes the credentials."""
    try:
        ec2.read("describe_instances", DryRun=True)
    except InvalidRequestError as error:
        return None if error.reason == _WOULD_WORK else Problem("", str(error))
    except DeniedError as error:
        key = "AWS_ACCESS_KEY_ID" if keys.access_key_id.get_secret_value() or not keys.profile else "AWS_PROFILE"
        return Problem(key, str(error))
    except ProviderError as error:
        return Problem("AWS_REGION", str(error))
    return None


def _subnets(catalog: Catalog, subnets: tuple[Subnet, ...]) -> Iterator[Problem]:
    there = {subnet.id for subnet in subnets}
    for subnet_id in catalog.subnet_ids():
        if subnet_id not in there:
            yield Problem("AWS_SUBNET_ID", f"{subnet_id!r} (here or in AWS_SUBNET_IDS) is no subnet in this region")
    if len({subnet.vpc for subnet in subnets}) > 1:
        listed = ", ".join(f"{subnet.id} in {subnet.vpc}" for subnet in subnets)
        yield Problem("AWS_SUBNET_IDS", f"all subnets must be in one VPC, as security groups are; they are: {listed}")


def _groups(ec2: Ec2, groups: tuple[str, ...], subnets: tuple[Subnet, ...]) -> Iterator[Problem]:
    if not groups:
        return
    wanted = [{"Name": "group-id", "Values": list(groups)}]
    vpcs = {
        found["GroupId"]: found.get("VpcId", "")
        for found in ec2.pages("describe_security_groups", "SecurityGroups", Filters=wanted)
    }
    for group in groups:
        if group not in vpcs:
            yield Problem("AWS_SG_IDS", f"{group!r} is no security group in this region")
        elif subnets and vpcs[group] != subnets[0].vpc:
            yield Problem(
                "AWS_SG_IDS", f"{group!r} is in {vpcs[group]}, and the subnet {subnets[0].id} in {subnets[0].vpc}"
            )


def _key_pair(ec2: Ec2, keys: AwsKeys) -> Iterator[Problem]:
    if keys.key_pair:
        wanted = [{"Name": "key-name", "Values": [keys.key_pair]}]
        if not ec2.read("describe_key_pairs", Filters=wanted).get("KeyPairs"):
            yield Problem("SSH_KP_NAME", f"{keys.key_pair!r} is no key pair in this region")


def _launch_template(ec2: Ec2, keys: AwsKeys) -> Iterator[Problem]:
    if not keys.use_launch_template:
        return
    key, name = "PODVM_LAUNCHTEMPLATE_NAME", keys.launch_template
    versions = ec2.read(
        "describe_launch_template_versions", {"template": name}, LaunchTemplateName=name, Versions=["$Default"]
    ).get("LaunchTemplateVersions", [])
    if not versions:
        yield Problem(key, f"{name!r} is no launch template in this region")
        return
    data = versions[0].get("LaunchTemplateData", {})
    if data.get("SecurityGroupIds") or data.get("SecurityGroups"):
        yield Problem(
            key,
            f"{name!r} has security groups of the instance, which EC2 takes only without network interfaces; put them "
            "into the template's network interface, or into AWS_SG_IDS",
        )
    if data.get("InstanceMarketOptions") and Market.ON_DEMAND in keys.markets:
        yield Problem(key, f"{name!r} asks for spot instances, which a launch cannot undo; set PODVM_MARKET=spot")


def _types(keys: AwsKeys, catalog: Catalog, image: Image | None, subnets: tuple[Subnet, ...]) -> Iterator[Problem]:
    types = catalog.types()
    offered = catalog.zones_of_types() if subnets else set()
    zones = sorted({subnet.zone for subnet in subnets})
    for name in keys.all_types:
        key = "PODVM_INSTANCE_TYPE" if name == keys.instance_type else _TYPES
        if name not in types:
            yield Problem(key, f"{name!r} is no instance type in this region")
            continue
        kind = types[name]
        if zones and not any((name, zone) in offered for zone in zones):
            yield Problem(key, f"{name!r} is offered in none of the subnets' zones: {', '.join(zones)}")
        if image and image.arch and kind.arch != image.arch:
            yield Problem(key, f"{name!r} is {kind.arch}, and the image PODVM_AMI_ID={image.id} is {image.arch}")
        if not keys.disable_cvm and not kind.snp:
            yield Problem(
                key,
                f"{name!r} cannot run confidential VMs (AMD SEV-SNP); choose others such as m6a, or DISABLECVM=true",
            )
        if not kind.markets.intersection(keys.markets):
            sold = ", ".join(sorted(kind.markets)) or "neither"
            yield Problem("PODVM_MARKET", f"{keys.market!r} does not go with {name!r}, which is sold {sold}")


def _launching(ec2: Ec2, keys: AwsKeys, catalog: Catalog, image: Image, subnet: Subnet) -> list[Problem]:
    """A launch as a dry run: EC2 says whether the credentials may make and tag all of it, and makes nothing."""
    request = LaunchRequest(
        name="podvm-dry-run",
        token="dry-run",  # noqa: S106  # of a launch, and no secret
        owner=Owner("dry-run", "dry-run", "dry-run", "dry-run", "dry-run", 1),
        offering=Offering(keys.instance_type, subnet.zone, 0, 0, market=keys.markets[0]),
        user_data=b"",
    )
    place = Place(image, subnet, catalog.security_groups(), catalog.key_pair())
    try:
        ec2.read("run_instances", DryRun=True, **run_instances(request, keys, place))
    except InvalidRequestError as error:
        return [] if error.reason == _WOULD_WORK else [Problem("", str(error))]
    except DeniedError as error:
        return [Problem("AWS_ACCESS_KEY_ID", str(error))]
    return []
