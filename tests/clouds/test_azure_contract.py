"""The emulated ARM and the provider against what Microsoft publishes: the SDK's models and the examples of the API.

The examples are in the public repository Azure/azure-rest-api-specs, below specification/compute/resource-manager/
Microsoft.Compute and specification/network/resource-manager/Microsoft.Network; the names below are of files there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from azure.mgmt.compute import models as compute
from azure.mgmt.network import models as network

from providers.azure.names import Names
from providers.base import LaunchRequest, Market
from tests.clouds.azure.arm import DEFINITIONS, GROUP, LOCATION, NETWORK, SUBSCRIPTION
from tests.clouds.azure.shape import misfits
from tests.clouds.azure_lab import AzureLab
from tests.clouds.contract import Ask, asking, at, keys_in, misspelt

GROUP_PATH = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
REGION_PATH = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute"
VMS = "Microsoft.Compute/virtualMachines"
# Kinds of VMs that the provider asks for: its keys, and whether the offering is a spot one.
ASKED: dict[str, tuple[dict[str, str], Market]] = {
    "plain": ({}, Market.ON_DEMAND),
    "spot": ({}, Market.SPOT),
    "public": ({"USE_PUBLIC_IP": "true", "AZURE_NSG_ID": "", "TAGS": "team=blue"}, Market.ON_DEMAND),
    "large": ({"ROOT_VOLUME_SIZE": "64", "ENABLE_SECURE_BOOT": "true", "AZURE_ZONES": ""}, Market.ON_DEMAND),
    "confidential": ({"DISABLECVM": "false", "ENABLE_SECURE_BOOT": "true"}, Market.ON_DEMAND),
}


@pytest.fixture
def ask(azure: AzureLab) -> Iterator[Ask]:
    """With the token that every emulated identity gives."""
    with asking(azure.emulator.url, azure.emulator.ca_file, "token", {"api-version": "1"}) as made:
        yield made


def launched(azure: AzureLab, kind: str = "public") -> LaunchRequest:
    keys, market = ASKED[kind]
    image = "x64" if kind == "confidential" else "plain"
    size = "Standard_DC2as_v5" if kind == "confidential" else "Standard_D2as_v5"
    request = azure.request(size=size, zone="" if keys.get("AZURE_ZONES") == "" else "1")
    provider = azure.provider(AZURE_IMAGE_ID=azure.seed.images[image], **keys)
    provider.launch(replace(request, offering=replace(request.offering, market=market)))
    return request


# What the provider asks for


@pytest.mark.parametrize("kind", ASKED)
def test_every_key_and_word_of_the_put_is_the_sdks(azure: AzureLab, kind: str) -> None:
    assert misfits(compute.VirtualMachine, azure.emulator.body(launched(azure, kind).name), asked=True) == []


@pytest.mark.parametrize("kind", ASKED)
def test_a_put_with_any_key_misspelt_or_in_another_place_is_told(azure: AzureLab, kind: str) -> None:
    body = azure.emulator.body(launched(azure, kind).name)
    wrong = list(misspelt(body))
    assert len(wrong) > 30
    for place, document in wrong:
        assert misfits(compute.VirtualMachine, document, asked=True), f"nobody misses {place}"
    for *above, key in keys_in(body):
        # Some words mean something in several places.
        if above and key not in ("name", "id", "zones", "tags", "properties", "location"):
            moved = copy.deepcopy(body)
            moved[key] = at(moved, tuple(above)).pop(key)
            assert misfits(compute.VirtualMachine, moved, asked=True), f"nobody wonders at {key} in the outermost place"


# What the emulator answers

# By what is asked for: the SDK's model, and what the example of the API's documentation has and somebody may rely on.
ANSWERS: dict[str, tuple[Any, str]] = {
    # VirtualMachine_Create_WithNetworkInterfaceConfigurationDnsSettings.json
    VMS: (
        compute.VirtualMachine,
        "id name type location properties.vmId properties.provisioningState properties.hardwareProfile.vmSize "
        "properties.networkProfile.networkInterfaces.id properties.networkProfile.networkInterfaces.properties.primary "
        "properties.storageProfile.imageReference properties.storageProfile.osDisk.osType "
        "properties.storageProfile.osDisk.caching properties.storageProfile.osDisk.createOption "
        "properties.storageProfile.osDisk.name properties.storageProfile.osDisk.managedDisk.storageAccountType "
        "properties.osProfile.adminUsername properties.osProfile.computerName",
    ),
    # NetworkInterfaceGet.json
    "Microsoft.Network/networkInterfaces": (
        network.NetworkInterface,
        "id name type location properties.provisioningState properties.ipConfigurations.id "
        "properties.ipConfigurations.name properties.ipConfigurations.properties.privateIPAddress "
        "properties.ipConfigurations.properties.publicIPAddress.id properties.ipConfigurations.properties.subnet.id "
        "properties.ipConfigurations.properties.primary properties.macAddress properties.primary "
        "properties.virtualMachine.id",
    ),
    # PublicIpAddressGet.json
    "Microsoft.Network/publicIPAddresses": (
        network.PublicIPAddress,
        "id name type location properties.provisioningState properties.publicIPAllocationMethod "
        "properties.ipConfiguration.id",
    ),
    # Disk_Get.json
    "Microsoft.Compute/disks": (
        compute.Disk,
        "id name type location managedBy properties.provisioningState properties.osType "
        "properties.creationData.createOption",
    ),
}
# SDK's model and example of what is asked for by another path.
OTHERS: dict[str, tuple[Any, str]] = {
    # GalleryImage_Get.json
    DEFINITIONS["plain"][0]: (
        compute.GalleryImage,
        "id name location properties.osType properties.osState properties.hyperVGeneration "
        "properties.provisioningState",
    ),
    f"{DEFINITIONS['plain'][0]}/versions/1.0.0": (compute.GalleryImageVersion, "id name location"),
    NETWORK: (network.VirtualNetwork, "id name type location properties.subnets.id"),
    # ListAvailableResourceSkusForARegion.json; several kinds of sizes have to have all of these
    f"{REGION_PATH}/skus": (
        compute.ResourceSku,
        "resourceType name tier size family locations capabilities.name capabilities.value locationInfo.location "
        "locationInfo.zones",
    ),
    # Usage_List_MaximumSet_Gen.json
    f"{REGION_PATH}/locations/{LOCATION}/usages": (
        compute.Usage,
        "unit currentValue limit name.value name.localizedValue",
    ),
}


def paths_in(document: Any, above: str = "") -> Iterator[str]:
    """Of everything in it, lists passed through."""
    for item in document if isinstance(document, list) else [document]:
        for key, value in item.items() if isinstance(item, dict) else ():
            yield f"{above}{key}"
            yield from paths_in(value, f"{above}{key}.")


def check_answer(model: Any, example: str, document: Any) -> None:
    assert misfits(model, document) == []
    missing = set(example.split()) - set(paths_in(document))
    assert not missing, f"{model.__name__} of the examples has {sorted(missing)}"


@pytest.mark.parametrize("kind", ANSWERS)
def test_what_comes_of_a_launch_is_answered_as_the_sdk_and_the_examples_have_it(
    azure: AzureLab, ask: Ask, kind: str
) -> None:
    launched(azure)
    model, example = ANSWERS[kind]
    (one,) = ask("GET", f"{GROUP_PATH}/{kind}").json()["value"]
    check_answer(model, example, one)
    assert one["type"] == kind
    assert ask("GET", one["id"]).json() == one
    misspelt = {**one, "properties": {f"{key}z": value for key, value in one["properties"].items()}}
    assert len(misfits(model, misspelt)) == len(one["properties"])


@pytest.mark.parametrize("path", OTHERS)
def test_what_is_there_before_is_answered_as_the_sdk_and_the_examples_have_it(
    azure: AzureLab, ask: Ask, path: str
) -> None:
    azure.emulator.barred({"size": "Standard_D2as_v5", "zones": ["2"]}, {"size": "Standard_D4as_v5"})
    model, example = OTHERS[path]
    answer = ask("GET", path).json()
    for one in answer.get("value", [answer]):
        check_answer(model, example, one)


@pytest.mark.parametrize("failed", [False, True])
def test_an_instance_view_is_as_the_sdk_and_the_example_have_it(azure: AzureLab, ask: Ask, failed: bool) -> None:
    if failed:
        azure.emulator.failing({"zone": "1"})
    name = launched(azure).name
    azure.emulator.advance(1)
    view = ask("GET", f"{GROUP_PATH}/{VMS}/{name}/instanceView").json()
    # VirtualMachine_Get_InstanceView.json; of a failure Microsoft's page on states and billing has such a code.
    check_answer(compute.VirtualMachineInstanceView, "statuses.code statuses.level", view)
    codes = [one["code"] for one in view["statuses"]]
    assert codes == (
        ["ProvisioningState/failed/ZonalAllocationFailed"]
        if failed
        else ["ProvisioningState/succeeded", "PowerState/running"]
    )


# How long operations begin, and how a refusal looks


def test_a_put_is_created_and_found_and_a_delete_is_accepted_and_then_has_no_content(azure: AzureLab, ask: Ask) -> None:
    """The statuses that the API's definition has; the SDK takes any other for a failure."""
    azure.emulator.delays(pending=1)
    request = launched(azure)
    path, body = f"{GROUP_PATH}/{VMS}/{request.name}", azure.emulator.body(request.name)
    again = ask("PUT", path, body)
    assert (again.status_code, again.json()["properties"]["provisioningState"]) == (200, "Creating")
    other = ask("PUT", f"{path}x", renamed(body, request.name, f"{request.name}x"))
    assert (other.status_code, other.json()["properties"]["provisioningState"]) == (201, "Creating")
    check_operation(azure, other)
    deleted = ask("DELETE", path)
    assert (deleted.status_code, deleted.content) == (202, b"")
    check_operation(azure, deleted)
    # Disk_Delete.json: beside it a Location, which is the same operation.
    location = urlsplit(deleted.headers["Location"])
    assert location.path == urlsplit(deleted.headers["Azure-AsyncOperation"]).path
    assert parse_qs(location.query)["monitor"] == ["true"]
    azure.emulator.advance(1)
    gone = ask("DELETE", path)
    assert (gone.status_code, gone.content) == (204, b"")
    for word in ("Location", "Azure-AsyncOperation", "Retry-After"):
        assert word not in gone.headers


def check_operation(azure: AzureLab, answer: httpx.Response) -> None:
    """As Microsoft's page on asynchronous operations has it: an absolute URL below the region, and whole seconds."""
    operation = urlsplit(answer.headers["Azure-AsyncOperation"])
    assert f"{operation.scheme}://{operation.netloc}" == azure.emulator.url
    assert operation.path.startswith(f"{REGION_PATH}/locations/{LOCATION}/operations/")
    assert "api-version" in parse_qs(operation.query)
    assert int(answer.headers["Retry-After"]) > 0


def renamed(body: dict[str, Any], name: str, other: str) -> dict[str, Any]:
    """The PUT of a VM of another name."""
    made = copy.deepcopy(body)
    about = made["properties"]
    about["osProfile"]["computerName"] = other
    about["storageProfile"]["osDisk"]["name"] = Names(other).disk
    card = about["networkProfile"]["networkInterfaceConfigurations"][0]
    card["name"] = Names(other).interface
    card["properties"]["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]["name"] = Names(
        other
    ).public_ip
    assert name not in str({**made, "tags": {}}).replace(other, "")
    return made


# Refusal -> status and code, as Microsoft's pages on errors have them.
REFUSALS = {
    "missing": (404, "ResourceNotFound"),
    "changed": (409, "PropertyChangeNotAllowed"),
    "quota": (409, "OperationNotAllowed"),
    "capacity": (409, "SkuNotAvailable"),
    "throttled": (429, "TooManyRequests"),
    "unknown": (401, "InvalidAuthenticationToken"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_has_the_status_the_code_and_the_shape_of_an_arm_error(azure: AzureLab, ask: Ask, kind: str) -> None:
    answer = refusal(azure, ask, kind)
    body = answer.json()
    assert (answer.status_code, body["error"]["code"]) == REFUSALS[kind]
    assert set(body) == {"error"}
    assert misfits(compute.ApiError, body["error"]) == []
    assert body["error"]["message"]
    assert ("Retry-After" in answer.headers) == (kind == "throttled")
    assert answer.headers["x-ms-request-id"]


def refusal(azure: AzureLab, ask: Ask, kind: str) -> httpx.Response:
    request = launched(azure)
    path, body = f"{GROUP_PATH}/{VMS}/{request.name}", azure.emulator.body(request.name)
    other = renamed(body, request.name, f"{request.name}x")
    match kind:
        case "missing":
            return ask("GET", f"{path}x")
        case "changed":
            return ask("PUT", path, {**body, "tags": {"other": "1"}})
        case "quota":
            azure.emulator.quota({"standardDASv5Family": 2})
        case "capacity":
            azure.emulator.capacity({"zone": "1"})
        case "throttled":
            azure.emulator.limits({"PutVirtualMachine": (0, 0.1)}, retry_after=7)
        case "unknown":
            return ask("GET", path, token="")
    return ask("PUT", f"{path}x", other)
