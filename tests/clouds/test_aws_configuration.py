"""What the AWS provider makes of its configuration and of the worker it runs on."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from providers.aws.catalog import WITHOUT_SNP
from providers.aws.provider import OFFERINGS_SECONDS
from providers.base import (
    Market,
    MissingError,
)
from tests.clouds.aws_lab import AUTH_FAILURE, RUN, UNAUTHORIZED, Lab
from tests.clouds.faultproxy import Fault, Phase
from tests.clouds.imds import MAC, serve_metadata


def test_offerings_are_types_by_zones_by_markets(lab: Lab) -> None:
    provider = lab.provider(PODVM_INSTANCE_TYPES="c6a.xlarge,zz9.large", PODVM_MARKET="spot-then-on-demand")
    found = provider.offerings()
    assert {(o.instance_type, o.zone, o.market) for o in found} == set(
        itertools.product(("m6a.large", "c6a.xlarge"), lab.zones, Market)
    )
    large = next(o for o in found if o.instance_type == "m6a.large")
    assert (large.vcpus, large.memory_mib, large.arch, large.gpus) == (2, 8192, "x86_64", 0)


def test_types_without_snp_are_usable_for_ordinary_vms_only(lab: Lab) -> None:
    types = "m6i.large,g5.xlarge,m6g.large"
    offered = lab.provider(PODVM_INSTANCE_TYPES=types).offerings()
    assert {o.instance_type for o in offered if not o.unusable} == {"m6a.large"}
    assert {o.unusable for o in offered if o.instance_type == "m6i.large"} == {WITHOUT_SNP}
    found = {o.instance_type: o for o in lab.provider(PODVM_INSTANCE_TYPES=types, DISABLECVM="true").offerings()}
    assert not any(o.unusable for o in found.values())
    assert (found["g5.xlarge"].gpus, found["g5.xlarge"].gpu_model) == (1, "A10G")
    assert found["m6g.large"].arch == "arm64"


def test_offerings_are_looked_up_again_after_a_while(lab: Lab) -> None:
    provider = lab.provider()
    for _ in range(3):
        provider.offerings()
    assert lab.calls("DescribeInstanceTypes") == 1
    lab.now += OFFERINGS_SECONDS
    provider.offerings()
    assert lab.calls("DescribeInstanceTypes") == 2
    assert lab.calls("DescribeSubnets") == 1


def keys_of(problems: list[Any]) -> set[str]:
    return {problem.key for problem in problems}


def test_a_right_configuration_has_no_problem_and_checking_makes_nothing(lab: Lab) -> None:
    assert lab.provider(PODVM_INSTANCE_TYPES="m6a.xlarge", PODVM_MARKET="spot-then-on-demand").check() == []
    assert lab.account.emulator.counters()["states"] == {}


def test_every_problem_is_told_at_once_with_its_key_and_value(lab: Lab) -> None:
    problems = lab.provider(
        PODVM_AMI_ID="ami-0123456789abcdef0",
        AWS_SUBNET_ID="subnet-0123456789abcdef0",
        AWS_SG_IDS="sg-0123456789abcdef0",
        SSH_KP_NAME="nobody",
        USE_PODVM_LAUNCHTEMPLATE="true",
        PODVM_LAUNCHTEMPLATE_NAME="nothing",
        PODVM_INSTANCE_TYPE="m6i.large",
        PODVM_INSTANCE_TYPES="zz9.large",
    ).check()
    told = {problem.key: problem.message for problem in problems}
    assert "ami-0123456789abcdef0" in told["PODVM_AMI_ID"]
    assert "subnet-0123456789abcdef0" in told["AWS_SUBNET_ID"]
    assert "sg-0123456789abcdef0" in told["AWS_SG_IDS"]
    assert "nobody" in told["SSH_KP_NAME"]
    assert "nothing" in told["PODVM_LAUNCHTEMPLATE_NAME"]
    assert "SEV-SNP" in told["PODVM_INSTANCE_TYPE"]
    assert "zz9.large" in told["PODVM_INSTANCE_TYPES"]


def test_types_and_image_must_be_of_one_architecture(lab: Lab) -> None:
    (problem,) = lab.provider(PODVM_INSTANCE_TYPES="m6g.large", DISABLECVM="true").check()
    assert problem.key == "PODVM_INSTANCE_TYPES"
    assert "'m6g.large' is arm64" in problem.message


def test_a_type_that_no_zone_of_ours_has_is_a_problem(lab: Lab) -> None:
    subnet = lab.account.seed.subnets[lab.zones[0]]
    problems = lab.provider(AWS_SUBNET_IDS=subnet, PODVM_INSTANCE_TYPES="p4de.24xlarge", DISABLECVM="true").check()
    assert [problem.key for problem in problems] == ["PODVM_INSTANCE_TYPES"]
    assert f"'p4de.24xlarge' is offered in none of the subnets' zones: {lab.zones[0]}" in problems[0].message


def test_groups_of_another_network_are_a_problem(lab: Lab) -> None:
    vpc = lab.account.ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    group = lab.account.ec2.create_security_group(GroupName="other", Description="other", VpcId=vpc)["GroupId"]
    (problem,) = lab.provider(AWS_SG_IDS=group).check()
    assert (problem.key, vpc in problem.message) == ("AWS_SG_IDS", True)


def test_a_launch_template_with_what_cannot_be_undone_is_a_problem(lab: Lab) -> None:
    lab.account.ec2.create_launch_template(
        LaunchTemplateName="mine",
        LaunchTemplateData={
            "SecurityGroupIds": [lab.account.seed.security_group],
            "InstanceMarketOptions": {"MarketType": "spot"},
        },
    )
    problems = lab.provider(USE_PODVM_LAUNCHTEMPLATE="true", PODVM_LAUNCHTEMPLATE_NAME="mine").check()
    assert [problem.key for problem in problems] == ["PODVM_LAUNCHTEMPLATE_NAME"] * 2


def test_rejected_credentials_are_the_only_problem(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(
        Fault.STATUS,
        Phase.BEFORE,
        status=401,
        reply=AUTH_FAILURE,
    )
    (problem,) = lab.provider(proxy.url).check()
    assert problem.key == "AWS_ACCESS_KEY_ID"


def test_a_missing_right_to_launch_is_a_problem(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(
        Fault.STATUS,
        Phase.BEFORE,
        body=RUN,
        status=403,
        reply=UNAUTHORIZED,
    )
    (problem,) = lab.provider(proxy.url).check()
    assert "RunInstances" in problem.message


def test_an_unreachable_region_is_the_only_problem(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (problem,) = lab.provider(f"http://127.0.0.1:{taken.getsockname()[1]}").check()
    assert problem.key == "AWS_REGION"


def test_what_is_not_set_is_the_workers_own(lab: Lab) -> None:
    seed = lab.account.seed
    interface = f"network/interfaces/macs/{MAC}"
    values = {
        "mac": MAC,
        f"{interface}/subnet-id": seed.subnets[lab.zones[2]],
        f"{interface}/security-group-ids": seed.security_group,
        "public-keys/": f"0={seed.key_name}",
    }
    with serve_metadata(values) as imds:
        provider = lab.provider(
            AWS_SUBNET_IDS="",
            AWS_SG_IDS="",
            SSH_KP_NAME="",
            AWS_EC2_METADATA_DISABLED="false",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{imds.server_port}",
        )
        assert {o.zone for o in provider.offerings()} == {lab.zones[2]}
        seen = lab.account.one(provider.launch(lab.request(2)).id)
    assert seen["SubnetId"] == seed.subnets[lab.zones[2]]
    assert seen["KeyName"] == seed.key_name


def test_metadata_is_not_asked_for_what_is_set(lab: Lab) -> None:
    with serve_metadata({}) as imds:
        provider = lab.provider(
            AWS_EC2_METADATA_DISABLED="false",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{imds.server_port}",
        )
        provider.launch(lab.request())
        assert imds.asked == []


def test_what_cannot_be_had_is_told_by_its_key(lab: Lab) -> None:
    problems = lab.provider(AWS_SUBNET_IDS="", AWS_SG_IDS="").check()
    assert keys_of(problems) >= {"AWS_SUBNET_ID", "AWS_SG_IDS"}
    assert all("AWS_EC2_METADATA_DISABLED" in p.message for p in problems if p.key == "AWS_SG_IDS")


def test_a_web_identity_is_enough(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("eyJhbGciOiJub25lIn0.e30.")
    provider = lab.provider(
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
        AWS_ROLE_ARN="arn:aws:iam::123456789012:role/peer-pods",
        AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
    )
    assert provider.check() == []
    assert lab.calls("AssumeRoleWithWebIdentity") == 1


def test_a_role_that_may_not_be_assumed_is_named_as_such(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("eyJhbGciOiJub25lIn0.e30.")
    proxy = lab.proxy()
    denied = AUTH_FAILURE.replace(b"AuthFailure", b"AccessDenied")
    proxy.add(Fault.STATUS, Phase.BEFORE, body="AssumeRoleWithWebIdentity", status=403, reply=denied)
    (problem,) = lab.provider(
        proxy.url,
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
        AWS_ROLE_ARN="arn:aws:iam::123456789012:role/peer-pods",
        AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
    ).check()
    assert "AssumeRoleWithWebIdentity" in problem.message


def test_a_profile_is_enough(lab: Lab, tmp_path: Path) -> None:
    shared = tmp_path / "credentials"
    shared.write_text("[ops]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = not-checked\n")
    provider = lab.provider(
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
        AWS_SHARED_CREDENTIALS_FILE=str(shared),
        AWS_PROFILE="ops",
    )
    assert provider.check() == []


def test_without_any_credentials_nothing_is_sent(lab: Lab) -> None:
    (problem,) = lab.provider(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="").check()
    assert problem.key == "AWS_ACCESS_KEY_ID"
    assert lab.account.emulator.counters()["calls"].get("DescribeInstances", 0) == 0


def test_a_region_that_is_not_set_is_the_workers(lab: Lab) -> None:
    with serve_metadata({"placement/region": lab.account.seed.region}) as imds:
        provider = lab.provider(
            AWS_REGION="",
            AWS_DEFAULT_REGION="",
            AWS_EC2_METADATA_DISABLED="false",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{imds.server_port}",
        )
        assert provider.check() == []
    (problem,) = lab.provider(AWS_REGION="", AWS_DEFAULT_REGION="").check()
    assert problem.key == "AWS_REGION"
    assert "set AWS_REGION" in problem.message


def test_an_instance_is_described_as_ec2_has_it_without_its_user_data(lab: Lab) -> None:
    provider = lab.provider()
    made = provider.launch(lab.request())
    assert made.request_id
    assert made.image == lab.account.seed.images["x86_64"]
    assert made.groups == (lab.account.seed.security_group,)
    described = provider.describe(made.id)
    assert json.loads(json.dumps(described)) == described
    assert described["InstanceType"] == "m6a.large"
    assert described["PrivateIpAddress"] in made.addresses
    assert "UserData" not in str(described)
    with pytest.raises(MissingError):
        provider.describe("i-0123456789abcdef0")
