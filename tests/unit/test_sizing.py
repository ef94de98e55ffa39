"""Which offering a pod gets, and what it is told when none fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.errors import InvalidInputError
from caa.sizing import MACHINE_TYPE, MEMORY, PREFIX, VCPUS, NoOfferingError, Requirements, rank, requirements
from providers.base import Offering

C6A_2X = Offering("c6a.2xlarge", "z", 8, 16384)
M6A_2X = Offering("m6a.2xlarge", "z", 8, 32768)
R6A_1X = Offering("r6a.xlarge", "z", 4, 32768)
LIBVIRT = Offering("libvirt", "", 2, 8192, flexible=True)

offerings = st.builds(
    Offering,
    instance_type=st.text("abc", min_size=1, max_size=3),
    zone=st.sampled_from(["z1", "z2"]),
    vcpus=st.integers(1, 64),
    memory_mib=st.integers(512, 65536),
    gpus=st.integers(0, 2),
)
wants = st.builds(Requirements, vcpus=st.integers(0, 64), memory_mib=st.integers(0, 65536), gpus=st.integers(0, 2))


def test_the_smallest_type_that_fits_is_first_where_a_search_by_bisection_would_overshoot() -> None:
    ranked = rank(Requirements(vcpus=8, memory_mib=16384), [M6A_2X, R6A_1X, C6A_2X])
    assert [o.instance_type for o in ranked] == ["c6a.2xlarge", "m6a.2xlarge"]


def test_a_type_that_fits_is_found_where_a_search_by_bisection_would_miss_it() -> None:
    assert rank(Requirements(vcpus=8, memory_mib=16384), [C6A_2X, R6A_1X]) == [C6A_2X]


def test_only_one_of_vcpus_and_memory_is_honoured_too() -> None:
    assert rank(Requirements(memory_mib=20000), [C6A_2X, M6A_2X, R6A_1X])[0] == R6A_1X
    assert rank(Requirements(vcpus=5), [C6A_2X, M6A_2X, R6A_1X])[0] == C6A_2X


def test_a_flexible_offering_takes_what_the_pod_asks_for_and_its_own_defaults_otherwise() -> None:
    [sized] = rank(Requirements(vcpus=3), [LIBVIRT])
    assert (sized.vcpus, sized.memory_mib) == (3, 8192)


def test_a_machine_type_that_is_not_offered_is_refused_by_name() -> None:
    with pytest.raises(NoOfferingError, match=r'\("m9\.huge"\) is not part of supported instance types list'):
        rank(Requirements(machine_type="m9.huge"), [C6A_2X])


def test_nothing_that_fits_is_told_in_the_words_that_end_to_end_tests_look_for() -> None:
    with pytest.raises(NoOfferingError, match=r"no instance type found for the given vcpus \(2\) and memory \(18432\)"):
        rank(Requirements(vcpus=2, memory_mib=18432), [C6A_2X])


@pytest.mark.parametrize(
    ("key", "value"), [(VCPUS, "abc"), (VCPUS, "-1"), (VCPUS, "nan"), (MEMORY, "2Gi"), (MEMORY, "2048.5")]
)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_annotation(key: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=key) as caught:
        requirements({key: value})
    assert value in str(caught.value)


def test_fractions_of_a_vcpu_are_rounded_up() -> None:
    assert requirements({VCPUS: "1.5"}).vcpus == 2


def test_zero_and_empty_mean_not_specified() -> None:
    assert requirements({VCPUS: "0", MEMORY: "", MACHINE_TYPE: "", PREFIX + "default_gpus": "0"}) == Requirements()


@given(wants, st.lists(offerings, max_size=12))
def test_what_is_chosen_fits_and_nothing_that_fits_is_smaller(wanted: Requirements, offered: list[Offering]) -> None:
    def fits(o: Offering) -> bool:
        enough = o.vcpus >= wanted.vcpus and o.memory_mib >= wanted.memory_mib and o.gpus >= wanted.gpus
        return enough and (wanted.gpus > 0 or o.gpus == 0)

    fitting = [o for o in offered if fits(o)]
    if not fitting:
        with pytest.raises(NoOfferingError):
            rank(wanted, offered)
        return
    ranked = rank(wanted, offered)
    assert len(ranked) == len(fitting)
    sizes = [(o.gpus, o.memory_mib, o.vcpus) for o in ranked]
    assert sizes == sorted((o.gpus, o.memory_mib, o.vcpus) for o in fitting)


@given(wants, st.lists(offerings, max_size=8), st.randoms())
def test_the_order_of_the_offerings_does_not_matter(
    wanted: Requirements, offered: list[Offering], dice: object
) -> None:
    shuffled = list(offered)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    try:
        expected = rank(wanted, offered)
    except NoOfferingError:
        return
    assert rank(wanted, shuffled) == expected
