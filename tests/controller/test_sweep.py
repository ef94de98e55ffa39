"""Which VMs of nodes that are gone are ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from caa.controller.sweep import due, orphans, remembered, restored, stored
from providers.base import Instance, InstanceState, Owner, OwnerScope

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GRACE = timedelta(minutes=10)

ages = st.integers(-60, 3600).map(lambda seconds: NOW - timedelta(seconds=seconds))
instances = st.builds(
    Instance,
    id=st.integers(0, 10**6).map(lambda number: f"i-{number}"),
    name=st.just("podvm"),
    state=st.sampled_from(InstanceState),
    owner=st.none()
    | st.builds(
        Owner,
        cluster=st.sampled_from(["prod", "test"]),
        node=st.sampled_from(["w0", "w1"]),
        sandbox_id=st.just("s"),
        pod_namespace=st.just(""),
        pod_name=st.just(""),
        attempt=st.just(1),
    ),
    created_at=st.none() | ages,
)
names = st.sampled_from(["w0", "w1", "w2", "w3"])


@given(st.lists(instances, unique_by=lambda one: one.id, max_size=20), st.dictionaries(st.just("i-1"), ages))
def test_what_is_ended_is_of_that_cluster_and_node_and_older_than_the_grace_time_and_all_of_that(
    found: list[Instance], first_seen: dict[str, datetime]
) -> None:
    scope = OwnerScope("prod", "w1")
    ended = set(orphans(found, scope, first_seen, NOW, GRACE))
    for one in found:
        foreign = one.owner is None or (one.owner.cluster, one.owner.node) != ("prod", "w1")
        born = one.created_at or first_seen.get(one.id, NOW)
        spared = foreign or NOW - born < GRACE or one.state is InstanceState.TERMINATING
        assert (one.id in ended) is not spared


rounds = st.lists(st.tuples(st.integers(0, 900), st.dictionaries(names, st.booleans())), max_size=12)


@given(rounds)
def test_a_node_is_due_only_when_it_was_labelled_once_and_is_gone_for_the_whole_grace_time(
    seen: list[tuple[int, dict[str, bool]]],
) -> None:
    now, record = NOW, dict[str, datetime | None]()
    ever: set[str] = set()
    last: dict[str, datetime] = {}
    for seconds, there in seen:
        now += timedelta(seconds=seconds)
        record = restored(stored(remembered(record, there, now)))  # as if the controller was restarted each time
        ever |= {name for name, labelled in there.items() if labelled}
        last |= dict.fromkeys(there, now)
        for name in due(record, now, GRACE):
            assert name in ever
            assert name not in there
            assert now - last[name] >= GRACE


def test_an_answer_without_any_node_makes_none_gone() -> None:
    record = remembered({"w0": None}, {}, NOW)
    assert due(record, NOW + 9 * GRACE, GRACE) == []


def test_a_node_that_comes_back_begins_anew() -> None:
    record = remembered({}, {"w0": True}, NOW)
    record = remembered(record, {"w1": False}, NOW + GRACE)
    record = remembered(record, {"w0": False}, NOW + 2 * GRACE)
    assert due(record, NOW + 9 * GRACE, GRACE) == []
    record = remembered(record, {"w1": False}, NOW + 9 * GRACE)
    assert due(record, NOW + 9 * GRACE, GRACE) == []
    assert due(record, NOW + 10 * GRACE, GRACE) == ["w0"]


def test_a_record_that_somebody_garbled_makes_nobody_due_at_once() -> None:
    record = restored({"w0": "long ago", "w1": "2020-01-01T00:00:00"})
    record = remembered(record, {"w9": False}, NOW)
    assert due(record, NOW + GRACE / 2, GRACE) == []
    assert due(record, NOW + GRACE, GRACE) == ["w0", "w1"]
