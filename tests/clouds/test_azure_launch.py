"""Launch, list and end on the emulated Azure: one VM for each request, whatever happens to the calls."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from azure.mgmt.compute.models import VirtualMachine

from providers.azure.names import Names
from providers.azure.parameters import USER_DATA_LIMIT
from providers.base import (
    CapacityError,
    DeniedError,
    InstanceState,
    InvalidRequestError,
    Market,
    MissingError,
    ProviderError,
    QuotaError,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from tests.clouds.azure_lab import NOTHING, SCOPE, USER_DATA, AzureLab
from tests.clouds.faultproxy import Fault, Phase

PUT = "^PutVirtualMachine$"


def test_a_launch_makes_one_vm_with_its_owner_on_every_part_and_a_list_has_its_address(azure: AzureLab) -> None:
    azure.emulator.delays(pending=1)
    provider, request = azure.provider(USE_PUBLIC_IP="true"), azure.request()
    made = provider.launch(request)
    assert made.state is InstanceState.PENDING
    assert made.request_id
    body = azure.emulator.body(request.name)
    assert base64.b64decode(body["properties"]["userData"]) == USER_DATA
    card = body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0]
    public = card["properties"]["ipConfigurations"][0]["properties"]["publicIPAddressConfiguration"]
    for tags in (body["tags"], card["tags"], public["tags"]):
        assert tags["peerpods-caa-sandbox-id"] == request.owner.sandbox_id
        assert tags["peerpods-caa-pod-name"] == "web"
    (listed,) = provider.instances(SCOPE)
    assert (listed.id, listed.owner, listed.zone, listed.image) == (
        made.id,
        request.owner,
        "1",
        azure.seed.images["plain"],
    )
    assert listed.addresses == listed.public_addresses
    assert listed.addresses[0].startswith("127.51.")
    assert listed.groups == (azure.seed.nsg,)
    (private,) = azure.provider().instances(SCOPE)
    assert private.addresses[0].startswith("127.50.")
    assert azure.provider().instances(replace(SCOPE, node="worker-2")) == []


def test_the_body_is_what_the_sdk_knows(azure: AzureLab) -> None:
    provider = azure.provider(AZURE_IMAGE_ID=azure.seed.images["x64"], DISABLECVM="false", USE_PUBLIC_IP="true")
    request = azure.request(size="Standard_DC2as_v5")
    provider.launch(replace(request, offering=replace(request.offering, market=Market.SPOT)))
    body = azure.emulator.body(request.name)
    read = VirtualMachine(body)
    assert read.properties is not None
    assert read.properties.priority == "Spot"
    assert read.properties.eviction_policy == "Delete"
    assert read.properties.security_profile is not None
    assert read.properties.security_profile.security_type == "ConfidentialVM"
    assert read.properties.storage_profile is not None
    disk = read.properties.storage_profile.os_disk
    assert disk is not None
    assert disk.delete_option == "Delete"
    assert disk.managed_disk is not None
    assert disk.managed_disk.security_profile is not None
    assert disk.managed_disk.security_profile.security_encryption_type == "VMGuestStateOnly"
    card = read.properties.network_profile.network_interface_configurations[0]  # type: ignore[union-attr,index]
    assert card.properties.delete_option == "Delete"  # type: ignore[union-attr]
    assert read.zones == ["1"]


def test_an_image_for_trusted_launch_is_launched_so(azure: AzureLab) -> None:
    request = azure.request()
    azure.provider(ENABLE_SECURE_BOOT="true").launch(request)
    security = azure.emulator.body(request.name)["properties"]["securityProfile"]
    assert security == {
        "securityType": "TrustedLaunch",
        "uefiSettings": {"secureBootEnabled": True, "vTpmEnabled": True},
    }


def test_a_specialized_image_is_launched_without_an_account(azure: AzureLab) -> None:
    image, request = azure.seed.images["specialized"], azure.request()
    provider = azure.provider(AZURE_IMAGE_ID=image)
    assert provider.check() == []
    provider.launch(request)
    assert "osProfile" not in azure.emulator.body(request.name)["properties"]


def test_an_image_of_another_subscription_is_looked_into_where_that_may_be_read(azure: AzureLab) -> None:
    image = azure.seed.images["elsewhere"]
    assert azure.seed.subscription not in image
    assert azure.provider(AZURE_IMAGE_ID=image).image_arch("") == "arm64"
    (arch,) = azure.provider(AZURE_IMAGE_ID=image).check()
    assert "is x86_64, and the image" in arch.message
    (missing,) = azure.provider(AZURE_IMAGE_ID=image.replace("arm64", "none")).check()
    assert missing.key == "AZURE_IMAGE_ID"
    assert "is no image that can be seen" in missing.message
    (group,) = azure.provider(AZURE_IMAGE_ID=image.replace("/shared/", "/other/")).check()
    assert group.key == "AZURE_IMAGE_ID"
    proxy = azure.proxy()
    denied = json.dumps({"error": {"code": "AuthorizationFailed", "message": "no"}}).encode()
    proxy.add(
        Fault.STATUS, Phase.BEFORE, action="^GetVersion$", status=403, reply=denied, content_type="application/json"
    )
    assert azure.provider(proxy.url, AZURE_IMAGE_ID=image).image_arch("") == ""


def test_the_same_request_again_is_the_same_vm_also_after_a_change_of_the_configuration(azure: AzureLab) -> None:
    request = azure.request()
    made = azure.provider().launch(request)
    again = azure.provider(TAGS="team=blue").launch(request)
    assert again.id == made.id
    assert azure.calls("PutVirtualMachine") == 1
    assert azure.left()["vms"] == 1


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE, Fault.DROP])
def test_a_lost_reply_of_the_put_is_an_unknown_outcome_and_the_repeat_finds_the_vm(
    azure: AzureLab, fault: Fault
) -> None:
    proxy = azure.proxy()
    provider, request = azure.provider(proxy.url), azure.request()
    proxy.add(fault, Phase.AFTER, action=PUT)
    with pytest.raises(UnknownOutcomeError):
        provider.launch(request)
    assert provider.launch(request).name == request.name
    assert azure.left()["vms"] == 1
    assert azure.calls("PutVirtualMachine") == 1


def test_a_foreign_vm_of_the_name_is_left_alone(azure: AzureLab) -> None:
    request = azure.request()
    provider = azure.provider()
    provider.launch(request)
    with pytest.raises(InvalidRequestError, match="not of this request") as refused:
        provider.launch(replace(request, user_data=b"#cloud-config\n"))
    assert refused.value.reason == "NameTaken"
    assert azure.left()["vms"] == 1


def test_an_end_leaves_nothing_and_what_is_gone_is_ended(azure: AzureLab) -> None:
    provider = azure.provider(USE_PUBLIC_IP="true")
    made = provider.launch(azure.request())
    assert azure.left() == dict.fromkeys(NOTHING, 1)
    assert provider.terminate([made.id]) == {}
    azure.emulator.advance(1)
    assert azure.left() == NOTHING
    assert provider.terminate([made.id]) == {}


def test_discard_removes_by_computed_names_what_no_list_shows(azure: AzureLab) -> None:
    azure.emulator.staleness(seconds=1000)
    provider, request = azure.provider(USE_PUBLIC_IP="true"), azure.request()
    provider.launch(request)
    assert provider.instances(SCOPE) == []
    provider.discard(request)
    azure.emulator.advance(1)
    assert azure.left() == NOTHING
    provider.discard(request)


def test_a_vm_that_azure_gave_up_on_says_why_and_whether_another_offering_may_do(azure: AzureLab) -> None:
    provider, request = azure.provider(), azure.request()
    azure.emulator.failing({"zone": "1"})
    provider.launch(request)
    azure.emulator.advance(1)
    (failed,) = provider.instances(SCOPE)
    assert failed.state is InstanceState.FAILED
    assert isinstance(failed.refusal, CapacityError)
    assert failed.refusal.reason == "ZonalAllocationFailed"
    assert provider.launch(request).refusal is not None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, CapacityError) for code in ("RetryableError", "InternalExecutionError", "OperationPreempted", "New")),
        ("OperationNotAllowed", InvalidRequestError),
        ("ImageNotFound", InvalidRequestError),
        ("AuthorizationFailed", DeniedError),
    ],
)
def test_a_failure_of_azures_own_rules_out_the_offering_and_one_for_good_says_so(
    azure: AzureLab, code: str, kind: type[ProviderError]
) -> None:
    provider, request = azure.provider(), azure.request()
    provider.launch(request)
    azure.emulator.fail(request.name, code, "said so")
    (failed,) = provider.instances(SCOPE)
    assert failed.state is InstanceState.FAILED
    assert type(failed.refusal) is kind
    assert f"(Azure: {code}, said so)" in str(failed.refusal)


def test_a_vm_whose_guest_never_reported_to_azure_runs_all_the_same(azure: AzureLab) -> None:
    provider, request = azure.provider(), azure.request()
    provider.launch(request)
    azure.emulator.fail(request.name, "OSProvisioningTimedOut", running=True)
    (listed,) = provider.instances(SCOPE)
    assert (listed.state, listed.refusal) == (InstanceState.RUNNING, None)
    azure.emulator.fail(request.name, "OSProvisioningTimedOut")
    (listed,) = provider.instances(SCOPE)
    assert listed.state is InstanceState.FAILED
    assert isinstance(listed.refusal, InvalidRequestError)


def test_without_quota_arm_is_not_asked_for_the_vm(azure: AzureLab) -> None:
    azure.emulator.quota({"standardDASv5Family": 2})
    provider = azure.provider()
    provider.launch(azure.request())
    azure.now += 60
    with pytest.raises(QuotaError, match="standardDASv5Family allows 2 vCPUs in westeurope, of which 2 are used"):
        provider.launch(azure.request())
    assert azure.calls("PutVirtualMachine") == 1
    (short,) = provider.shortages()
    assert short.key == "AZURE_INSTANCE_SIZE"
    provider.launch(azure.request(size="Standard_E2as_v5"))


@pytest.mark.parametrize("code", ["ResourceNotFound", "NotFound", "InvalidResourceReference"])
def test_a_launch_that_names_what_is_not_there_is_refused_for_good(azure: AzureLab, code: str) -> None:
    proxy = azure.proxy()
    reply = json.dumps({"error": {"code": code, "message": "no subnet"}}).encode()
    proxy.add(Fault.STATUS, Phase.BEFORE, action=PUT, status=404, reply=reply, content_type="application/json")
    with pytest.raises(InvalidRequestError, match=r"AZURE_SUBNET_ID=/subscriptions/.*no subnet") as refused:
        azure.provider(proxy.url).launch(azure.request())
    assert refused.value.reason == "ReferenceMissing"


def test_refusals_are_told_apart(azure: AzureLab) -> None:
    proxy = azure.proxy()
    provider = azure.provider(proxy.url)
    azure.emulator.capacity({"zone": "2"})
    with pytest.raises(CapacityError) as none_left:
        provider.launch(azure.request(zone="2"))
    assert none_left.value.reason == "SkuNotAvailable"
    assert none_left.value.request_id
    azure.emulator.limits({"PutVirtualMachine": (0, 0)}, retry_after=17)
    with pytest.raises(ThrottledError) as throttled:
        provider.launch(azure.request())
    assert throttled.value.retry_after == 17
    azure.emulator.limits({})
    with pytest.raises(InvalidRequestError, match=f"at most {USER_DATA_LIMIT}"):
        provider.launch(azure.request(user_data=b"x" * (USER_DATA_LIMIT + 1)))
    denied = json.dumps({"error": {"code": "AuthorizationFailed", "message": "no"}}).encode()
    kind = {"reply": denied, "content_type": "application/json"}
    proxy.add(Fault.STATUS, Phase.BEFORE, action=PUT, status=403, **kind)
    with pytest.raises(DeniedError):
        provider.launch(azure.request())
    proxy.add(Fault.RESET, Phase.BEFORE, action="^ListSku$")
    with pytest.raises(UnavailableError):
        azure.provider(proxy.url).offerings()
    with pytest.raises(DeniedError, match="AZURE_CLIENT_SECRET"):
        azure.provider(AZURE_CLIENT_SECRET="wrong").offerings()
    assert azure.left() == NOTHING


def test_a_description_has_the_interface_and_no_user_data(azure: AzureLab) -> None:
    provider = azure.provider()
    made = provider.launch(azure.request())
    described = provider.describe(made.id)
    assert json.loads(json.dumps(described)) == described
    card = described["properties"]["networkProfile"]["networkInterfaces"][0]
    assert card["name"] == Names(made.name).interface
    assert card["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"].startswith("127.50.")
    assert "userData" not in str(described)
    with pytest.raises(MissingError):
        provider.describe(made.id + "x")


def test_offerings_are_sizes_by_zones_and_what_cannot_be_had_says_why(azure: AzureLab) -> None:
    azure.emulator.barred({"size": "Standard_D4as_v5", "zones": ["2"]}, {"size": "Standard_E2as_v5"})
    sizes = "Standard_D4as_v5,Standard_E2as_v5,Standard_NC4as_T4_v3,Standard_D2ps_v5,Standard_None_v9"
    found = {(one.instance_type, one.zone): one for one in azure.provider(AZURE_INSTANCE_SIZES=sizes).offerings()}
    assert len(found) == 5 * 3
    assert found["Standard_D4as_v5", "2"].unusable == "may not be used by this subscription in zone 2"
    assert not found["Standard_D4as_v5", "1"].unusable
    assert found["Standard_E2as_v5", "1"].unusable == "may not be used by this subscription in this region"
    gpu = found["Standard_NC4as_T4_v3", "3"]
    assert (gpu.gpus, gpu.gpu_model, gpu.vcpus, gpu.memory_mib) == (1, "T4", 4, 28672)
    assert found["Standard_D2ps_v5", "1"].arch == "arm64"
    confidential = azure.provider(DISABLECVM="false").offerings()
    assert {one.unusable for one in confidential} == {"does not run confidential VMs, and DISABLECVM is false"}


def test_a_size_with_cores_that_cannot_be_used_offers_the_others_and_one_without_premium_disks_nothing(
    azure: AzureLab,
) -> None:
    sizes = "Standard_E4-2as_v5,Standard_D2_v5"
    found = {one.instance_type: one for one in azure.provider(AZURE_INSTANCE_SIZES=sizes).offerings()}
    assert found["Standard_E4-2as_v5"].vcpus == 2
    assert not found["Standard_E4-2as_v5"].unusable
    assert found["Standard_D2_v5"].unusable == "takes no premium disks"


def test_a_size_that_does_not_boot_the_image_as_it_is_to_be_booted_is_told(azure: AzureLab) -> None:
    generation, trusted = azure.provider(AZURE_INSTANCE_SIZES="Standard_DS2_v2").check()
    assert generation.key == trusted.key == "AZURE_INSTANCE_SIZES"
    assert "'Standard_DS2_v2' boots images of generation V1" in generation.message
    assert "no trusted launch" in trusted.message


def test_every_problem_is_told_at_once_with_its_key_and_checking_makes_nothing(azure: AzureLab) -> None:
    assert azure.provider().check() == []
    group = f"/subscriptions/{azure.seed.subscription}/resourceGroups/{azure.seed.group}/providers"
    problems = azure.provider(
        AZURE_IMAGE_ID=f"{group}/Microsoft.Compute/galleries/g/images/none/versions/1.0.0",
        AZURE_SUBNET_ID=f"{azure.seed.subnet}x",
        AZURE_NSG_ID=f"{azure.seed.nsg}x",
        AZURE_INSTANCE_SIZES="Standard_None_v9",
    ).check()
    assert {one.key for one in problems} == {
        "AZURE_IMAGE_ID",
        "AZURE_SUBNET_ID",
        "AZURE_NSG_ID",
        "AZURE_INSTANCE_SIZES",
    }
    (arch,) = azure.provider(AZURE_IMAGE_ID=azure.seed.images["arm64"]).check()
    assert "is x86_64, and the image" in arch.message
    (missing,) = azure.provider(AZURE_IMAGE_ID="").check()
    assert missing.image_missing
    (group_missing,) = azure.provider(AZURE_RESOURCE_GROUP="other").check()
    assert group_missing.key == "AZURE_RESOURCE_GROUP"
    assert azure.left() == NOTHING
