"""The AWS provider on the emulated EC2: real boto3 over real HTTP."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.aws import client
from providers.aws.provider import OFFERINGS_SECONDS, VISIBLE_SECONDS, AwsProvider
from providers.aws.settings import AwsKeys
from providers.base import (
    CapacityError,
    CapacityScope,
    DeniedError,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    Market,
    Offering,
    Owner,
    OwnerScope,
    ProviderError,
    QuotaError,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.keys import read_keys
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imds import MAC, serve_metadata

SCOPE = OwnerScope("prod", "worker-1")
AUTH_FAILURE = b"<Response><Errors><Error><Code>AuthFailure</Code><Message>no</Message></Error></Errors></Response>"
UNAUTHORIZED = AUTH_FAILURE.replace(b"AuthFailure", b"UnauthorizedOperation")
USER_DATA = b"#cloud-config\n\nwrite_files:\n  - path: /run/peerpod/apf.json\n    content: |\n      \xc3\xa9\n"
RUN = "Action=RunInstances"


class Lab:
    """Providers on one account, on a clock that only the test moves."""

    def __init__(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account = account
        self.zones = account.seed.zones
        self.now = 1000.0
        self._monkeypatch = monkeypatch
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count(1)

    def environ(self, **changed: str) -> dict[str, str]:
        """The configuration; a change to "" unsets a key."""
        seed = self.account.seed
        return {
            "PODVM_AMI_ID": seed.images["x86_64"],
            "AWS_SUBNET_IDS": ",".join(seed.subnets[zone] for zone in self.zones),
            "AWS_SG_IDS": seed.security_group,
            "SSH_KP_NAME": seed.key_name,
            **changed,
        }

    def provider(self, url: str = "", **changed: str) -> AwsProvider:
        """A provider as a fresh process would have it; `url` leads through a proxy."""
        for key in [key for key in os.environ if key.startswith("AWS_")]:
            self._monkeypatch.delenv(key)
        given = self.account.emulator.environ(url) | self.environ(**changed)
        for key, value in given.items():
            if key.startswith("AWS_") and value:  # boto reads the process's environment itself
                self._monkeypatch.setenv(key, value)
        made = AwsProvider(read_keys(AwsKeys, given), clock=lambda: self.now)
        self._stack.callback(made.close)
        return made

    def request(self, zone: int = 0, **changed: Any) -> LaunchRequest:
        number = next(self._numbers)
        made = LaunchRequest(
            name=f"podvm-web-{number}",
            token=f"{number:064x}",
            owner=Owner("prod", "worker-1", f"{number:064x}", "default", "web", 1),
            offering=Offering("m6a.large", self.zones[zone], 2, 8192),
            user_data=USER_DATA,
        )
        return replace(made, **changed)

    def calls(self, action: str) -> int:
        return int(self.account.emulator.counters()["calls"].get(action, 0))

    def ids(self) -> list[str]:
        """Every instance that was ever made, seen past the provider."""
        return sorted(i for ids in self.account.emulator.counters()["tokens"].values() for i in ids)

    def proxy(self) -> FaultProxy:
        return self._stack.enter_context(FaultProxy(self.account.emulator.url))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def lab(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(account, monkeypatch)
    yield made
    made.close()


def spot(request: LaunchRequest) -> LaunchRequest:
    return replace(request, offering=replace(request.offering, market=Market.SPOT))


# Launch


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
    with pytest.raises(UnknownOutcomeError, match="lists no instance"):
        changed.launch(request)
    lab.account.emulator.advance(20)
    assert changed.launch(request).id == made.id


def test_a_repeat_after_the_end_is_told_as_terminating(lab: Lab) -> None:
    request = lab.request()
    provider = lab.provider()
    made = provider.launch(request)
    provider.terminate(made.id)
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


# Refusals


@pytest.mark.parametrize(
    ("prepare", "kind", "reason", "scope"),
    [
        (
            lambda e: e.capacity({"instance_type": "m6a.large"}),
            CapacityError,
            "InsufficientInstanceCapacity",
            "offering",
        ),
        (lambda e: e.quota(on_demand=1), QuotaError, "VcpuLimitExceeded", None),
        (lambda e: e.limits({"RunInstances": (0, 0)}), ThrottledError, "Throttled", None),
    ],
)
def test_a_refusal_says_what_kind_it_is_and_makes_nothing(
    lab: Lab, prepare: Callable[[Any], None], kind: type[ProviderError], reason: str, scope: str | None
) -> None:
    prepare(lab.account.emulator)
    with pytest.raises(kind, match=r"m6a\.large|calls") as caught:
        lab.provider().launch(lab.request())
    assert caught.value.reason == reason
    if isinstance(caught.value, CapacityError):
        assert caught.value.scope == scope
    assert lab.calls("RunInstances") == 1  # the service repeats, never the SDK
    assert lab.ids() == []


def test_a_spot_quota_rules_out_the_market(lab: Lab) -> None:
    lab.account.emulator.quota(spot=1)
    with pytest.raises(CapacityError) as caught:
        lab.provider().launch(spot(lab.request()))
    assert caught.value.scope is CapacityScope.MARKET


def test_a_full_subnet_rules_out_the_zone(lab: Lab) -> None:
    vpc, zone = lab.account.seed.vpc, lab.zones[0]
    made = lab.account.ec2.create_subnet(VpcId=vpc, CidrBlock="127.50.250.0/28", AvailabilityZone=zone)
    provider = lab.provider(AWS_SUBNET_IDS=made["Subnet"]["SubnetId"])
    for _ in range(11):  # AWS keeps 5 of the 16 addresses
        provider.launch(lab.request())
    with pytest.raises(CapacityError, match="AWS_SUBNET_ID") as caught:
        provider.launch(lab.request())
    assert caught.value.scope is CapacityScope.ZONE


def test_a_type_that_the_zone_lacks_is_a_matter_of_that_offering(lab: Lab) -> None:
    request = lab.request(offering=Offering("p4de.24xlarge", lab.zones[0], 96, 1179648))
    with pytest.raises(CapacityError, match=r"p4de\.24xlarge as asked for in us-east-1a") as caught:
        lab.provider(DISABLECVM="true").launch(request)
    assert (caught.value.reason, caught.value.scope) == ("Unsupported", CapacityScope.OFFERING)


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


# Lost answers


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
    monkeypatch.setattr(client, "READ_SECONDS", 0.2)
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
        for call in (
            lambda: provider.launch(lab.request()),
            lambda: provider.instances(SCOPE),
            lambda: provider.terminate("i-0123456789abcdef0"),
            lambda: provider.discard(lab.request()),
            provider.offerings,
        ):
            with pytest.raises(UnavailableError):
                call()


def test_a_listing_that_failed_did_nothing(lab: Lab) -> None:
    proxy = lab.proxy()
    proxy.add(Fault.RESET, Phase.AFTER, body="Action=DescribeInstances")
    with pytest.raises(UnavailableError):
        lab.provider(proxy.url).instances(SCOPE)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["launch", "launch", "launch changed", "discard"]),
        st.sampled_from([None, Fault.RESET, Fault.DROP, Fault.STATUS, Fault.TRUNCATE]),
        st.sampled_from([Phase.BEFORE, Phase.AFTER]),
        st.sampled_from(["RunInstances", "DescribeInstances", "TerminateInstances"]),
        st.integers(0, 12),
    ),
    max_size=6,
)


def test_whatever_is_lost_a_launch_makes_one_instance_and_discarding_leaves_none(lab: Lab) -> None:
    proxy = lab.proxy()
    providers = [lab.provider(proxy.url), lab.provider(proxy.url, TAGS="changed=yes")]

    # A launch may be repeated until it is discarded; after that it is only discarded, until that succeeds.
    @settings(max_examples=30, deadline=None)
    @given(_STEPS, st.integers(0, 20))
    def run(steps: list[tuple[str, Fault | None, Phase, str, int]], stale: int) -> None:
        lab.account.emulator.staleness(seconds=stale)
        request, given_up = lab.request(), False
        for step, fault, phase, action, seconds in steps:
            given_up = given_up or step == "discard"
            proxy.clear()
            if fault and (fault, phase) != (Fault.TRUNCATE, Phase.BEFORE):
                proxy.add(fault, phase, body=f"Action={action}")
            provider = providers[step == "launch changed"]
            with contextlib.suppress(UnknownOutcomeError, UnavailableError):
                (provider.discard if given_up else provider.launch)(request)
            lab.now += seconds
            lab.account.emulator.advance(seconds)
        proxy.clear()
        ids = lab.account.emulator.counters()["tokens"].get(request.token, [])
        assert len(ids) <= 1
        while True:
            try:
                providers[0].discard(request)
                break
            except UnknownOutcomeError:
                lab.now += 5
                lab.account.emulator.advance(5)
        assert lab.account.emulator.counters()["tokens"].get(request.token, []) == ids
        assert all(lab.account.state(instance_id) == "terminated" for instance_id in ids)

    run()


# Listing


def test_only_the_owners_instances_are_listed_whatever_their_state(lab: Lab) -> None:
    lab.account.emulator.delays(pending=10, shutting_down=10)
    provider = lab.provider()
    mine = [provider.launch(lab.request()) for _ in range(4)]
    for cluster, node in (("prod", "worker-2"), ("test", "worker-1"), ("prod", "worker-10")):
        request = lab.request()
        provider.launch(replace(request, owner=replace(request.owner, cluster=cluster, node=node)))
    lab.account.launch()  # somebody else's, without tags
    lab.account.emulator.advance(10)
    lab.account.ec2.stop_instances(InstanceIds=[mine[1].id])
    provider.terminate(mine[2].id)
    provider.terminate(mine[3].id)
    late = provider.launch(lab.request())
    states = {i.id: i.state for i in provider.instances(SCOPE)}
    assert states == {
        mine[0].id: InstanceState.RUNNING,
        mine[1].id: InstanceState.STOPPED,
        mine[2].id: InstanceState.TERMINATING,
        mine[3].id: InstanceState.TERMINATING,
        late.id: InstanceState.PENDING,
    }
    lab.account.emulator.advance(10)
    assert mine[2].id not in {i.id for i in provider.instances(SCOPE)}


def test_a_listing_has_all_pages(lab: Lab) -> None:
    provider = lab.provider()
    made = {provider.launch(lab.request()).id for _ in range(7)}
    lab.account.emulator.page_size(3)
    assert {i.id for i in provider.instances(SCOPE)} == made
    assert lab.calls("DescribeInstances") == 3


def test_a_listed_instance_is_the_launched_one(lab: Lab) -> None:
    provider = lab.provider()
    launched = provider.launch(lab.request())
    (listed,) = provider.instances(SCOPE)
    assert replace(listed, state=launched.state) == launched


# Terminate and discard


def test_terminating_takes_everything_along_and_may_be_repeated(lab: Lab) -> None:
    provider = lab.provider()
    before = lab.account.emulator.counters()
    made = provider.launch(lab.request())
    provider.terminate(made.id)
    provider.terminate(made.id)
    assert provider.instances(SCOPE) == []
    after = lab.account.emulator.counters()
    assert (after["interfaces"], after["volumes"]) == (before["interfaces"], before["volumes"])


def test_an_absent_instance_is_terminated_already(lab: Lab) -> None:
    lab.provider().terminate("i-0123456789abcdef0")


def test_an_instance_launched_just_now_is_not_taken_for_absent(lab: Lab) -> None:
    lab.account.emulator.staleness(seconds=5, terminate=True)
    provider = lab.provider()
    made = provider.launch(lab.request())
    with pytest.raises(UnknownOutcomeError, match=made.id):
        provider.terminate(made.id)
    lab.account.emulator.advance(5)
    provider.terminate(made.id)
    assert lab.account.state(made.id) == "terminated"


def test_discarding_an_accepted_launch_terminates_it(lab: Lab) -> None:
    request = lab.request()
    made = lab.provider().launch(request)
    later = lab.provider()
    later.discard(request)
    later.discard(request)
    assert lab.account.state(made.id) == "terminated"
    assert lab.calls("RunInstances") == 1


def test_discarding_a_launch_that_was_never_sent_makes_nothing(lab: Lab) -> None:
    provider, request = lab.provider(), lab.request()
    with pytest.raises(UnknownOutcomeError, match="lists no instance"):
        provider.discard(request)
    lab.now += VISIBLE_SECONDS - 1
    with pytest.raises(UnknownOutcomeError):
        provider.discard(request)
    lab.now += 1
    provider.discard(request)
    assert lab.calls("RunInstances") == 0


def test_discarding_waits_for_a_launch_that_is_not_listed_yet(lab: Lab) -> None:
    request = lab.request()
    lab.account.emulator.staleness(seconds=10)
    made = lab.provider().launch(request)
    later = lab.provider()
    with pytest.raises(UnknownOutcomeError):
        later.discard(request)
    lab.account.emulator.advance(10)
    lab.now += 10
    later.discard(request)
    assert lab.account.state(made.id) == "terminated"


def test_discarding_touches_no_other_launch(lab: Lab) -> None:
    provider = lab.provider()
    kept, gone = lab.request(), lab.request()
    other = provider.launch(kept)
    provider.launch(gone)
    provider.discard(gone)
    assert [i.id for i in provider.instances(SCOPE)] == [other.id]


# Offerings


def test_offerings_are_types_by_zones_by_markets(lab: Lab) -> None:
    provider = lab.provider(PODVM_INSTANCE_TYPES="c6a.xlarge,zz9.large", PODVM_MARKET="spot-then-on-demand")
    found = provider.offerings()
    assert {(o.instance_type, o.zone, o.market) for o in found} == set(
        itertools.product(("m6a.large", "c6a.xlarge"), lab.zones, Market)
    )
    large = next(o for o in found if o.instance_type == "m6a.large")
    assert (large.vcpus, large.memory_mib, large.arch, large.gpus) == (2, 8192, "x86_64", 0)


def test_types_without_snp_are_offered_for_ordinary_vms_only(lab: Lab) -> None:
    types = "m6i.large,g5.xlarge,m6g.large"
    assert {o.instance_type for o in lab.provider(PODVM_INSTANCE_TYPES=types).offerings()} == {"m6a.large"}
    found = {o.instance_type: o for o in lab.provider(PODVM_INSTANCE_TYPES=types, DISABLECVM="true").offerings()}
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


# Check


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


# The worker's place


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


# Credentials


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
