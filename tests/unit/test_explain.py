"""What a pod is told that it would get: the same as a start gives it, with the reasons."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.explain import explain
from caa.sizing import MEMORY, VCPUS, NoOfferingError, Policy, Requirements, rank, requirements
from caa.unavailable import ANY, Unavailable, first_covering
from providers.base import Market, Offering
from tests.unit.test_sizing import BIG, C6A_2X, DEFAULT, LIBVIRT, SMALL, T4, TABLE, archs, policies, tables, wants

NOW = datetime(2026, 5, 1, tzinfo=UTC)
POLICY = Policy("m6a.large", "ami-1", ("ami-2",), {("c6a.2xlarge", ""): 0.306})


def refused_a_moment_ago(instance_type: str, zone: str = ANY, market: str = ANY) -> Unavailable:
    since, until = NOW - timedelta(seconds=20), NOW + timedelta(seconds=160)
    return Unavailable("a", instance_type, zone, market, since, until, False, "NoneLeft", "try another zone")


def test_each_offering_has_its_place_or_the_reason_why_it_has_none() -> None:
    arm = Offering("m6g.large", "z", 2, 8192, arch="arm64")
    told = explain(Requirements(vcpus=3), [*TABLE, arm], POLICY, "x86_64")
    assert told.chosen is not None
    assert (told.chosen.offering, told.chosen.price, told.image) == (C6A_2X, 0.306, "ami-1")
    assert [(one.order, one.offering) for one in told.considered[:2]] == [(1, C6A_2X), (2, BIG)]
    assert {one.offering.instance_type: one.refused for one in told.considered[2:]} == {
        "g4dn.12xlarge": "has 4 GPUs, and none is asked for",
        "g4dn.xlarge": "has 1 GPU, and none is asked for",
        "g5.xlarge": "has 1 GPU, and none is asked for",
        "m6a.large": "has 2 vCPUs of 3",
        "m6g.large": "is arm64, and the image is x86_64",
        "t3.small": "has 2 vCPUs of 3",
    }
    memory = explain(Requirements(memory_mib=4096), [SMALL, DEFAULT], POLICY)
    assert memory.considered[1].refused == "has 2048 MiB of 4096"
    gpus = explain(Requirements(gpus=1, gpu_model="A10G"), TABLE, POLICY)
    assert {one.offering: one.refused for one in gpus.considered}[T4] == "has GPUs of the model T4"
    named = explain(Requirements(machine_type="t3.small"), [SMALL, BIG], POLICY)
    assert named.considered[1].refused == "is not t3.small"


def test_what_the_cloud_refused_a_moment_ago_is_passed_over_and_the_next_one_chosen() -> None:
    told = explain(Requirements(vcpus=3), TABLE, POLICY, "", [refused_a_moment_ago("c6a.2xlarge")], NOW)
    first, second = told.considered[:2]
    assert (first.order, first.offering) == (1, C6A_2X)
    assert "because of NoneLeft 20 s ago, and will be again in 160 s (try another zone)" in first.passed_over
    assert told.chosen == second
    assert second.offering == BIG


def test_nothing_that_may_be_asked_for_now_is_told() -> None:
    told = explain(Requirements(vcpus=3), TABLE, POLICY, "", [refused_a_moment_ago(ANY)], NOW)
    assert told.chosen is None
    assert told.refusal is not None
    assert told.refusal.reason == "NoCapacity"
    quota = dataclasses.replace(refused_a_moment_ago(ANY), quota=True)
    told = explain(Requirements(vcpus=3), TABLE, POLICY, "", [quota], NOW)
    assert told.refusal is not None
    assert told.refusal.reason == "NoQuota"
    assert [one.order for one in told.considered[:2]] == [1, 2]


def test_nothing_that_fits_is_told_in_the_words_of_a_start() -> None:
    wanted = Requirements(vcpus=1000)
    told = explain(wanted, TABLE, POLICY)
    with pytest.raises(NoOfferingError) as refused:
        rank(wanted, TABLE, POLICY)
    assert str(told.refusal) == str(refused.value)
    assert (told.chosen, len(told.considered)) == (None, len(TABLE))


def test_an_image_that_pods_may_not_choose_is_told_beside_what_would_fit() -> None:
    told = explain(Requirements(image="ami-9"), TABLE, POLICY)
    assert told.refusal is not None
    assert (told.refusal.reason, told.chosen, told.image) == ("ImageNotAllowed", None, "ami-9")
    assert told.considered[0].order == 1
    assert explain(Requirements(image="ami-2"), TABLE, POLICY).image == "ami-2"


def test_wishes_that_are_outweighed_are_told() -> None:
    [sentence] = explain(Requirements(machine_type="t3.small", vcpus=4, gpus=1), TABLE, POLICY).ignored
    assert sentence.startswith("1 GPUs, 4 vCPUs: ignored, because annotation io.katacontainers")
    zero = requirements({VCPUS: "0", MEMORY: "65536"})
    assert explain(zero, TABLE, POLICY).ignored == ("65536 MiB: ignored, because 0 vCPUs ask for the default type",)
    assert explain(zero, [LIBVIRT], Policy("libvirt")).ignored == ()
    assert explain(Requirements(vcpus=2), TABLE, POLICY).ignored == ()


known = st.lists(
    st.builds(
        refused_a_moment_ago,
        st.sampled_from(["a", "b", "c", ANY]),
        st.sampled_from(["z1", "z2", ANY]),
        st.sampled_from([*Market, ANY]),
    ),
    max_size=3,
)


@given(wants, tables(), policies, archs, known)
def test_it_says_what_a_start_does(
    wanted: Requirements, offered: list[Offering], policy: Policy, arch: str, unavailable: list[Unavailable]
) -> None:
    told = explain(wanted, offered, policy, arch, unavailable, NOW)
    try:
        ranked = rank(wanted, offered, policy, arch)
    except NoOfferingError:
        ranked = []
    assert [one.offering for one in told.considered if one.order] == ranked
    assert [one.order for one in told.considered if one.order] == list(range(1, len(ranked) + 1))
    asked = next((one for one in ranked if first_covering(unavailable, one, NOW) is None), None)
    assert (told.chosen.offering if told.chosen else None) == asked
    assert (told.refusal is None) == (asked is not None)
    assert sorted(map(str, (one.offering for one in told.considered))) == sorted(map(str, offered))
    assert all(bool(one.refused) != bool(one.order) for one in told.considered)
