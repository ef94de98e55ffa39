"""Which offering a pod gets, and what it is told when none fits: the truth table, and what holds for every table."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.errors import InvalidInputError
from caa.sizing import (
    GPU_MODEL,
    GPUS,
    IMAGE,
    MACHINE_TYPE,
    MEMORY,
    VCPUS,
    ImageNotAllowedError,
    NoOfferingError,
    Policy,
    Requirements,
    Rule,
    rank,
    requirements,
)
from providers.base import Market, Offering

C6A_2X = Offering("c6a.2xlarge", "z", 8, 16384)
M6A_2X = Offering("m6a.2xlarge", "z", 8, 32768)
R6A_1X = Offering("r6a.xlarge", "z", 4, 32768)
LIBVIRT = Offering("libvirt", "", 2, 8192, flexible=True)

# The smallest is not the default, so that the two can be told apart.
SMALL = Offering("t3.small", "z", 2, 2048)
DEFAULT = Offering("m6a.large", "z", 2, 8192)
BIG = Offering("m6a.4xlarge", "z", 16, 65536)
T4 = Offering("g4dn.xlarge", "z", 4, 16384, gpus=1, gpu_model="T4")
FOUR_T4 = Offering("g4dn.12xlarge", "z", 48, 196608, gpus=4, gpu_model="T4")
A10G = Offering("g5.xlarge", "z", 4, 16384, gpus=1, gpu_model="A10G")
TABLE = [BIG, FOUR_T4, A10G, DEFAULT, C6A_2X, T4, SMALL]
POLICY = Policy(default_type="m6a.large")


def chosen(policy: Policy = POLICY, offered: Sequence[Offering] = TABLE, **annotations: str) -> str:
    """The type that annotations, by their short names, get."""
    return chosen_for(annotations, policy, offered)


def chosen_for(annotations: dict[str, str], policy: Policy = POLICY, offered: Sequence[Offering] = TABLE) -> str:
    keys = {"vcpus": VCPUS, "memory": MEMORY, "machine_type": MACHINE_TYPE, "gpus": GPUS, "gpu_model": GPU_MODEL}
    wanted = requirements({keys[name]: text for name, text in annotations.items()})
    return rank(wanted, offered, policy)[0].instance_type


def shims(**annotations: str) -> dict[str, str]:
    """As Kata's Go shim sends them: every key, with what stands for nothing."""
    return {"vcpus": "0", "memory": "0", "machine_type": "", "gpus": "0", "gpu_model": ""} | annotations


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, "m6a.large"),
        (shims(), "m6a.large"),
        ({"machine_type": "t3.small"}, "t3.small"),
        (shims(machine_type="g5.xlarge"), "g5.xlarge"),
        ({"vcpus": "4", "memory": "8192"}, "c6a.2xlarge"),
        (shims(vcpus="2", memory="2048"), "t3.small"),
        ({"vcpus": "4", "memory": "8192", "machine_type": "t3.small"}, "t3.small"),
        ({"vcpus": "3"}, "c6a.2xlarge"),
        (shims(vcpus="3"), "c6a.2xlarge"),
        ({"memory": "20000"}, "m6a.4xlarge"),
        ({"memory": "20000", "vcpus": ""}, "m6a.4xlarge"),
        ({"vcpus": "0"}, "m6a.large"),
        ({"vcpus": "0", "memory": "20000"}, "m6a.large"),
        (shims(memory="20000"), "m6a.large"),
        (shims(vcpus="0.0", memory="20000"), "m6a.large"),
        (shims(vcpus="0", memory="20000", machine_type="t3.small"), "t3.small"),
        ({"vcpus": "1", "memory": "256"}, "t3.small"),
        ({"vcpus": "1", "memory": "100"}, "t3.small"),
        ({"vcpus": "1"}, "t3.small"),
        ({"memory": "256"}, "t3.small"),
        (shims(gpus="1"), "g4dn.xlarge"),
        (shims(gpus="2"), "g4dn.12xlarge"),
        (shims(gpus="1", vcpus="8"), "g4dn.12xlarge"),
        (shims(gpus="1", memory="20000"), "g4dn.12xlarge"),
        (shims(gpus="1", gpu_model="A10G"), "g5.xlarge"),
        (shims(gpus="1", gpu_model="a10g"), "g5.xlarge"),
        (shims(gpu_model="A10G"), "g5.xlarge"),
        (shims(gpus="4", machine_type="t3.small"), "t3.small"),
    ],
    ids=str,
)
def test_every_row_of_the_truth_table(annotations: dict[str, str], expected: str) -> None:
    assert chosen_for(annotations) == expected


def test_ac1_a_type_that_is_listed_is_taken_exactly_and_nothing_in_its_place() -> None:
    zones = [dataclasses.replace(BIG, zone=zone) for zone in ("b", "a")]
    ranked = rank(Requirements(machine_type="m6a.4xlarge"), [*TABLE[1:], *zones], POLICY)
    assert [(one.instance_type, one.zone) for one in ranked] == [("m6a.4xlarge", "a"), ("m6a.4xlarge", "b")]


def test_ac2_a_type_that_is_not_listed_is_refused_by_name() -> None:
    said = r'^failed to verify instance type: requested instance type \("m9\.huge"\) is not part of supported instance '
    with pytest.raises(NoOfferingError, match=said + r"types list .*supported: .*c6a\.2xlarge.*m6a\.large"):
        rank(Requirements(machine_type="m9.huge"), TABLE, POLICY)


def test_ac3_with_the_default_alone_any_other_type_is_refused_in_other_words() -> None:
    said = r'\("m9\.huge"\) is not default \("m6a\.large"\) and supported instance types list is empty'
    with pytest.raises(NoOfferingError, match=said):
        rank(Requirements(machine_type="m9.huge"), [DEFAULT], POLICY)
    assert rank(Requirements(machine_type="m6a.large"), [DEFAULT], POLICY) == [DEFAULT]


def test_ac4_without_annotations_the_default_is_taken_and_then_what_is_no_smaller() -> None:
    ranked = [one.instance_type for one in rank(Requirements(), TABLE, POLICY)]
    assert ranked == ["m6a.large", "c6a.2xlarge", "m6a.4xlarge"]


def test_the_default_goes_before_what_is_cheaper_or_of_the_same_size() -> None:
    twin = Offering("a.large", "z", DEFAULT.vcpus, DEFAULT.memory_mib)
    assert rank(Requirements(), [twin, DEFAULT], POLICY) == [DEFAULT, twin]
    cheap = Policy(default_type="m6a.large", prices={("m6a.4xlarge", ""): 0.01, ("m6a.large", ""): 1.0})
    assert rank(Requirements(), TABLE, cheap)[:2] == [DEFAULT, BIG]


def test_the_default_gives_way_to_nothing_with_fewer_vcpus_or_less_memory() -> None:
    assert rank(Requirements(), [C6A_2X, R6A_1X, M6A_2X], Policy("c6a.2xlarge")) == [C6A_2X, M6A_2X]
    assert rank(Requirements(), [C6A_2X, R6A_1X, M6A_2X], Policy("r6a.xlarge")) == [R6A_1X, M6A_2X]


def test_a_default_with_gpus_gives_way_to_the_same_gpus_only() -> None:
    ranked = [one.instance_type for one in rank(Requirements(), TABLE, Policy(default_type="g4dn.xlarge"))]
    assert ranked == ["g4dn.xlarge", "g4dn.12xlarge"]


def test_a_default_that_is_not_to_be_had_is_told_and_nothing_smaller_taken() -> None:
    with pytest.raises(NoOfferingError, match=r'default instance type \("m9\.huge"\) is not to be had'):
        rank(Requirements(), TABLE, Policy(default_type="m9.huge"))


@pytest.mark.parametrize("offered", list(itertools.permutations([C6A_2X, M6A_2X, R6A_1X])))
def test_ac5_the_smallest_is_taken_where_a_search_by_bisection_would_overshoot(offered: tuple[Offering, ...]) -> None:
    ranked = rank(Requirements(vcpus=8, memory_mib=16384), offered)
    assert [o.instance_type for o in ranked] == ["c6a.2xlarge", "m6a.2xlarge"]


@pytest.mark.parametrize("offered", list(itertools.permutations([C6A_2X, R6A_1X])))
def test_ac5_a_type_that_fits_is_found_where_a_search_by_bisection_would_miss_it(offered: tuple[Offering, ...]) -> None:
    assert rank(Requirements(vcpus=8, memory_mib=16384), offered) == [C6A_2X]


def test_ac5_a_list_that_is_sorted_by_memory_only_hides_nothing() -> None:
    sizes = [(8, 4096), (2, 8192), (2, 16384)]
    offered = [Offering(f"x.{vcpus}-{memory}", "z", vcpus, memory) for vcpus, memory in sizes]
    assert rank(Requirements(vcpus=4, memory_mib=2048), offered) == [offered[0]]


def test_ac6_without_a_list_the_default_is_all_there_is() -> None:
    assert chosen(offered=[DEFAULT], vcpus="1", memory="256") == "m6a.large"
    with pytest.raises(NoOfferingError):
        chosen(offered=[DEFAULT], vcpus="4", memory="256")


def test_ac35_more_vcpus_than_the_worker_has_and_less_than_256_mib_are_taken() -> None:
    huge = Offering("u7i.metal", "z", 1920, 32 << 20)
    assert chosen(offered=[huge, SMALL], vcpus="1024", memory="100") == "u7i.metal"
    assert chosen(offered=[huge, SMALL], vcpus="1", memory="64") == "t3.small"


def test_ac36_only_one_of_the_two_is_honoured() -> None:
    assert rank(Requirements(memory_mib=20000), [C6A_2X, M6A_2X, R6A_1X])[0] == R6A_1X
    assert rank(Requirements(vcpus=5), [C6A_2X, M6A_2X, R6A_1X])[0] == C6A_2X


def test_ac37_zero_vcpus_are_the_default_whatever_the_memory() -> None:
    assert {chosen(vcpus="0", memory=memory) for memory in ("0", "256", "65536", "99999999")} == {"m6a.large"}


def test_ac38_one_vcpu_and_256_mib_are_the_smallest() -> None:
    assert chosen(vcpus="1", memory="256") == "t3.small"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((VCPUS, value) for value in ("abc", "-1", "nan", "inf", "2 CPUs", "1_000", "٣", "9" * 400)),
        *((MEMORY, value) for value in ("2Gi", "2048.5", "-1", "1e3", "0x100", "1_000")),
        *((GPUS, value) for value in ("one", "1.5", "-2")),
    ],
)
def test_ac39_a_number_that_is_none_is_refused_by_the_name_of_its_annotation(key: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=key) as caught:
        requirements({key: value, MACHINE_TYPE: "t3.small"})
    assert caught.value.field == key
    assert value[:100] in str(caught.value)
    assert len(str(caught.value)) < 400


def test_ac40_nothing_that_fits_is_told_in_the_known_words_with_the_largest_there_is() -> None:
    said = r"^failed to get instance type based on vCPU and memory annotations: no instance type found for the given "
    largest = r"; the largest type without GPUs is m6a\.4xlarge with 16 vCPUs and 65536 MiB$"
    with pytest.raises(NoOfferingError, match=said + r"vcpus \(2\) and memory \(99999\)" + largest):
        rank(Requirements(vcpus=2, memory_mib=99999), TABLE, POLICY)


def test_ac40_gpus_that_are_not_there_are_told_in_the_known_words_too() -> None:
    said = r"^failed to get instance type based on GPU, vCPU, and memory annotations: no instance type found for the "
    largest = r"the largest type with GPUs is g4dn\.12xlarge with 4 GPUs \(T4\), 48 vCPUs and 196608 MiB$"
    with pytest.raises(NoOfferingError, match=said + r"given GPUs \(8\), vCPUs \(2\), and memory \(0\); " + largest):
        rank(Requirements(gpus=8, vcpus=2), TABLE, POLICY)
    with pytest.raises(NoOfferingError, match="of the model H100; the largest"):
        rank(Requirements(gpus=1, gpu_model="H100"), TABLE, POLICY)
    with pytest.raises(NoOfferingError, match="there is no type with GPUs"):
        rank(Requirements(gpus=1), [SMALL], POLICY)


def test_a_flexible_offering_takes_each_number_that_the_pod_names_and_its_own_otherwise() -> None:
    policy = Policy(default_type="libvirt")
    sizes = {}
    for vcpus, memory in (("3", "0"), ("0", "4096"), ("4", "2048"), ("0", "0")):
        [one] = rank(requirements({VCPUS: vcpus, MEMORY: memory}), [LIBVIRT], policy)
        sizes[vcpus, memory] = (one.vcpus, one.memory_mib)
    assert sizes == {
        ("3", "0"): (3, 8192),
        ("0", "4096"): (2, 4096),
        ("4", "2048"): (4, 2048),
        ("0", "0"): (2, 8192),
    }
    with pytest.raises(NoOfferingError, match="this cloud sizes by vCPUs and memory"):
        rank(Requirements(machine_type="libvirt"), [LIBVIRT], policy)


def test_only_types_that_run_the_image_are_taken() -> None:
    arm = Offering("m6g.large", "z", 2, 8192, arch="arm64")
    assert rank(Requirements(vcpus=2), [SMALL, arm], arch="arm64") == [arm]
    assert rank(Requirements(vcpus=2), [SMALL, arm], arch="x86_64") == [SMALL]
    with pytest.raises(NoOfferingError, match=r'\("m6g\.large"\) is arm64, and the image is x86_64'):
        rank(Requirements(machine_type="m6g.large"), [SMALL, arm], arch="x86_64")
    with pytest.raises(NoOfferingError, match="it is arm64, and the supported types are x86_64"):
        rank(Requirements(vcpus=2), [SMALL], arch="arm64")


def test_with_images_of_several_architectures_a_pod_that_names_no_type_stays_on_that_of_the_default() -> None:
    z = Offering("bz2-2x8", "z", 2, 8192, arch="s390x")
    larger = Offering("bz2-4x16", "z", 4, 16384, arch="s390x")
    x86 = Offering("bx2-4x16", "z", 4, 16384)
    mixed = [DEFAULT, z, larger, x86]
    assert chosen(offered=mixed) == "m6a.large"
    assert chosen(offered=mixed, vcpus="4", memory="9000") == "bx2-4x16"
    assert chosen(offered=mixed, machine_type="bz2-2x8") == "bz2-2x8"
    on_z = Policy(default_type="bz2-2x8")
    assert chosen(on_z, mixed) == "bz2-2x8"
    assert chosen(on_z, mixed, vcpus="4", memory="9000") == "bz2-4x16"


def test_what_the_cloud_would_refuse_is_never_taken_and_told_by_its_reason() -> None:
    barred = dataclasses.replace(SMALL, unusable="does not run confidential VMs")
    assert chosen(offered=[barred, DEFAULT], vcpus="1", memory="256") == "m6a.large"
    with pytest.raises(NoOfferingError, match=r'requested instance type \("t3.small"\) does not run confidential VMs'):
        chosen(offered=[barred, DEFAULT], machine_type="t3.small")
    with pytest.raises(NoOfferingError, match="does not run confidential VMs"):
        chosen(Policy(default_type="t3.small"), [barred])
    in_one_zone = [barred, dataclasses.replace(SMALL, zone="y")]
    assert rank(requirements({MACHINE_TYPE: "t3.small"}), in_one_zone, POLICY) == in_one_zone[1:]


def test_an_image_is_taken_from_the_allowed_ones_only() -> None:
    policy = Policy(default_image="ami-1", images=("ami-2", "ami-3"))
    assert policy.image(requirements({IMAGE: " ami-3 "})) == "ami-3"
    assert policy.image(requirements({IMAGE: ""})) == ""
    assert policy.image(requirements({IMAGE: "ami-1"})) == ""
    with pytest.raises(ImageNotAllowedError, match=r'\("ami-9"\) is not one .*PODVM_IMAGES allows: ami-2, ami-3'):
        policy.image(requirements({IMAGE: "ami-9"}))
    with pytest.raises(ImageNotAllowedError, match="PODVM_IMAGES allows: none"):
        Policy().image(requirements({IMAGE: "ami-9"}))


def test_with_prices_the_smallest_is_the_cheapest_that_fits() -> None:
    prices = {("m6a.4xlarge", ""): 0.2, ("c6a.2xlarge", ""): 0.3, ("t3.small", ""): 0.02}
    assert chosen(Policy(prices=prices), vcpus="4") == "m6a.4xlarge"
    assert chosen(Policy(), vcpus="4") == "c6a.2xlarge"
    # What has no price comes after all that has; and GPUs before prices.
    assert chosen(Policy(prices={("m6a.4xlarge", ""): 9.0}), vcpus="4") == "m6a.4xlarge"
    assert chosen(Policy(prices={("g4dn.xlarge", ""): 0.0}), vcpus="4") == "c6a.2xlarge"


def test_a_price_of_a_market_goes_before_that_of_the_type() -> None:
    spot = dataclasses.replace(BIG, market=Market.SPOT)
    prices = {("m6a.4xlarge", ""): 0.7, ("m6a.4xlarge", "spot"): 0.2, ("c6a.2xlarge", ""): 0.3}
    ranked = rank(Requirements(vcpus=4), [BIG, C6A_2X, spot], Policy(prices=prices))
    assert ranked == [spot, C6A_2X, BIG]


def test_of_one_type_spot_goes_first_and_then_the_zone() -> None:
    offered = [dataclasses.replace(SMALL, market=market, zone=zone) for market in Market for zone in ("b", "a")]
    ranked = rank(Requirements(vcpus=1), offered)
    spot, demand = Market.SPOT, Market.ON_DEMAND
    assert [(one.market, one.zone) for one in ranked] == [(spot, "a"), (spot, "b"), (demand, "a"), (demand, "b")]


def test_fractions_of_a_vcpu_are_rounded_up() -> None:
    assert requirements({VCPUS: "1.5"}).vcpus == 2
    assert requirements({VCPUS: "0.3"}).vcpus == 1


def test_zero_and_empty_mean_not_specified() -> None:
    assert requirements({VCPUS: "0", MEMORY: "", MACHINE_TYPE: "", GPUS: "0", GPU_MODEL: " "}) == Requirements()


# What holds for every table

ARCHS = ["x86_64", "arm64"]


@st.composite
def tables(draw: st.DrawFn) -> list[Offering]:
    """Offerings as a cloud has them: a type is one size wherever it is, and each type x zone x market is there once."""
    kinds = draw(
        st.dictionaries(
            st.sampled_from("abcdefgh"),
            st.tuples(
                st.integers(1, 64),
                st.integers(512, 65536),
                st.sampled_from(ARCHS),
                st.sampled_from([(0, ""), (1, "T4"), (2, "T4"), (1, "A10G")]),
            ),
            max_size=6,
        )
    )
    places = st.sets(st.tuples(st.sampled_from(["z1", "z2"]), st.sampled_from(list(Market))), min_size=1)
    return [
        Offering(name, zone, vcpus, memory, market, arch, *gpus)
        for name, (vcpus, memory, arch, gpus) in kinds.items()
        for zone, market in sorted(draw(places))
    ]


small = st.one_of(st.just(0), st.integers(0, 40))
wants = st.builds(
    Requirements,
    machine_type=st.sampled_from(["", "", "", "", "a", "zz"]),
    vcpus=small,
    memory_mib=st.one_of(st.just(0), st.integers(0, 40000)),
    gpus=st.sampled_from([0, 0, 1, 2]),
    gpu_model=st.sampled_from(["", "t4"]),
    no_vcpus=st.booleans(),
)
policies = st.builds(
    Policy,
    default_type=st.sampled_from(["", "a", "b"]),
    prices=st.dictionaries(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", "spot", "on-demand"])),
        st.floats(0, 10),
        max_size=6,
    ),
)
archs = st.sampled_from(["", *ARCHS])


def does(wanted: Requirements, one: Offering, policy: Policy, arch: str, offered: list[Offering]) -> bool:
    """Written as the documentation has it."""
    if not arch and wanted.rule is not Rule.MACHINE_TYPE:
        arch = next((other.arch for other in offered if other.instance_type == policy.default_type), "")
    if arch and one.arch != arch:
        return False
    if wanted.rule is Rule.MACHINE_TYPE:
        return one.instance_type == wanted.machine_type
    if wanted.rule is Rule.DEFAULT:
        if not policy.default_type:
            return one.gpus == 0
        default = [other for other in offered if other.instance_type == policy.default_type]
        if not default:
            return False
        least = default[0]
        alike = one.gpus == 0 if least.gpus == 0 else one.gpus >= least.gpus and one.gpu_model == least.gpu_model
        return alike and one.vcpus >= least.vcpus and one.memory_mib >= least.memory_mib
    if wanted.rule is Rule.GPUS:
        gpus = one.gpus >= wanted.gpus and wanted.gpu_model in ("", one.gpu_model.lower())
    else:
        gpus = one.gpus == 0 and not wanted.gpu_model
    return gpus and one.vcpus >= wanted.vcpus and one.memory_mib >= wanted.memory_mib


@given(wants, tables(), policies, archs)
def test_what_is_chosen_fits_and_nothing_that_fits_is_smaller(
    wanted: Requirements, offered: list[Offering], policy: Policy, arch: str
) -> None:
    if wanted.gpu_model and not wanted.gpus:
        wanted = dataclasses.replace(wanted, gpus=1)  # as `requirements` reads it
    fitting = [one for one in offered if does(wanted, one, policy, arch, offered)]
    if not fitting:
        with pytest.raises(NoOfferingError):
            rank(wanted, offered, policy, arch)
        return

    def documented(one: Offering) -> tuple[object, ...]:
        price = policy.price(one)
        first = wanted.rule is Rule.DEFAULT and one.instance_type == policy.default_type
        dear = (price is None, price or 0.0)
        kind = (one.memory_mib, one.vcpus, one.instance_type, one.market is Market.ON_DEMAND, one.zone)
        return (not first, one.gpus, dear, kind)

    assert rank(wanted, offered, policy, arch) == sorted(fitting, key=documented)


@given(wants, tables(), policies, archs, st.randoms(use_true_random=False))
def test_the_order_of_the_offerings_does_not_matter(
    wanted: Requirements, offered: list[Offering], policy: Policy, arch: str, dice: random.Random
) -> None:
    shuffled = list(offered)
    dice.shuffle(shuffled)

    def outcome(table: list[Offering]) -> list[Offering] | str:
        try:
            return rank(wanted, table, policy, arch)
        except NoOfferingError as error:
            return str(error)

    assert outcome(shuffled) == outcome(offered)


def test_2000_offerings_take_a_few_milliseconds() -> None:
    sizes = [(2**power, 2048 << power) for power in range(7)]
    offered = [
        Offering(f"f{family}.{vcpus}", zone, vcpus, memory + family, market)
        for family in range(29)
        for vcpus, memory in sizes
        for zone in "abcde"
        for market in Market
    ]
    assert len(offered) >= 2000

    def seconds() -> float:
        begun = time.process_time()
        assert len(rank(Requirements(vcpus=1, memory_mib=256), offered)) == len(offered)
        return time.process_time() - begun

    # A quiet machine takes under 2 ms (tests/bench/bench_sizing.py); the machine of a test is shared.
    assert min(seconds() for _ in range(10)) < 0.010
