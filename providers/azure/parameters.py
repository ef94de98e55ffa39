"""The one PUT of a launch. Pure: the same request and place give the same body."""

from __future__ import annotations

import base64
from typing import Any

from providers.azure.catalog import Image
from providers.azure.names import Names, tags_of
from providers.azure.settings import AzureKeys
from providers.base import InvalidRequestError, LaunchRequest, Market

# ARM's limit is 64 KiB of base64, which is so much before.
USER_DATA_LIMIT = 64 * 1024 // 4 * 3
# The API version by which Compute makes the interface and the address that are written inside the VM.
NETWORK_API_VERSION = "2022-11-01"


def check_user_data(request: LaunchRequest) -> None:
    """Raises InvalidRequestError naming size and limit."""
    size = len(request.user_data)
    if size > USER_DATA_LIMIT:
        raise InvalidRequestError(
            "UserDataTooLarge",
            f"the user data of {request.name!r} has {size} bytes, and Azure takes at most {USER_DATA_LIMIT}; "
            "initdata (INITDATA, or the pod's annotation) is the part that grows",
        )


def virtual_machine(request: LaunchRequest, keys: AzureKeys, image: Image, ssh_key: str) -> dict[str, Any]:
    """The VM with its interface, disk and perhaps public address, all of which go when it goes."""
    tags = tags_of(request, keys.tags)
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": request.offering.instance_type},
        "storageProfile": _storage(request, keys, image),
        "networkProfile": _network(request, keys, tags),
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": True}},
        "userData": base64.b64encode(request.user_data).decode(),
    }
    if not image.specialized:  # Azure takes no account for one that is
        properties["osProfile"] = _account(request, keys, ssh_key)
    security = "ConfidentialVM" if not keys.disable_cvm else "TrustedLaunch" if image.trusted_launch else ""
    if security:
        uefi = {"secureBootEnabled": keys.secure_boot, "vTpmEnabled": True}
        properties["securityProfile"] = {"securityType": security, "uefiSettings": uefi}
    if request.offering.market is Market.SPOT:
        # An evicted VM is of no more use, and stopped it would cost its disk for ever. -1: up to the price on demand.
        properties |= {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": -1}}
    body: dict[str, Any] = {"location": keys.region, "tags": tags, "properties": properties}
    if request.offering.zone:
        body["zones"] = [request.offering.zone]
    return body


def _account(request: LaunchRequest, keys: AzureKeys, ssh_key: str) -> dict[str, Any]:
    path = f"/home/{keys.ssh_username}/.ssh/authorized_keys"
    return {
        "computerName": request.name,
        "adminUsername": keys.ssh_username,
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "ssh": {"publicKeys": [{"path": path, "keyData": ssh_key}]},
        },
        # Nobody may run anything in a pod VM by way of Azure's agent.
        "allowExtensionOperations": False,
    }


def _storage(request: LaunchRequest, keys: AzureKeys, image: Image) -> dict[str, Any]:
    disk: dict[str, Any] = {
        "name": Names(request.name).disk,
        "osType": "Linux",
        "createOption": "FromImage",
        "caching": "ReadWrite",
        "deleteOption": "Delete",
        "managedDisk": {"storageAccountType": "Premium_LRS"},
    }
    if keys.root_volume_size:
        disk["diskSizeGB"] = keys.root_volume_size
    if not keys.disable_cvm:
        disk["managedDisk"]["securityProfile"] = {"securityEncryptionType": keys.disk_encryption}
    return {"imageReference": image_reference(image.id), "osDisk": disk}


def image_reference(image: str) -> dict[str, str]:
    """How a VM names its image: those of other tenants' galleries have fields of their own."""
    kind = image.lstrip("/").partition("/")[0].lower()
    field = {"communitygalleries": "communityGalleryImageId", "sharedgalleries": "sharedGalleryImageId"}
    return {field.get(kind, "id"): image}


def _network(request: LaunchRequest, keys: AzureKeys, tags: dict[str, str]) -> dict[str, Any]:
    names = Names(request.name)
    address: dict[str, Any] = {"primary": True, "subnet": {"id": keys.subnet_id}}
    if keys.use_public_ip:
        address["publicIPAddressConfiguration"] = {
            "name": names.public_ip,
            "sku": {"name": "Standard"},
            "tags": tags,
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    card: dict[str, Any] = {
        "primary": True,
        "deleteOption": "Delete",
        "ipConfigurations": [{"name": "primary", "properties": address}],
    }
    if keys.nsg_id:
        card["networkSecurityGroup"] = {"id": keys.nsg_id}
    return {
        "networkApiVersion": NETWORK_API_VERSION,
        "networkInterfaceConfigurations": [{"name": names.interface, "tags": tags, "properties": card}],
    }
