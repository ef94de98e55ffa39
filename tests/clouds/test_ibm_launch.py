"""Launches on the emulated IBM Cloud: what is asked for, and that one request makes one instance whatever happens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from providers.base import (
    CapacityError,
    InstanceState,
    InvalidRequestError,
    OwnerScope,
    QuotaError,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from tests.clouds.faultproxy import Fault, Phase
from tests.clouds.ibm_lab import SCOPE, TYPE, USER_DATA, IbmLab

CREATE = "^CreateInstance$"


# What is asked for


def test_a_launch_is_one_call_that_says_all(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.delays(pending=5)
    request = ibm.request()
    provider.launch(request)
    before = ibm.calls("CreateInstance")
    made = provider.launch(ibm.request())
    assert ibm.calls("CreateInstance") == before + 1
    assert made.state is InstanceState.PENDING
    assert made.addresses
    assert made.request_id
    found = next(one for one in ibm.emulator.instances() if one["name"] == request.name)
    assert found["profile"]["name"] == TYPE
    assert found["zone"]["name"] == ibm.zones[0]
    assert found["image"]["id"] == ibm.seed.images["x86_64"]
    assert found["vpc"]["id"] == ibm.seed.vpc
    assert found["metadata_service"] == {"enabled": True, "protocol": "https", "response_hop_limit": 1}
    assert found["availability_policy"]["host_failure"] == "stop"
    assert ibm.emulator.user_data(found["id"]) == USER_DATA


def test_interface_and_volume_have_the_instances_name_and_go_with_it(ibm: IbmLab) -> None:
    provider = ibm.provider(TAGS="team:blue")
    request = ibm.request()
    made = provider.launch(request)
    (interface,) = ibm.emulator.resources("virtual_network_interfaces")
    (volume,) = ibm.emulator.resources("volumes")
    assert interface["name"] == volume["name"] == request.name
    assert interface["auto_delete"]
    assert not interface["allow_ip_spoofing"]
    assert [group["id"] for group in interface["security_groups"]] == [ibm.seed.security_group]
    assert volume["user_tags"] == [
        *("caa-cluster:prod", "caa-node:worker-1", f"caa-sandbox:{request.owner.sandbox_id}"),
        *("caa-namespace:default", "caa-pod:web", "caa-attempt:1", "team:blue"),
    ]
    ibm.end(provider, made.id)
    ibm.emulator.advance(1)
    counters = ibm.emulator.counters()
    assert (counters["states"], counters["interfaces"], counters["volumes"], counters["floating_ips"]) == ({}, 0, 0, 0)


def test_the_owner_is_in_the_create_call_and_read_from_the_list(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    made = provider.launch(request)
    (listed,) = provider.instances(SCOPE)
    assert listed.id == made.id
    assert listed.owner is not None
    assert listed.owner.launch == request.owner.launch
    assert provider.instances(OwnerScope("prod", "worker-2")) == []
    assert provider.instances(OwnerScope("test", "worker-1")) == []


@pytest.mark.parametrize("sandbox_id", ["web-1", "A.b_c-9", "0b3f3f0e-6f0f-4a3e-9a64-8a6f3f0e6f0f", "0" * 64, "a" * 38])
def test_sandbox_ids_that_people_make_up_come_back_as_they_were(ibm: IbmLab, sandbox_id: str) -> None:
    provider = ibm.provider()
    request = ibm.request()
    owner = replace(request.owner, sandbox_id=sandbox_id, attempt=123)
    provider.launch(replace(request, owner=owner))
    (listed,) = provider.instances(SCOPE)
    assert listed.owner is not None
    assert (listed.owner.sandbox_id, listed.owner.attempt) == (sandbox_id, 123)


def test_a_sandbox_id_that_does_not_go_into_a_name_is_refused_before_any_call(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    with pytest.raises(InvalidRequestError, match="too long for IBM Cloud"):
        provider.launch(replace(request, owner=replace(request.owner, sandbox_id="g" * 39)))
    assert ibm.calls("CreateInstance") == 0


def test_user_data_beyond_the_limit_is_refused_before_any_call(ibm: IbmLab) -> None:
    provider = ibm.provider()
    provider.launch(ibm.request(user_data=b"#" * 65536))
    with pytest.raises(InvalidRequestError, match="65537 bytes, and IBM Cloud takes at most 65536"):
        provider.launch(ibm.request(user_data=b"#" * 65537))
    assert ibm.calls("CreateInstance") == 1


def test_all_instances_of_a_node_are_listed_page_by_page(ibm: IbmLab) -> None:
    provider = ibm.provider()
    made = {provider.launch(ibm.request()).id for _ in range(7)}
    ibm.emulator.page_size(3)
    assert {one.id for one in provider.instances(SCOPE)} == made


# One request, one instance


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.DROP, Fault.TRUNCATE])
def test_a_reply_that_is_lost_leaves_one_instance_which_the_repeat_adopts(ibm: IbmLab, fault: Fault) -> None:
    proxy = ibm.proxy()
    provider = ibm.provider(proxy.url)
    request = ibm.request()
    proxy.add(fault, Phase.AFTER, action=CREATE)
    with pytest.raises(UnknownOutcomeError):
        provider.launch(request)
    made = provider.launch(request)
    assert ibm.ids() == [made.id]
    assert made.owner == request.owner


def test_an_error_after_the_cloud_acted_leaves_one_instance(ibm: IbmLab) -> None:
    proxy = ibm.proxy()
    provider = ibm.provider(proxy.url)
    request = ibm.request()
    proxy.add(Fault.STATUS, Phase.AFTER, action=CREATE, status=500, reply=b"{}", content_type="application/json")
    with pytest.raises(UnknownOutcomeError):
        provider.launch(request)
    assert [provider.launch(request).id] == ibm.ids()


def test_a_request_that_never_arrived_may_be_sent_again(ibm: IbmLab) -> None:
    provider = ibm.provider("https://localhost:1")
    with pytest.raises(UnavailableError):
        provider.launch(ibm.request())


def test_the_same_request_twice_is_one_instance_also_for_a_provider_of_another_configuration(ibm: IbmLab) -> None:
    request = ibm.request()
    made = ibm.provider().launch(request)
    again = ibm.provider(IBMCLOUD_SSH_KEY_ID="", TAGS="later:yes").launch(request)
    assert again.id == made.id
    assert ibm.ids() == [made.id]


def test_the_instance_of_a_lost_reply_is_found_though_it_took_the_last_of_the_quota(ibm: IbmLab) -> None:
    proxy = ibm.proxy()
    provider = ibm.provider(proxy.url)
    request = ibm.request()
    proxy.add(Fault.RESET, Phase.AFTER, action=CREATE)
    with pytest.raises(UnknownOutcomeError):
        provider.launch(request)
    over = b'{"errors":[{"code":"over_quota","message":"Quota exceeded"}],"trace":"t"}'
    proxy.add(Fault.STATUS, Phase.BEFORE, action=CREATE, status=400, reply=over, content_type="application/json")
    assert [provider.launch(request).id] == ibm.ids()


def test_a_foreign_instance_of_the_same_name_is_refused_and_left_alone(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    foreign = ibm.provider().launch(replace(request, owner=replace(request.owner, cluster="test")))
    with pytest.raises(InvalidRequestError) as refused:
        provider.launch(request)
    assert refused.value.reason == "NameTaken"
    assert request.name in str(refused.value)
    assert ibm.ids() == [foreign.id]


def test_an_instance_of_the_same_name_and_owner_but_another_request_is_refused(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    provider.launch(request)
    with pytest.raises(InvalidRequestError) as refused:
        provider.launch(replace(request, user_data=b"#cloud-config\n"))
    assert refused.value.reason == "NameTaken"


def test_a_name_that_is_taken_by_what_no_list_shows_yet_is_no_answer(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    ibm.emulator.staleness(calls=1)
    made = provider.launch(request)
    with pytest.raises(UnknownOutcomeError) as unknown:
        provider.launch(request)
    assert unknown.value.reason == "NotVisibleYet"
    assert provider.launch(request).id == made.id


def test_an_adopted_instance_that_is_ending_says_so(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request = ibm.request()
    ibm.emulator.delays(shutting_down=60)
    made = provider.launch(request)
    ibm.end(provider, made.id)
    assert provider.launch(request).state is InstanceState.TERMINATING


# Refusals


def test_want_of_capacity_rules_out_the_offering_and_makes_nothing(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.capacity({"zone": ibm.zones[0]})
    with pytest.raises(CapacityError) as refused:
        provider.launch(ibm.request())
    assert refused.value.seconds > 0
    assert refused.value.request_id
    assert f"no {TYPE} left in {ibm.zones[0]}" in str(refused.value)
    assert ibm.ids() == []
    provider.launch(ibm.request(zone=1))


def test_a_quota_is_told_apart_from_capacity(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.quota(3)
    provider.launch(ibm.request())
    with pytest.raises(QuotaError, match="quota of the account does not allow another bx2-2x8"):
        provider.launch(ibm.request())


def test_a_throttled_call_says_how_long_to_wait_and_is_not_repeated_by_the_sdk(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.limits({"CreateInstance": (1, 0.001)}, retry_after=7)
    provider.launch(ibm.request())
    with pytest.raises(ThrottledError) as throttled:
        provider.launch(ibm.request())
    assert throttled.value.retry_after == 7
    assert ibm.calls("CreateInstance") == 2


def test_a_subnet_without_addresses_rules_out_its_zone(ibm: IbmLab) -> None:
    ibm.emulator.reset()
    ibm.seed = ibm.emulator.seed(subnet_bits=29)
    provider = ibm.provider()
    for _ in range(3):
        provider.launch(ibm.request())
    with pytest.raises(CapacityError) as refused:
        provider.launch(ibm.request())
    assert refused.value.scope == "zone"


# Dedicated hosts


def test_a_dedicated_host_is_used_first_and_its_group_when_it_is_full(ibm: IbmLab) -> None:
    host, group = ibm.emulator.dedicated(ibm.zones[0], vcpus=2)
    provider = ibm.provider(IBMCLOUD_DEDICATED_HOST_IDS=host, IBMCLOUD_DEDICATED_HOST_GROUP_IDS=group)
    for _ in range(2):
        provider.launch(ibm.request())
    assert [one["placement_target"]["id"] for one in ibm.emulator.instances()] == [host, group]
    provider.launch(ibm.request(zone=1))
    assert "placement_target" not in ibm.emulator.instances()[-1]


def test_a_full_dedicated_host_without_a_group_is_want_of_capacity(ibm: IbmLab) -> None:
    host, _ = ibm.emulator.dedicated(ibm.zones[0], vcpus=1)
    provider = ibm.provider(IBMCLOUD_DEDICATED_HOST_IDS=host)
    with pytest.raises(CapacityError, match=host):
        provider.launch(ibm.request())


# The end


def test_an_end_is_idempotent_and_what_is_gone_is_told_as_missing(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.delays(shutting_down=5)
    made = provider.launch(ibm.request())
    ibm.end(provider, made.id)
    ibm.end(provider, made.id)
    assert [one.state for one in provider.instances(SCOPE)] == [InstanceState.TERMINATING]
    ibm.emulator.advance(6)
    assert provider.terminate([made.id])[made.id].reason == "InstanceMissing"
    assert provider.instances(SCOPE) == []


def test_an_instance_that_got_no_host_is_listed_as_failed_with_what_it_says_of_the_offering(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.failing({"zone": ibm.zones[0]})
    ibm.emulator.delays(pending=1)
    assert provider.launch(ibm.request()).refusal is None
    ibm.emulator.advance(1)
    (listed,) = provider.instances(SCOPE)
    assert listed.state is InstanceState.FAILED
    assert isinstance(listed.refusal, CapacityError)
    assert listed.refusal.reason == "CannotStartCapacity"
    assert f"no {TYPE} left in {ibm.zones[0]}" in str(listed.refusal)


def test_an_instance_that_stops_by_itself_says_nothing_of_its_offering(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.stop(provider.launch(ibm.request()).id)
    (listed,) = provider.instances(SCOPE)
    assert (listed.state, listed.refusal) == (InstanceState.STOPPED, None)


def test_an_address_of_zeroes_is_none(ibm: IbmLab) -> None:
    provider = ibm.provider()
    ibm.emulator.delays(pending=1)
    ibm.emulator.late_addresses()
    assert provider.launch(ibm.request()).addresses == ()
    ibm.emulator.advance(1)
    (listed,) = provider.instances(SCOPE)
    assert listed.addresses[0].startswith("127.50.")


def test_discard_removes_what_a_launch_left_and_nothing_of_others(ibm: IbmLab) -> None:
    provider = ibm.provider()
    request, other = ibm.request(), ibm.request()
    provider.launch(other)
    ibm.emulator.leave(request.name, ibm.zones[0], [f"caa-{key}:{value}" for key, value in _tags(request).items()])
    ibm.emulator.leave("podvm-of-somebody", ibm.zones[0], [])
    provider.discard(request)
    provider.discard(request)
    names = sorted(one["name"] for one in ibm.emulator.resources("virtual_network_interfaces"))
    assert names == sorted(one["name"] for one in ibm.emulator.resources("volumes"))
    assert names == sorted(["podvm-of-somebody", other.name])


def test_discard_leaves_a_volume_of_the_name_that_is_somebody_elses(ibm: IbmLab) -> None:
    request = ibm.request()
    ibm.emulator.leave(request.name, ibm.zones[0], ["team:blue"])
    ibm.provider().discard(request)
    assert [one["name"] for one in ibm.emulator.resources("volumes")] == [request.name]


def _tags(request: object) -> dict[str, str]:
    owner = request.owner  # type: ignore[attr-defined]
    return {
        "cluster": owner.cluster,
        "node": owner.node,
        "sandbox": owner.sandbox_id,
        "namespace": owner.pod_namespace,
        "pod": owner.pod_name,
        "attempt": str(owner.attempt),
    }


def test_a_description_has_no_user_data(ibm: IbmLab) -> None:
    provider = ibm.provider()
    made = provider.launch(ibm.request())
    described = provider.describe(made.id)
    assert described["id"] == made.id
    assert "user_data" not in str(described)
