"""What becomes of an instance in the emulated EC2, what it keeps of its request, and what goes with it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clouds.aws.account import Account


def tags(resource: str) -> dict[str, Any]:
    return {"ResourceType": resource, "Tags": [{"Key": "owner", "Value": resource}]}


def test_an_instance_is_pending_for_as_long_as_asked(account: Account) -> None:
    account.emulator.delays(pending=17)
    instance_id = account.launch()
    assert account.state(instance_id) == "pending"
    assert account.one(instance_id)["PrivateIpAddress"].startswith("127.50.")
    account.emulator.advance(16.9)
    assert account.state(instance_id) == "pending"
    account.emulator.advance(0.1)
    assert account.state(instance_id) == "running"


def test_an_instance_ends_for_as_long_as_asked(account: Account) -> None:
    account.emulator.delays(shutting_down=30)
    instance_id = account.launch()
    account.terminate(instance_id)
    assert account.state(instance_id) == "shutting-down"
    account.emulator.advance(30)
    assert account.state(instance_id) == "terminated"


def test_a_pending_instance_can_be_terminated(account: Account) -> None:
    account.emulator.delays(pending=17, shutting_down=1)
    instance_id = account.launch()
    account.terminate(instance_id)
    account.emulator.advance(20)
    assert account.state(instance_id) == "terminated"


def test_time_passes_by_itself_unless_the_clock_is_stopped(account: Account) -> None:
    account.emulator.delays(pending=0.05)
    instance_id = account.launch()
    assert account.state(instance_id) == "pending"
    account.emulator.run_clock()
    account.emulator.advance(0.05)
    assert account.state(instance_id) == "running"


def test_a_terminated_instance_leaves_nothing_but_its_name(account: Account) -> None:
    instance_id = account.launch()
    before = account.emulator.counters()
    assert (before["interfaces"], before["volumes"]) == (1, 1)
    account.terminate(instance_id)
    one = account.one(instance_id)
    assert one["State"]["Name"] == "terminated"
    assert one["NetworkInterfaces"] == []
    assert not {"PrivateIpAddress", "SubnetId", "VpcId"} & one.keys()
    after = account.emulator.counters()
    assert (after["interfaces"], after["volumes"]) == (0, 0)
    assert after["states"] == {"terminated": 1}


def test_an_interface_that_shall_stay_stays(account: Account) -> None:
    subnet = account.seed.subnets[account.seed.zones[0]]
    nic = {"DeviceIndex": 0, "SubnetId": subnet, "DeleteOnTermination": False}
    account.terminate(account.launch(SubnetId=None, SecurityGroupIds=None, NetworkInterfaces=[nic]))
    assert account.instances()[0]["State"]["Name"] == "terminated"
    assert account.emulator.counters()["interfaces"] == 1


def test_tags_are_set_with_the_launch_on_instance_volume_and_interface(account: Account) -> None:
    kinds = ("instance", "volume", "network-interface")
    one = account.run(TagSpecifications=[tags(kind) for kind in kinds])
    nic = one["NetworkInterfaces"][0]["NetworkInterfaceId"]
    volume = one["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    found = account.ec2.describe_tags(Filters=[{"Name": "key", "Values": ["owner"]}])["Tags"]
    assert {tag["ResourceId"]: tag["Value"] for tag in found} == {
        one["InstanceId"]: "instance",
        volume: "volume",
        nic: "network-interface",
    }


def test_confidential_and_metadata_options_are_kept(account: Account) -> None:
    metadata = {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    one = account.one(account.launch(CpuOptions={"AmdSevSnp": "enabled"}, MetadataOptions=metadata))
    assert one["CpuOptions"] == {"CoreCount": 1, "ThreadsPerCore": 2, "AmdSevSnp": "enabled"}
    assert (one["BootMode"], one["CurrentInstanceBootMode"]) == ("uefi", "uefi")
    assert metadata.items() <= one["MetadataOptions"].items()


def test_an_instance_that_the_cloud_ends_says_why(account: Account) -> None:
    instance_id = account.launch(InstanceMarketOptions={"MarketType": "spot"})
    account.emulator.end(instance_id, "Server.SpotInstanceTermination")
    one = account.one(instance_id)
    assert one["InstanceLifecycle"] == "spot"
    assert one["State"]["Name"] == "terminated"
    assert one["StateReason"]["Code"] == "Server.SpotInstanceTermination"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"ImageId": None}, "MissingParameter"),
        ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
        ({"InstanceType": "m6a.huge"}, "InvalidParameterValue"),
        ({"InstanceType": "m6g.large"}, "InvalidParameterValue"),  # of another architecture than the image
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"InstanceType": "m5.large", "CpuOptions": {"AmdSevSnp": "enabled"}}, "InvalidParameterCombination"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
    ],
)
def test_what_cannot_be_launched_is_refused(account: Account, change: dict[str, Any], code: str) -> None:
    if change.get("ImageId", "") is None:
        with pytest.raises(account.ec2.exceptions.ClientError, match=code):
            account.launch(**change)
    else:
        assert account.launch_refusal(**change) == (code, 400)
    assert account.instances() == []
    assert account.emulator.counters()["interfaces"] == 0


def test_a_group_that_an_interface_names_must_exist(account: Account) -> None:
    subnet = account.seed.subnets[account.seed.zones[0]]
    nic = {"DeviceIndex": 0, "SubnetId": subnet, "Groups": ["sg-0123456789abcdef0"]}
    refusal = account.launch_refusal(SubnetId=None, SecurityGroupIds=None, NetworkInterfaces=[nic])
    assert refusal == ("InvalidGroup.NotFound", 400)


def test_a_launch_template_gives_what_the_request_does_not(account: Account) -> None:
    data = {"ImageId": account.seed.images["arm64"], "InstanceType": "m6g.large"}
    account.ec2.create_launch_template(LaunchTemplateName="kata", LaunchTemplateData=data)
    one = account.run(ImageId=None, InstanceType=None, LaunchTemplate={"LaunchTemplateName": "kata"})
    assert (one["ImageId"], one["InstanceType"]) == (data["ImageId"], "m6g.large")


def test_sixteen_kibibytes_of_user_data_are_kept_byte_for_byte(account: Account) -> None:
    text = "".join(chr(32 + number % 90) for number in range(16384))
    assert account.emulator.user_data(account.launch(UserData=text)) == text.encode()


def test_an_address_is_not_given_again_while_another_is_left(account: Account) -> None:
    first = account.run()
    account.terminate(first["InstanceId"])
    assert account.run()["PrivateIpAddress"] != first["PrivateIpAddress"]


def test_the_arm_image_goes_with_the_arm_type(account: Account) -> None:
    instance_id = account.launch(ImageId=account.seed.images["arm64"], InstanceType="m6g.large")
    assert account.one(instance_id)["Architecture"] == "arm64"


def test_addresses_run_out_and_come_back(account: Account) -> None:
    account.emulator.reset()
    account.emulator.stop_clock()
    account.seed = account.emulator.seed(zones=1, subnet_bits=28)
    ids = [account.launch() for _ in range(11)]
    assert account.launch_refusal() == ("InsufficientFreeAddressesInSubnet", 400)
    by_id = {one["InstanceId"]: one["PrivateIpAddress"] for one in account.instances()}
    assert len(set(by_id.values())) == 11
    account.terminate(ids[3])
    account.terminate(ids[1])
    assert [account.run()["PrivateIpAddress"] for _ in range(2)] == [by_id[ids[3]], by_id[ids[1]]]


def test_types_with_sev_snp_are_found_by_feature_and_in_pages(account: Account) -> None:
    features = {"Name": "processor-info.supported-features", "Values": ["amd-sev-snp"]}
    found: list[str] = []
    for page in account.ec2.get_paginator("describe_instance_types").paginate(Filters=[features], MaxResults=5):
        assert len(page["InstanceTypes"]) <= 5
        found += [one["InstanceType"] for one in page["InstanceTypes"]]
    assert "m6a.large" in found
    assert "m5.large" not in found
    assert len(found) == len(set(found)) > 5
