"""What is wrong with the configuration or the subscription, found without making anything."""

from __future__ import annotations

from collections.abc import Iterator

from providers.azure.catalog import Catalog, Image, Size
from providers.azure.client import Arm
from providers.azure.names import parts_of
from providers.azure.settings import AzureKeys
from providers.base import DeniedError, InvalidRequestError, MissingError, Problem, ProviderError
from providers.checking import looked

_SIZES = "AZURE_INSTANCE_SIZES"
_IMAGE = "AZURE_IMAGE_ID"


def problems(arm: Arm, keys: AzureKeys, catalog: Catalog) -> list[Problem]:
    """All problems at once. When Azure cannot be asked at all, that alone."""
    refused = _access(arm, keys)
    if refused:
        return [refused]
    found: list[Problem] = []
    image = None
    if keys.image_id:
        image = looked(found, _IMAGE, lambda: catalog.image(keys.image_id))
    else:
        found.append(Problem(_IMAGE, "is not set, and no image was built yet", image_missing=True))
    for key, check in (
        (_IMAGE, lambda: _image(keys, image)),
        ("AZURE_SUBNET_ID", lambda: _network(arm, keys)),
        (_SIZES, lambda: _sizes(keys, catalog.sizes(), image)),
    ):
        found += looked(found, key, lambda check=check: list(check())) or []  # type: ignore[misc]
    return found


def shortages(keys: AzureKeys, catalog: Catalog) -> list[Problem]:
    """A problem for each size and market that a quota does not allow another of."""
    found = []
    for size in catalog.sizes().values():
        for market in keys.markets:
            why = catalog.short(size, market)
            if why:
                text = f"{size.name!r} ({market.value}): {why}; ask Azure for more, or choose another family"
                found.append(Problem(_key(keys, size.name), text))
    return found


def _access(arm: Arm, keys: AzureKeys) -> Problem | None:
    """Whether ARM can be reached, takes the credentials, and has the resource group."""
    try:
        next(iter(arm.listed("compute", "virtual_machines", keys.resource_group)), None)
    except DeniedError as error:
        return Problem("AZURE_SUBSCRIPTION_ID" if "Subscription" in error.reason else "AZURE_CLIENT_ID", str(error))
    except (MissingError, InvalidRequestError) as error:
        return Problem("AZURE_RESOURCE_GROUP", str(error))
    except ProviderError as error:
        return Problem("AZURE_RESOURCE_MANAGER", str(error))
    return None


def _image(keys: AzureKeys, image: Image | None) -> Iterator[Problem]:
    if image is None:
        return
    if not keys.disable_cvm and image.arch and not image.confidential:
        yield Problem(
            _IMAGE,
            f"{image.id} is not for confidential VMs (the definition's SecurityType is {image.security or 'not set'}); "
            "choose another image, or DISABLECVM=true",
        )
    if keys.secure_boot and keys.disable_cvm and image.arch and not image.trusted_launch:
        yield Problem("ENABLE_SECURE_BOOT", f"is not to be had with {image.id}, which is not for trusted launch")


def _network(arm: Arm, keys: AzureKeys) -> Iterator[Problem]:
    parts = parts_of(keys.subnet_id)
    mine = keys.subscription_id.lower()
    if parts["subscriptions"].lower() != mine:
        yield Problem("AZURE_SUBNET_ID", f"{keys.subnet_id} is in another subscription than the pod VMs")
    else:
        try:
            network = arm.get("network", "virtual_networks", parts["resourcegroups"], parts["virtualnetworks"])
            subnets = {str(one.get("name", "")).lower() for one in network.get("properties", {}).get("subnets") or []}
            if parts["subnets"].lower() not in subnets:
                yield Problem("AZURE_SUBNET_ID", f"{keys.subnet_id} is no subnet of its network")
            if network.get("location") != keys.region:
                yield Problem(
                    "AZURE_SUBNET_ID",
                    f"{keys.subnet_id} is in {network.get('location')}, and the pod VMs are to be in {keys.region}",
                )
        except MissingError:
            yield Problem("AZURE_SUBNET_ID", f"{keys.subnet_id} is in no network that can be seen")
    if keys.nsg_id:
        parts = parts_of(keys.nsg_id)
        try:
            group = (parts["resourcegroups"], parts["networksecuritygroups"])
            arm.get("network", "network_security_groups", *group)
        except MissingError:
            yield Problem("AZURE_NSG_ID", f"{keys.nsg_id} is no network security group that can be seen")


def _sizes(keys: AzureKeys, sizes: dict[str, Size], image: Image | None) -> Iterator[Problem]:
    for name in keys.all_sizes:
        key, size = _key(keys, name), sizes.get(name)
        if size is None:
            yield Problem(key, f"{name!r} is no VM size in {keys.region}")
            continue
        whys = {size.unusable(keys, zone) for zone in keys.zones or ("",)}
        if "" not in whys:
            yield Problem(key, f"{name!r} {'; '.join(sorted(whys))}")
        if image and image.arch and size.arch != image.arch:
            yield Problem(key, f"{name!r} is {size.arch}, and the image AZURE_IMAGE_ID={image.id} is {image.arch}")
        if image and image.generation and size.generations and image.generation not in size.generations:
            boots = ", ".join(sorted(size.generations))
            yield Problem(
                key, f"{name!r} boots images of generation {boots}, and AZURE_IMAGE_ID={image.id} is {image.generation}"
            )
        if image and image.trusted_launch and keys.disable_cvm and not size.trusted_launch:
            yield Problem(key, f"{name!r} has no trusted launch, which VMs of AZURE_IMAGE_ID={image.id} are made with")
        if not size.spot and keys.market == "spot":
            yield Problem("PODVM_MARKET", f"'spot' does not go with {name!r}, which is sold on demand only")


def _key(keys: AzureKeys, size: str) -> str:
    return "AZURE_INSTANCE_SIZE" if size == keys.size else _SIZES
