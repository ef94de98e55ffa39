"""What a Pod is told of its sandbox's trail, and the names of what is written for it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from caa.kubernetes.objects import event, node_label, peer_pod, peer_pod_name
from caa.kubernetes.podevents import MESSAGE_LIMIT, NORMAL, WARNINGS, pod_events
from caa.sandbox import Door, Event, Sandbox, SandboxState

AT = datetime(2026, 1, 1, tzinfo=UTC)
# As the API server checks names and label values.
DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
KINDS = [*NORMAL, *sorted(WARNINGS), "LaunchIntended", "StopRequested", "NoCapacity", "Created", "LaunchRepeated"]

events = st.builds(
    Event,
    sandbox_id=st.just("one"),
    at=st.just(AT),
    kind=st.sampled_from(KINDS),
    message=st.text(max_size=1200),
    attempt=st.none() | st.integers(1, 9),
    data=st.fixed_dictionaries(
        {},
        optional={
            "outcome": st.sampled_from(["accepted", "refused", "given-up", "repeated", "ended"]),
            "state": st.sampled_from(["created", "starting", "running", "stopping", "failed"]),
        },
    ),
)
trails = st.lists(events, max_size=12).map(
    lambda trail: [replace(event, id=number) for number, event in enumerate(trail, 1)]
)
pod_names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,250}[a-z0-9])?", fullmatch=True).filter(lambda name: len(name) <= 253)
sandbox_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}", fullmatch=True)


def sandbox(pod: str = "web", sandbox_id: str = "one", node: str = "worker") -> Sandbox:
    return Sandbox(
        id=sandbox_id,
        cluster="c",
        node=node,
        pod_namespace="default",
        pod_name=pod,
        door=Door.TTRPC,
        annotations={},
        netns_path="",
        socket_path="/s",
        state=SandboxState.STARTING,
        created_at=AT,
        changed_at=AT,
    )


def step(kind: str, message: str, attempt: int | None = None, **data: str | int | float | bool) -> Event:
    return Event("one", AT, kind, message, attempt, data)


def test_the_reason_of_a_fallback_is_that_of_the_attempt_before_it() -> None:
    trail = [
        step("Created", "the sandbox was recorded", state="created"),
        step("StartRequested", "an instance is to be launched", state="starting"),
        step("LaunchIntended", "a is asked for", 1, zone="z1", market="spot", why="it is the smallest"),
        step("InsufficientCapacity", "there is no a", 1, outcome="refused"),
        step("LaunchIntended", "b is asked for", 2),
        step("LaunchRepeated", "the launch is asked for again", 2, outcome="unknown"),
        step("LaunchAccepted", "accepted", 2, outcome="accepted"),
        step("SpotGone", "b was taken back", 2, outcome="given-up"),
        step("InstanceTerminated", "b", 2, outcome="ended"),
        step("LaunchIntended", "c is asked for", 3),
        step("LaunchAccepted", "accepted", 3, outcome="accepted"),
        step("Running", "the agent answered", 3, state="running"),
    ]
    told = list(pod_events(trail))
    assert [(one.reason, one.warning) for one in told] == [
        ("OfferingChosen", False),
        ("OfferingRefused", True),
        ("FallbackOffering", False),
        ("Launching", False),
        ("OfferingRefused", True),
        ("FallbackOffering", False),
        ("Launching", False),
        ("PodVMRunning", False),
    ]
    assert told[0].message == "a is asked for (z1, spot): it is the smallest"
    assert told[2].message.endswith("InsufficientCapacity: there is no a")
    assert told[5].message.endswith("SpotGone: b was taken back")


def test_a_stop_is_no_news_and_any_other_end_is_told_with_its_own_word() -> None:
    asked = [step("StopRequested", "the sandbox is to stop", state="stopping"), step("Ended", "", state="stopped")]
    assert list(pod_events(asked)) == []
    failed = [step("NoCapacity", "no offering could be had", state="stopping"), step("Ended", "", state="failed")]
    assert [(one.reason, one.message, one.warning) for one in pod_events(failed)] == [
        ("NoCapacity", "no offering could be had", True)
    ]


@given(trails)
def test_what_was_told_stays_the_same_when_the_trail_goes_on(whole: list[Event]) -> None:
    told = list(pod_events(whole))
    for cut in range(len(whole)):
        part = list(pod_events(whole[:cut]))
        assert part == told[: len(part)]
    assert all(len(one.message) <= MESSAGE_LIMIT and re.fullmatch("[A-Z][A-Za-z]+", one.reason) for one in told)


@given(pod_names, sandbox_ids, st.integers(1, 2**40))
def test_names_are_ones_the_api_server_takes_and_differ_between_sandboxes(pod: str, one: str, number: int) -> None:
    (told,) = pod_events([Event(one, AT, "Stuck", "none", id=number)])
    written = event(sandbox(pod, one), "uid", told)["metadata"]["name"]
    for name in (written, peer_pod_name(sandbox(pod, one))):
        assert DNS_NAME.fullmatch(name)
        assert len(name) <= 253
    assert peer_pod_name(sandbox(pod, one)) != peer_pod_name(sandbox(pod, one + "x"))


@given(st.from_regex(r"[a-z0-9]([-a-z0-9]{0,250}[a-z0-9])?", fullmatch=True))
def test_a_node_of_any_name_has_a_label_of_its_own(node: str) -> None:
    label = node_label("c", node)
    assert LABEL.fullmatch(label)
    assert (label == node) == (len(node) <= 63)
    assert peer_pod(sandbox(node=node), "uid", "aws", "")["metadata"]["labels"] == {"caa.peerpods.io/node": label}
