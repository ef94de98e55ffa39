"""What Azure has of what the configuration names: images and VM sizes with their zones, features and quotas."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from providers.azure.client import Arm
from providers.azure.names import parts_of
from providers.azure.settings import AzureKeys
from providers.base import DeniedError, InvalidRequestError, Market, MissingError, Offering, QuotaError, Scope

WITHOUT_CVM = "does not run confidential VMs, and DISABLECVM is false"
_ARCHITECTURES = {"x64": "x86_64", "arm64": "arm64"}
# Names of families have the GPU's in them; SKUs do not tell it otherwise. The longer ones first.
_GPU = re.compile(r"(MI300X|H200|H100|A100|V100|P100|V620|V710|A10|T4|M60|K80|P40)", re.IGNORECASE)
# Usages change with every launch of anybody. Asked anew for each, 500 launches a minute would need as many lists.
USAGE_SECONDS = 10.0
QUOTA_SECONDS = 600.0
# Of usages: all cores of a region, and those of spot VMs, which have no families.
_ALL_CORES, _SPOT_CORES = "cores", "lowPriorityCores"


@dataclass(frozen=True, slots=True)
class Image:
    """What a launch must know of its image. `security` is what the gallery says of it."""

    id: str
    arch: str = ""  # "" when it is in another subscription, where nothing may be read
    generation: str = ""  # V1 or V2
    specialized: bool = False
    security: str = ""  # as in the feature SecurityType, such as TrustedLaunchSupported

    @property
    def trusted_launch(self) -> bool:
        """Whether a VM with trusted launch boots from it."""
        return self.security.startswith("TrustedLaunch")

    @property
    def confidential(self) -> bool:
        """Whether a confidential VM boots from it."""
        return "Confidential" in self.security


@dataclass(frozen=True, slots=True)
class Size:
    """What a VM size has. `barred` is why it cannot be had in a zone ("" stands for the region)."""

    name: str
    family: str
    vcpus: int
    memory_mib: int
    arch: str
    gpus: int
    gpu_model: str
    confidential: bool
    spot: bool
    premium: bool  # takes premium disks, which root disks are
    generations: frozenset[str]  # of images that it boots, V1 and V2; empty when not told
    trusted_launch: bool
    zones: frozenset[str]
    barred: Mapping[str, str]

    def unusable(self, keys: AzureKeys, zone: str) -> str:
        """Why ARM would refuse it as things are, in words that follow its name; "" when it would not."""
        if not keys.disable_cvm and not self.confidential:
            return WITHOUT_CVM
        if not self.premium:
            return "takes no premium disks"
        if zone and zone not in self.zones:
            return f"is not in zone {zone} of {keys.region}"
        return self.barred.get(zone) or self.barred.get("", "")


class Catalog:
    """Lookups that several threads share. Images never change in what is read of them here."""

    def __init__(self, arm: Arm, keys: AzureKeys, clock: Callable[[], float]) -> None:
        self._arm = arm
        self._keys = keys
        self._clock = clock
        self._images: dict[str, Image] = {}
        self._sizes: dict[str, Size] = {}
        self._usage_lock = threading.Lock()
        self._usages: tuple[float, dict[str, tuple[int, int]]] | None = None

    def image(self, image_id: str) -> Image:
        """Raises InvalidRequestError when there is no such image."""
        known = self._images.get(image_id)
        if known is None:
            if not image_id:
                raise InvalidRequestError("ImageMissing", "AZURE_IMAGE_ID is not set, and no image was built yet")
            try:
                known = self._looked_up(image_id)
            except (MissingError, InvalidRequestError) as error:  # the latter for a resource group that is not there
                raise InvalidRequestError(
                    "ImageMissing", f"AZURE_IMAGE_ID={image_id} is no image that can be seen: {error}"
                ) from error
            except DeniedError as error:
                # ARM wants the right to use an image, which is less than the right to read about it.
                if error.reason != "AccessDenied" or not self._elsewhere(image_id):
                    raise
                known = Image(image_id)
            self._images[image_id] = known
        return known

    def _elsewhere(self, image_id: str) -> bool:
        """Whether an image belongs to another subscription than the pod VMs."""
        owner = parts_of(image_id).get("subscriptions", "")
        return bool(owner) and owner.lower() != self._keys.subscription_id.lower()

    def _looked_up(self, image_id: str) -> Image:
        parts, keys, get = parts_of(image_id), self._keys, self._arm.get
        about = {"instance": image_id}
        if "communitygalleries" in parts:
            place = (keys.region, parts["communitygalleries"], parts["images"])
            return _of_gallery(image_id, get("compute", "community_gallery_images", *place, about=about))
        if "sharedgalleries" in parts:
            place = (keys.region, parts["sharedgalleries"], parts["images"])
            return _of_gallery(image_id, get("compute", "shared_gallery_images", *place, about=about))
        group, owner = parts["resourcegroups"], parts["subscriptions"]
        about |= {"resource_group": group, "subscription": owner}
        if "galleries" not in parts:
            found = get("compute", "images", group, parts["images"], about=about, subscription=owner)
            generation = found.get("properties", {}).get("hyperVGeneration", "V1")
            return Image(image_id, "x86_64", generation)
        definition = (group, parts["galleries"], parts["images"])
        if "versions" in parts:
            version = parts["versions"]
            get("compute", "gallery_image_versions", *definition, version, about=about, subscription=owner)
        found = get("compute", "gallery_images", *definition, about=about, subscription=owner)
        return _of_gallery(image_id, found)

    def sizes(self) -> dict[str, Size]:
        """All configured sizes that the region knows, whether they can be had or not."""
        wanted = {name.lower(): name for name in self._keys.all_sizes}
        found = {}
        for sku in self._arm.listed("compute", "resource_skus", filter=f"location eq '{self._keys.region}'"):
            name = wanted.get(str(sku.get("name", "")).lower())
            if sku.get("resourceType") == "virtualMachines" and name:
                found[name] = _size(name, sku)
        self._sizes = found
        return found

    def offerings(self) -> Sequence[Offering]:
        """Size x zone x market; what ARM would refuse as things are is marked as unusable."""
        keys = self._keys
        return [
            Offering(
                instance_type=size.name,
                zone=zone,
                vcpus=size.vcpus,
                memory_mib=size.memory_mib,
                market=market,
                arch=size.arch,
                gpus=size.gpus,
                gpu_model=size.gpu_model,
                unusable=size.unusable(keys, zone) or ("" if size.spot or market is not Market.SPOT else "has no spot"),
            )
            for size in self.sizes().values()
            for zone in keys.zones or ("",)
            for market in keys.markets
        ]

    # Quotas

    def check_quota(self, offering: Offering) -> None:
        """Raises QuotaError, as ARM would answer the PUT; so ARM is not asked for what it would refuse."""
        size = self._sizes.get(offering.instance_type) or self.sizes().get(offering.instance_type)
        if size is None:
            return
        for name, used, limit in self._counted(size, offering.market):
            if used + size.vcpus > limit:
                text = (
                    f"the quota {name} allows {limit} vCPUs in {self._keys.region}, of which {used} are used: too few "
                    f"are left for another {size.name}; ask Azure to raise it"
                )
                raise QuotaError("QuotaExceeded", text, Scope.TYPE, QUOTA_SECONDS)

    def short(self, size: Size, market: Market) -> str:
        """Which quota does not allow another of this size, in a sentence; "" when all do."""
        for name, used, limit in self._counted(size, market):
            if used + size.vcpus > limit:
                return f"the quota {name} allows {limit} vCPUs in {self._keys.region}, and {used} are used"
        return ""

    def _counted(self, size: Size, market: Market) -> Iterable[tuple[str, int, int]]:
        usages = self._usage()
        for name in (_SPOT_CORES,) if market is Market.SPOT else (_ALL_CORES, size.family):
            if name.lower() in usages:
                used, limit = usages[name.lower()]
                yield name, used, limit

    def _usage(self) -> dict[str, tuple[int, int]]:
        """(used, limit) by quota. One list at a time, for all who want one."""
        with self._usage_lock:
            if self._usages is None or self._clock() - self._usages[0] >= USAGE_SECONDS:
                listed = self._arm.listed("compute", "usage", self._keys.region)
                found = {
                    str(one["name"]["value"]).lower(): (int(one["currentValue"]), int(one["limit"])) for one in listed
                }
                self._usages = (self._clock(), found)
            return self._usages[1]


def _of_gallery(image_id: str, found: Mapping[str, Any]) -> Image:
    about = found.get("properties", {})
    features = {one.get("name"): one.get("value", "") for one in about.get("features") or []}
    return Image(
        image_id,
        _ARCHITECTURES.get(str(about.get("architecture") or "x64").lower(), ""),
        about.get("hyperVGeneration", "V1"),
        about.get("osState") == "Specialized",
        str(features.get("SecurityType", "")),
    )


def _size(name: str, sku: Mapping[str, Any]) -> Size:
    has = {one["name"]: one["value"] for one in sku.get("capabilities") or []}
    places = sku.get("locationInfo") or [{}]
    model = _GPU.search(str(sku.get("family", ""))) if int(has.get("GPUs", 0)) else None
    return Size(
        name=name,
        family=str(sku.get("family", "")),
        vcpus=int(has.get("vCPUsAvailable") or has.get("vCPUs", 0)),
        memory_mib=int(float(has.get("MemoryGB", 0)) * 1024),
        arch=_ARCHITECTURES.get(str(has.get("CpuArchitectureType", "x64")).lower(), ""),
        gpus=int(has.get("GPUs", 0)),
        gpu_model=model[1].upper() if model else "",
        confidential=bool(has.get("ConfidentialComputingType")),
        spot=_said(has, "LowPriorityCapable") == "true",
        premium=_said(has, "PremiumIO") != "false",
        generations=frozenset(filter(None, str(has.get("HyperVGenerations", "")).split(","))),
        trusted_launch=_said(has, "TrustedLaunchDisabled") != "true",
        zones=frozenset(places[0].get("zones") or ()),
        barred=dict(_barred(sku)),
    )


def _said(has: Mapping[str, Any], capability: str) -> str:
    return str(has.get(capability, "")).lower()


def _barred(sku: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for one in sku.get("restrictions") or []:
        why = (
            "may not be used by this subscription"
            if one.get("reasonCode") == "NotAvailableForSubscription"
            else "is not allowed by the subscription's offer"
        )
        if one.get("type") == "Zone":
            for zone in one.get("restrictionInfo", {}).get("zones") or []:
                yield zone, f"{why} in zone {zone}"
        else:
            yield "", f"{why} in this region"
