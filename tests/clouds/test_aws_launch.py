"""Launching on the emulated EC2: real boto3 over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from providers.aws import client
from providers.base import (
    CapacityError,
    DeniedError,
    InstanceState,
    InvalidRequestError,
    Offering,
    OfferingRefusedError,
    ProviderError,
    QuotaError,
    Scope,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.meanings import CAPACITY_SECONDS, QUOTA_SECONDS
from tests.clouds.aws_lab import AUTH_FAILURE, RUN, SCOPE, USER_DATA, Lab, spot
from tests.clouds.faultproxy import Fault, Phase


def test_a_launch_returns_at_once_with_address_and_owner(lab: Lab) -> None:
    lab.account.emulator.delays(pending=17)
    request = lab.request(1)
    instance = lab.provider().launch(request)
    assert instance.state is InstanceState.PENDING
    assert (instance.name, instance.owner) == (request.name, request.owner)
    assert (instance.instance_type, instance.zone) == ("m6a.large", lab.zones[1])
    assert len(instance.addresses) == 1
    assert instance.addresses[0].startswith("127.50.16.")  # of the subnet of that zone
    assert instance.created_at is not None
    assert instance.created_at.tzinfo is not None


def test_a_launch_asks_for_everything_in_the_one_call(lab: Lab) -> None:
    provider = lab.provider(TAGS="team=blue")
    instance_id = provider.launch(lab.request()).id
    assert lab.calls("RunInstances") == 1
    assert lab.calls("CreateTags") == 0
    seen, ec2 = lab.account.one(instance_id), lab.account.ec2
    assert lab.account.emulator.user_data(instance_id) == USER_DATA
    assert seen["MetadataOptions"]["HttpTokens"] == "required"
    assert seen["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    assert seen["CpuOptions"]["AmdSevSnp"] == "enabled"
    assert seen["KeyName"] == lab.account.seed.key_name
    behaviour = ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="instanceInitiatedShutdownBehavior")
    assert behaviour["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    (interface,) = seen["NetworkInterfaces"]
    assert [group["GroupId"] for group in interface["Groups"]] == [lab.account.seed.security_group]
    (mapping,) = seen["BlockDeviceMappings"]
    assert mapping["DeviceName"] == seen["RootDeviceName"]
    volume = ec2.describe_volumes(VolumeIds=[mapping["Ebs"]["VolumeId"]])["Volumes"][0]
    assert (volume["Size"], volume["Encrypted"], volume["VolumeType"]) == (30, True, "gp3")
    interfaces = ec2.describe_network_interfaces(NetworkInterfaceIds=[interface["NetworkInterfaceId"]])
    for tagged in (seen["Tags"], volume["Tags"], interfaces["NetworkInterfaces"][0]["TagSet"]):
        tags = {tag["Key"]: tag["Value"] for tag in tagged}
        assert tags["Name"] == "podvm-web-1"
        assert tags["team"] == "blue"
        assert tags["peerpods.caa/cluster"] == "prod"
        assert tags["peerpods.caa/node"] == "worker-1"


def test_the_same_request_makes_one_instance_whoever_sends_it(lab: Lab) -> None:
    request = lab.request()
    first = lab.provider()
    ids = {first.launch(request).id, first.launch(request).id, lab.provider().launch(request).id}
    assert list(ids) == lab.ids()
    assert lab.account.emulator.counters()["errors"] == {}


def test_several_subnets_in_a_zone_do_not_make_a_repeat_another_request(lab: Lab) -> None:
    vpc, zone = lab.account.seed.vpc, lab.zones[0]
    more = [
        lab.account.ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.50.{200 + n}.0/24", AvailabilityZone=zone)
        for n in range(3)
    ]
    ids = [lab.account.seed.subnets[zone], *(made["Subnet"]["SubnetId"] for made in more)]
    requests = [lab.request() for _ in range(8)]
    first = lab.provider(AWS_SUBNET_IDS=",".join(ids))
    made = [first.launch(request).id for request in requests]
    restarted = lab.provider(AWS_SUBNET_IDS=",".join(reversed(ids)))
    assert [restarted.launch(request).id for request in requests] == made
    assert len({lab.account.one(instance_id)["SubnetId"] for instance_id in made}) > 1
    assert lab.account.emulator.counters()["errors"] == {}  # EC2 took every repeat for the same request


@pytest.mark.parametrize(
    "changed", [{"TAGS": "a=b"}, {"ROOT_VOLUME_SIZE": "50"}, {"DISABLECVM": "true"}, {"USE_PUBLIC_IP": "true"}]
)
def test_a_configuration_that_changed_meanwhile_still_finds_the_instance(lab: Lab, changed: dict[str, str]) -> None:
    request = lab.request()
    made = lab.provider().launch(request)
    assert lab.provider(**changed).launch(request).id == made.id
    assert lab.ids() == [made.id]


def test_an_image_that_is_gone_meanwhile_still_finds_the_instance(lab: Lab) -> None:
    request = lab.request()
    made = lab.provider().launch(request)
    lab.account.ec2.deregister_image(ImageId=lab.account.seed.images["x86_64"])
    assert lab.provider().launch(request).id == made.id
    with pytest.raises(InvalidRequestError, match="PODVM_AMI_ID") as caught:
        lab.provider().launch(lab.request())
    assert caught.value.reason == "ImageMissing"


def test_the_same_token_for_another_request_is_refused(lab: Lab) -> None:
    request = lab.request()
    provider = lab.provider()
    made = provider.launch(request)
    with pytest.raises(InvalidRequestError) as caught:
        provider.launch(replace(request, user_data=USER_DATA + b"#"))
    assert caught.value.reason == "IdempotentParameterMismatch"
    assert lab.ids() == [made.id]


def test_an_earlier_instance_that_is_not_listed_yet_is_waited_for(lab: Lab) -> None:
    request = lab.request()
    lab.account.emulator.staleness(seconds=20)
    made = lab.provider().launch(request)
    changed = lab.provider(TAGS="a=b")
    with pytest.raises(UnknownOutcomeError, match="does not list its instance"):
        changed.launch(request)
    lab.account.emulator.advance(20)
    assert changed.launch(request).id == made.id


def test_a_repeat_after_the_end_is_told_as_terminating(lab: Lab) -> None:
    request = lab.request()
    provider = lab.provider()
    made = provider.launch(request)
    lab.end(provider, made.id)
    again = provider.launch(request)
    assert (again.id, again.state) == (made.id, InstanceState.TERMINATING)
    assert lab.ids() == [made.id]


def test_the_image_of_the_request_is_used_with_its_own_root(lab: Lab) -> None:
    arm = lab.account.seed.images["arm64"]
    request = lab.request(image=arm, offering=Offering("m6g.large", lab.zones[0], 2, 8192, arch="arm64"))
    made = lab.provider(DISABLECVM="true").launch(request)
    assert lab.account.one(made.id)["ImageId"] == arm


def test_a_spot_instance_is_bought_as_one(lab: Lab) -> None:
    made = lab.provider().launch(spot(lab.request()))
    assert lab.account.one(made.id)["InstanceLifecycle"] == "spot"


def test_user_data_that_is_too_long_is_refused_without_a_call(lab: Lab) -> None:
    with pytest.raises(InvalidRequestError, match=r"16385 bytes.*16384"):
        lab.provider().launch(lab.request(user_data=b"x" * 16385))
    assert lab.calls("RunInstances") == 0
    lab.provider().launch(lab.request(user_data=b"x" * 16384))


def test_a_zone_without_subnet_is_refused_naming_the_zones_there_are(lab: Lab) -> None:
    request = lab.request(offering=Offering("m6a.large", "us-east-1f", 2, 8192))
    with pytest.raises(InvalidRequestError, match=r"AWS_SUBNET_ID.*us-east-1f.*us-east-1a"):
        lab.provider().launch(request)


def test_many_threads_share_one_provider(lab: Lab) -> None:
    provider = lab.provider()
    requests = [lab.request(n % 3) for n in range(12)] * 2
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(provider.launch, requests))
    assert len({instance.id for instance in made}) == 12
    assert sorted({instance.id for instance in made}) == lab.ids()
    assert {(instance.name, instance.owner) for instance in made} == {(r.name, r.owner) for r in requests}


def test_public_addresses_are_the_only_ones_given_when_they_are_wanted(lab: Lab) -> None:
    provider = lab.provider(USE_PUBLIC_IP="true")
    made = provider.launch(lab.request())
    (listed,) = provider.instances(SCOPE)
    assert listed.addresses == (lab.account.one(made.id)["PublicIpAddress"],)


def test_a_launch_template_fills_what_is_not_set(lab: Lab) -> None:
    lab.account.ec2.create_launch_template(
        LaunchTemplateName="mine", LaunchTemplateData={"KeyName": lab.account.seed.key_name, "EbsOptimized": True}
    )
    provider = lab.provider(
        USE_PODVM_LAUNCHTEMPLATE="true", PODVM_LAUNCHTEMPLATE_NAME="mine", SSH_KP_NAME="", AWS_SG_IDS=""
    )
    assert provider.check() == []
    seen = lab.account.one(provider.launch(lab.request()).id)
    assert seen["InstanceType"] == "m6a.large"
    assert seen["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize(
    ("prepare", "kind", "reason", "reach"),
    [
        (
            lambda e: e.capacity({"instance_type": "m6a.large"}),
            CapacityError,
            "InsufficientInstanceCapacity",
            (Scope.OFFERING, CAPACITY_SECONDS),
        ),
        (lambda e: e.quota(on_demand=1), QuotaError, "VcpuLimitExceeded", (Scope.TYPE, QUOTA_SECONDS)),
        (lambda e: e.limits({"RunInstances": (0, 0)}), ThrottledError, "Throttled", None),
    ],
)
def test_a_refusal_says_what_kind_it_is_and_makes_nothing(
    lab: Lab, prepare: Callable[[Any], None], kind: type[ProviderError], reason: str, reach: tuple[Scope, float] | None
) -> None:
    prepare(lab.account.emulator)
    with pytest.raises(kind, match=r"m6a\.large|calls") as caught:
        lab.provider().launch(lab.request())
    assert caught.value.reason == reason
    if isinstance(caught.value, OfferingRefusedError):
        assert (caught.value.scope, caught.value.seconds) == reach
    assert lab.calls("RunInstances") == 1  # the service repeats, never the SDK
    assert lab.ids() == []


def test_a_spot_quota_rules_out_the_market(lab: Lab) -> None:
    lab.account.emulator.quota(spot=1)
    with pytest.raises(QuotaError) as caught:
        lab.provider().launch(spot(lab.request()))
    assert caught.value.scope is Scope.MARKET


def test_a_full_subnet_rules_out_the_zone(lab: Lab) -> None:
    vpc, zone = lab.account.seed.vpc, lab.zones[0]
    made = lab.account.ec2.create_subnet(VpcId=vpc, CidrBlock="127.50.250.0/28", AvailabilityZone=zone)
    provider = lab.provider(AWS_SUBNET_IDS=made["Subnet"]["SubnetId"])
    for _ in range(11):  # AWS keeps 5 of the 16 addresses
        provider.launch(lab.request())
    with pytest.raises(CapacityError, match="AWS_SUBNET_ID") as caught:
        provider.launch(lab.request())
    assert caught.value.scope is Scope.ZONE


def test_a_type_that_the_zone_lacks_is_a_matter_of_that_offering(lab: Lab) -> None:
    request = lab.request(offering=Offering("p4de.24xlarge", lab.zones[0], 96, 1179648))
    with pytest.raises(CapacityError, match=r"p4de\.24xlarge as asked for in us-east-1a") as caught:
        lab.provider(DISABLECVM="true").launch(request)
    assert (caught.value.reason, caught.value.scope) == ("Unsupported", Scope.OFFERING)


def test_rejected_credentials_are_denied(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(
        Fault.STATUS,
        Phase.BEFORE,
        body=RUN,
        status=401,
        reply=AUTH_FAILURE,
    )
    with pytest.raises(DeniedError, match="AWS_ACCESS_KEY_ID"):
        lab.provider(proxy.url).launch(lab.request())


@pytest.mark.parametrize("phase", [Phase.BEFORE, Phase.AFTER])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.DROP, Fault.STATUS])
def test_a_lost_answer_is_an_unknown_outcome_and_the_repeat_makes_one_instance(
    lab: Lab, phase: Phase, fault: Fault
) -> None:
    proxy = lab.proxy()
    proxy.add(fault, phase, body=RUN)
    provider, request = lab.provider(proxy.url), lab.request()
    with pytest.raises(UnknownOutcomeError, match="RunInstances"):
        provider.launch(request)
    assert len(lab.ids()) == (1 if phase is Phase.AFTER else 0)
    assert proxy.count()["RunInstances"] == 1
    made = provider.launch(request)
    assert lab.ids() == [made.id]


def test_half_an_answer_is_an_unknown_outcome(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(Fault.TRUNCATE, Phase.AFTER, body=RUN)
    provider, request = lab.provider(proxy.url), lab.request()
    with pytest.raises(UnknownOutcomeError):
        provider.launch(request)
    assert lab.ids() == [provider.launch(request).id]


def test_no_answer_in_time_is_an_unknown_outcome(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "READ_SECONDS", 4)  # of the calls before it, too
    proxy = lab.proxy()
    proxy.add(Fault.HANG, Phase.AFTER, body=RUN)
    provider, request = lab.provider(proxy.url), lab.request()
    with pytest.raises(UnknownOutcomeError, match="ReadTimeout"):
        provider.launch(request)
    assert lab.ids() == [lab.provider().launch(request).id]


def test_where_nothing_listens_nothing_was_sent(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        provider = lab.provider(f"http://127.0.0.1:{taken.getsockname()[1]}")
        for call in (lambda: provider.launch(lab.request()), lambda: provider.instances(SCOPE), provider.offerings):
            with pytest.raises(UnavailableError):
                call()
        refused = provider.terminate(["i-0123456789abcdef0", "i-0123456789abcdef1"])
        assert {type(error) for error in refused.values()} == {UnavailableError}
        assert len(refused) == 2


def test_a_listing_that_failed_did_nothing(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(Fault.RESET, Phase.AFTER, body="Action=DescribeInstances")
    with pytest.raises(UnavailableError):
        lab.provider(proxy.url).instances(SCOPE)
