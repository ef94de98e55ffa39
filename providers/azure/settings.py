"""The keys of the Azure provider. Needs no SDK."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, SecretStr

from providers.base import Market
from providers.keys import MARKETS, CsvList, Flag, Keys, Pairs

# Every tag of ours begins so, so that no other tool's tag is taken for one. Azure allows no "/" in a tag's name.
TAG_PREFIX = "peerpods-caa-"
# ARM's limits on tags: 50 on a resource, of which ours take 8; a disk's name may not be longer than this either.
_MOST_TAGS = 42
_LONGEST_TAG_NAME, _LONGEST_TAG_VALUE = 512, 256
_NOT_IN_A_TAG = re.compile(r"[<>%&\\?/]")
# Of any resource below a resource group.
_ID = r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.%s(?:/[^/]+)+"
# With a dash where the size has more cores than can be used, such as Standard_E4-2as_v5.
_SIZE = r"[A-Za-z]+_[\w-]+"
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_IMAGE = re.compile(
    rf"(?:{_ID % 'Compute'}|/CommunityGalleries/[^/]+/Images/[^/]+/Versions/[^/]+"
    r"|/SharedGalleries/[^/]+/Images/[^/]+/Versions/[^/]+)",
    re.IGNORECASE,
)


def _fit_for_arm(tags: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    # ARM compares names of tags without regard to case.
    names = [name.lower() for name, _ in tags]
    for name, text in tags:
        if name.lower().startswith((TAG_PREFIX, "azure", "microsoft", "windows")):
            raise ValueError(f"the tag {name!r} is set by the service or by Azure")
        if names.count(name.lower()) > 1:
            raise ValueError(f"the tag {name!r} is given more than once")
        if _NOT_IN_A_TAG.search(name):
            raise ValueError(rf"the tag {name!r} has one of <>%&\?/ in its name")
        if len(name) > _LONGEST_TAG_NAME or len(text) > _LONGEST_TAG_VALUE:
            raise ValueError(
                f"the tag {name!r} is too long: at most {_LONGEST_TAG_NAME} characters for a name and "
                f"{_LONGEST_TAG_VALUE} for a value"
            )
    if len(tags) > _MOST_TAGS:
        raise ValueError(f"must be at most {_MOST_TAGS} tags")
    return tags


def _id_of(kind: str, example: str) -> AfterValidator:
    pattern = re.compile(_ID % kind, re.IGNORECASE)

    def check(value: str) -> str:
        if value and not pattern.fullmatch(value):
            raise ValueError(f'must be a whole resource id such as "{example}"')
        return value

    return AfterValidator(check)


def _image(value: str) -> str:
    if value and not _IMAGE.fullmatch(value):
        raise ValueError(
            'must be the id of a managed image or of a gallery image version, beginning with "/subscriptions/", '
            '"/CommunityGalleries/" or "/SharedGalleries/"'
        )
    return value


def _sizes(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(_SIZE, value):
            raise ValueError('must be VM sizes such as "Standard_DC2as_v5,Standard_DC4as_v5"')
    return values


def _zones(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value not in ("1", "2", "3"):
            raise ValueError("must be of 1, 2 and 3, separated by commas")
    return tuple(dict.fromkeys(values))


_SUBNET = "/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Network/virtualNetworks/NET/subnets/NAME"
_NSG = "/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Network/networkSecurityGroups/NAME"
Tags = Annotated[Pairs, AfterValidator(_fit_for_arm)]


class AzureKeys(Keys):
    """Everything the Azure provider reads."""

    # Where running VMs are, and by which address they are reached.
    needs_restart: ClassVar[frozenset[str]] = frozenset(
        {"AZURE_SUBSCRIPTION_ID", "AZURE_REGION", "AZURE_RESOURCE_GROUP", "AZURE_RESOURCE_MANAGER", "USE_PUBLIC_IP"}
    )
    of_sdk: ClassVar[Mapping[str, str]] = {
        "AZURE_AUTHORITY_HOST": "Where access tokens are had, for other clouds than the public one.",
        "AZURE_FEDERATED_TOKEN_FILE": "The token of a workload identity; set by its webhook on Kubernetes.",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": "Where a managed identity's tokens are had, instead of at the worker's.",
    }

    client_id: str = Field(
        "",
        alias="AZURE_CLIENT_ID",
        description="Application or managed identity that asks; the worker's only managed identity if not set.",
    )
    client_secret: SecretStr = Field(
        SecretStr(""),
        alias="AZURE_CLIENT_SECRET",
        description="Its secret. Without one, workload identity is used where AZURE_FEDERATED_TOKEN_FILE is set, else "
        "the worker's managed identity.",
    )
    tenant_id: str = Field(
        "", alias="AZURE_TENANT_ID", description="Tenant of the application; with a secret or a workload identity."
    )
    subscription_id: str = Field(
        alias="AZURE_SUBSCRIPTION_ID", pattern=f"^{_UUID}$", description="Subscription of the pod VMs."
    )
    region: str = Field(
        alias="AZURE_REGION", pattern=r"^[a-z0-9]+$", description="Region of the pod VMs, such as westeurope."
    )
    resource_group: str = Field(
        alias="AZURE_RESOURCE_GROUP",
        pattern=r"^[\w().-]*[\w()-]$",
        max_length=90,
        description="Resource group that all is made in. It must exist.",
    )
    subnet_id: Annotated[str, _id_of("Network", _SUBNET)] = Field(
        alias="AZURE_SUBNET_ID", min_length=1, description=f"Subnet of the pod VMs: {_SUBNET}."
    )
    nsg_id: Annotated[str, _id_of("Network", _NSG)] = Field(
        "",
        alias="AZURE_NSG_ID",
        description="Network security group of the pod VMs' interfaces; the subnet's if not set.",
    )
    image_id: Annotated[str, AfterValidator(_image)] = Field(
        "",
        alias="AZURE_IMAGE_ID",
        description="Image that pod VMs boot from: the id of a managed image, of a gallery image version, or "
        "/CommunityGalleries/GALLERY/Images/IMAGE/Versions/VERSION; without one it is built.",
    )
    size: str = Field(
        "Standard_DC2as_v5",
        alias="AZURE_INSTANCE_SIZE",
        pattern=f"^{_SIZE}$",
        description="VM size of a pod that asks for none.",
    )
    sizes: Annotated[CsvList, AfterValidator(_sizes)] = Field(
        (),
        alias="AZURE_INSTANCE_SIZES",
        description="VM sizes that pods may have beside AZURE_INSTANCE_SIZE, separated by commas.",
    )
    zones: Annotated[CsvList, AfterValidator(_zones)] = Field(
        (),
        alias="AZURE_ZONES",
        description="Availability zones of the pod VMs, 1 to 3, separated by commas; without any, Azure chooses.",
    )
    market: Literal["on-demand", "spot", "spot-then-on-demand"] = Field(
        "on-demand", alias="PODVM_MARKET", description="How capacity is bought."
    )
    ssh_username: str = Field(
        "peerpod",
        alias="SSH_USERNAME",
        pattern=r"^[a-z_][a-z0-9_-]*$",
        max_length=32,
        description="The account that Azure makes in the pod VM. It has a key that nobody has the private half of.",
    )
    disable_cvm: Flag = Field(
        False, alias="DISABLECVM", description="false makes confidential VMs, true ordinary ones with trusted launch."
    )
    secure_boot: Flag = Field(
        False, alias="ENABLE_SECURE_BOOT", description="Boot only what is signed by keys that the image's firmware has."
    )
    disk_encryption: Literal["VMGuestStateOnly", "DiskWithVMGuestState", "NonPersistedTPM"] = Field(
        "VMGuestStateOnly",
        alias="AZURE_DISK_ENCRYPTION_TYPE",
        description="Of confidential VMs: what Azure encrypts with a key of the platform before it boots them.",
    )
    use_public_ip: Flag = Field(
        False, alias="USE_PUBLIC_IP", description="Give pod VMs public addresses and reach them there."
    )
    root_volume_size: int = Field(
        0,
        alias="ROOT_VOLUME_SIZE",
        ge=0,
        le=4095,  # of an OS disk
        description="Size of the root disk in GiB; 0 is the image's own.",
    )
    gallery_name: str = Field(
        "",
        alias="IMAGE_GALLERY_NAME",
        pattern=r"^[A-Za-z0-9_.]{0,80}$",
        description="Gallery of images that are built; one named after the cluster if not set.",
    )
    definition_name: str = Field(
        "",
        alias="IMAGE_DEFINITION_NAME",
        pattern=r"^[A-Za-z0-9_.-]{0,80}$",
        description="Image definition in it; one for each architecture and security type if not set.",
    )
    tags: Tags = Field((), alias="TAGS", description="More tags for all that is made: name=value, separated by commas.")
    resource_manager: str = Field(
        "https://management.azure.com",
        alias="AZURE_RESOURCE_MANAGER",
        pattern=r"^https://[^/]+$",
        description="Where Azure Resource Manager is, for other clouds than the public one.",
    )

    @property
    def all_sizes(self) -> tuple[str, ...]:
        """The default size first, each once."""
        return tuple(dict.fromkeys((self.size, *self.sizes)))

    @property
    def markets(self) -> tuple[Market, ...]:
        """The preferred one first."""
        return MARKETS[self.market]


KEYS = AzureKeys
