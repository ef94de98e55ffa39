"""The RunInstances call of a launch: complete, and the same bytes for the same request."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import parse_qs, urlencode

import boto3  # type: ignore[import-untyped]
import pytest
from botocore.serialize import create_serializer  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from providers.aws.catalog import Image, Subnet
from providers.aws.parameters import USER_DATA_LIMIT, Place, check_user_data, run_instances
from providers.aws.settings import AwsKeys
from providers.aws.tags import REQUEST, filters_of, literal, owner_in, tags_of
from providers.base import InvalidRequestError, LaunchRequest, Market, Offering, Owner, OwnerScope
from providers.keys import read_keys

OWNER = Owner("prod", "worker-1", "a" * 64, "default", "web", 1)
REQUEST_1 = LaunchRequest(
    name="podvm-web-aaaaaaaa",
    token="t" * 64,
    owner=OWNER,
    offering=Offering("m6a.large", "us-east-1a", 2, 8192),
    user_data=b"#cloud-config\n",
)
PLACE = Place(
    image=Image("ami-1", "x86_64", "/dev/xvda", 8),
    subnet=Subnet("subnet-1", "us-east-1a", "vpc-1"),
    groups=("sg-1", "sg-2"),
    key_pair="ops",
)
SESSION = boto3.session.Session()
RUN_INSTANCES = SESSION._session.get_service_model("ec2").operation_model("RunInstances")


def keys(**environ: str) -> AwsKeys:
    return read_keys(AwsKeys, {"PODVM_AMI_ID": "ami-1"} | environ)


def parameters(request: LaunchRequest = REQUEST_1, **environ: str) -> dict[str, Any]:
    return run_instances(request, keys(**environ), PLACE)


def on_the_wire(given: dict[str, Any]) -> str:
    """The body that boto makes of parameters, which also checks them against EC2's model."""
    text = given | {"UserData": given["UserData"].decode("latin-1")}
    return urlencode(create_serializer("ec2").serialize_to_request(text, RUN_INSTANCES)["body"])


NAMES = st.text(st.sampled_from("abcdefghij0123456789-"), min_size=1, max_size=63)
REQUESTS = st.builds(
    LaunchRequest,
    name=NAMES,
    token=st.text(st.sampled_from("0123456789abcdef"), min_size=1, max_size=64),
    owner=st.builds(Owner, NAMES, NAMES, NAMES, NAMES, NAMES, st.integers(1, 99)),
    offering=st.builds(
        Offering,
        st.sampled_from(["m6a.large", "c6a.xlarge"]),
        st.sampled_from(["us-east-1a", "us-east-1b"]),
        st.just(2),
        st.just(8192),
        market=st.sampled_from(Market),
    ),
    user_data=st.binary(max_size=200),
    image=st.sampled_from(["", "ami-2"]),
)
CONFIGURATIONS = st.fixed_dictionaries(
    {},
    optional={
        "USE_PUBLIC_IP": st.sampled_from(["true", "false"]),
        "DISABLECVM": st.sampled_from(["true", "false"]),
        "USE_PODVM_LAUNCHTEMPLATE": st.sampled_from(["true", "false"]),
        "TAGS": st.sampled_from(["", "a=b", "z=1,a=2"]),
        "ROOT_VOLUME_SIZE": st.sampled_from(["0", "4", "100"]),
        "PODVM_IAM_INSTANCE_PROFILE": st.sampled_from(["", "p", "arn:aws:iam::1:instance-profile/p"]),
    },
)


@given(REQUESTS, CONFIGURATIONS)
def test_the_same_request_is_the_same_bytes(request: LaunchRequest, environ: dict[str, str]) -> None:
    again = LaunchRequest(
        request.name,
        request.token,
        dataclasses.replace(request.owner),
        dataclasses.replace(request.offering),
        bytes(bytearray(request.user_data)),
        request.image,
    )
    first = on_the_wire(parameters(request, **environ))
    assert first == on_the_wire(parameters(again, **environ))
    assert parse_qs(first)["ClientToken"] == [request.token]


@given(REQUESTS, CONFIGURATIONS)
def test_every_launch_is_one_owned_instance_with_closed_metadata(
    request: LaunchRequest, environ: dict[str, str]
) -> None:
    made = parameters(request, **environ)
    assert (made["MinCount"], made["MaxCount"]) == (1, 1)
    assert made["UserData"] == request.user_data
    assert made["InstanceType"] == request.offering.instance_type
    assert made["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert made["MetadataOptions"]["HttpTokens"] == "required"
    assert made["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert [spec["ResourceType"] for spec in made["TagSpecifications"]] == ["instance", "volume", "network-interface"]
    for spec in made["TagSpecifications"]:
        tags = {tag["Key"]: tag["Value"] for tag in spec["Tags"]}
        assert len(tags) == len(spec["Tags"]) <= 50
        assert tags["Name"] == request.name
        assert owner_in(tags) == request.owner
    ebs = made["BlockDeviceMappings"][0]["Ebs"]
    assert (ebs["VolumeType"], ebs["Encrypted"], ebs["DeleteOnTermination"]) == ("gp3", True, True)
    assert made["NetworkInterfaces"][0]["DeleteOnTermination"] is True
    assert ("InstanceMarketOptions" in made) == (request.offering.market is Market.SPOT)


@given(REQUESTS, REQUESTS)
def test_the_digest_tells_requests_apart(one: LaunchRequest, other: LaunchRequest) -> None:
    same = dataclasses.replace(one, owner=other.owner) == dataclasses.replace(other, owner=other.owner)
    assert (one.digest == other.digest) == same


def test_the_root_volume_is_that_of_the_image_and_never_smaller() -> None:
    def root(size: int, **environ: str) -> dict[str, Any]:
        place = dataclasses.replace(PLACE, image=Image("ami-2", "x86_64", "/dev/sda1", size))
        made: dict[str, Any] = run_instances(REQUEST_1, keys(**environ), place)["BlockDeviceMappings"][0]
        return made

    assert root(8)["DeviceName"] == "/dev/sda1"
    assert root(8)["Ebs"]["VolumeSize"] == 30
    assert root(64)["Ebs"]["VolumeSize"] == 64
    assert "VolumeSize" not in root(64, ROOT_VOLUME_SIZE="0")["Ebs"]


def test_confidential_vms_are_the_default() -> None:
    assert parameters()["CpuOptions"] == {"AmdSevSnp": "enabled"}
    assert "CpuOptions" not in parameters(DISABLECVM="true")


def test_a_spot_instance_is_asked_for_once_and_never_stopped() -> None:
    spot = dataclasses.replace(REQUEST_1, offering=dataclasses.replace(REQUEST_1.offering, market=Market.SPOT))
    assert parameters(spot)["InstanceMarketOptions"] == {
        "MarketType": "spot",
        "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
    }


def test_groups_and_public_address_are_of_the_interface() -> None:
    interface = parameters()["NetworkInterfaces"][0]
    assert (interface["SubnetId"], interface["Groups"]) == ("subnet-1", ["sg-1", "sg-2"])
    assert "AssociatePublicIpAddress" not in interface  # the subnet decides
    assert parameters(USE_PUBLIC_IP="true")["NetworkInterfaces"][0]["AssociatePublicIpAddress"] is True


def test_a_launch_template_only_fills_what_is_not_said() -> None:
    made = parameters(USE_PODVM_LAUNCHTEMPLATE="true", PODVM_LAUNCHTEMPLATE_NAME="mine")
    assert made["LaunchTemplate"] == {"LaunchTemplateName": "mine"}
    assert made["DisableApiTermination"] is False
    of_the_template = ("LaunchTemplate", "DisableApiTermination")
    assert {k: v for k, v in made.items() if k not in of_the_template} == parameters()
    bare = run_instances(
        REQUEST_1, keys(USE_PODVM_LAUNCHTEMPLATE="true"), dataclasses.replace(PLACE, groups=(), key_pair="")
    )
    assert "Groups" not in bare["NetworkInterfaces"][0]
    assert "KeyName" not in bare


def test_the_instance_profile_is_named_or_given_by_arn() -> None:
    assert parameters(PODVM_IAM_INSTANCE_PROFILE="p")["IamInstanceProfile"] == {"Name": "p"}
    arn = "arn:aws:iam::1:instance-profile/p"
    assert parameters(PODVM_IAM_INSTANCE_PROFILE=arn)["IamInstanceProfile"] == {"Arn": arn}
    assert "IamInstanceProfile" not in parameters()


def test_user_data_is_measured_before_it_is_sent() -> None:
    check_user_data(dataclasses.replace(REQUEST_1, user_data=b"x" * USER_DATA_LIMIT))
    with pytest.raises(InvalidRequestError, match=r"16385 bytes.*at most 16384") as caught:
        check_user_data(dataclasses.replace(REQUEST_1, user_data=b"x" * (USER_DATA_LIMIT + 1)))
    assert caught.value.reason == "UserDataTooLarge"


def test_tags_name_the_owner_and_then_what_the_configuration_adds() -> None:
    tags = tags_of(REQUEST_1, (("team", "blue"),))
    assert tags[0] == {"Key": "Name", "Value": "podvm-web-aaaaaaaa"}
    assert tags[-1] == {"Key": "team", "Value": "blue"}
    assert {"Key": REQUEST, "Value": REQUEST_1.digest} in tags
    assert {"Key": "peerpods.caa/sandbox-id", "Value": "a" * 64} in tags


def test_tags_that_somebody_changed_name_no_owner() -> None:
    tags = {tag["Key"]: tag["Value"] for tag in tags_of(REQUEST_1, ())}
    assert owner_in(tags) == OWNER
    assert owner_in(tags | {"peerpods.caa/attempt": "x"}) is None
    assert owner_in({key: value for key, value in tags.items() if "node" not in key}) is None


def test_a_filter_matches_no_other_cluster() -> None:
    assert literal("a*b?c\\") == "a\\*b\\?c\\\\"
    assert filters_of(OwnerScope("prod", "worker-1")) == [
        {"Name": "tag:peerpods.caa/cluster", "Values": ["prod"]},
        {"Name": "tag:peerpods.caa/node", "Values": ["worker-1"]},
    ]
