"""The service's view of a cloud, on the emulated EC2 and on a clock that moves only by sleeping."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caa.cloud import Cloud
from caa.ledger import Ledger, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.limiter import Limiter
from providers.aws.provider import LAG_SECONDS, AwsProvider
from providers.base import InstanceState, LaunchRequest, ThrottledError, UnavailableError, UnknownOutcomeError
from tests.clouds.aws_lab import SCOPE, Lab
from tests.clouds.faultproxy import Fault, Phase

T = TypeVar("T")


class LabClock:
    """Time of the service and of the emulated EC2 at once."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._seconds += seconds
        if seconds:
            self._lab.account.emulator.advance(seconds)


class Service:
    """Clouds over one ledger, in an event loop that stands still between calls."""

    def __init__(self, lab: Lab, path: Path) -> None:
        url = f"sqlite:///{path}/ledger.db"
        upgrade(url)
        self.lab = lab
        self.ledger: Ledger = open_ledger(url)
        self.clock = LabClock(lab)
        self._runner = asyncio.Runner()
        self._threads = LedgerThreads()
        self._clouds: dict[AwsProvider, Cloud] = {}

    def run(self, provider: AwsProvider, use: Callable[[Cloud], Coroutine[Any, Any, T]]) -> T:
        if provider not in self._clouds:
            limiter = Limiter(self.ledger.account, self._threads, self.clock, provider.account, provider.limits)
            self._clouds[provider] = Cloud(provider, SCOPE, self.clock, limiter)
        return self._runner.run(use(self._clouds[provider]))

    def close(self) -> None:
        for cloud in self._clouds.values():
            self._runner.run(cloud.close())
        self._runner.run(self._threads.close())
        self._runner.close()
        self.ledger.close()


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Iterator[Service]:
    made = Service(lab, tmp_path)
    yield made
    made.close()


def test_discarding_a_launch_that_was_never_sent_makes_nothing_and_takes_its_time(lab: Lab, service: Service) -> None:
    request, given_up = lab.request(), service.clock.now()

    async def discard(cloud: Cloud) -> None:
        with pytest.raises(UnknownOutcomeError, match="no instance of the launch"):
            await cloud.discard(request, given_up)
        service.clock.advance(LAG_SECONDS - service.clock.monotonic() - 1)
        with pytest.raises(UnknownOutcomeError):
            await cloud.discard(request, given_up)
        service.clock.advance(1)
        await cloud.discard(request, given_up)

    service.run(lab.provider(), discard)
    assert lab.calls("RunInstances") == 0


def test_discarding_an_accepted_launch_ends_it_at_once_and_no_other(lab: Lab, service: Service) -> None:
    kept, gone = lab.request(), lab.request()
    provider = lab.provider()
    other, made = provider.launch(kept), provider.launch(gone)
    service.run(provider, lambda cloud: cloud.discard(gone, service.clock.now()))
    assert lab.account.state(made.id) == "terminated"
    assert [i.id for i in lab.provider().instances(SCOPE)] == [other.id]
    assert lab.calls("RunInstances") == 2


async def discard(request: LaunchRequest, given_up_at: datetime, cloud: Cloud) -> None:
    await cloud.discard(request, given_up_at)


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


def test_whatever_is_lost_a_launch_makes_one_instance_and_discarding_leaves_none(lab: Lab, service: Service) -> None:
    proxy = lab.proxy()
    providers = [lab.provider(proxy.url), lab.provider(proxy.url, TAGS="changed=yes")]

    # A launch may be repeated until it is given up; after that it is only discarded, until that succeeds.
    @settings(max_examples=30, deadline=None)
    @given(_STEPS, st.integers(0, 20))
    def run(steps: list[tuple[str, Fault | None, Phase, str, int]], stale: int) -> None:
        lab.account.emulator.staleness(seconds=stale)
        request = lab.request()
        given_up: datetime | None = None
        for step, fault, phase, action, seconds in steps:
            if step == "discard":
                given_up = given_up or service.clock.now()
            proxy.clear()
            if fault and (fault, phase) != (Fault.TRUNCATE, Phase.BEFORE):
                proxy.add(fault, phase, body=f"Action={action}")
            provider = providers[step == "launch changed"]
            with contextlib.suppress(UnknownOutcomeError, UnavailableError):
                if given_up is None:
                    service.run(provider, lambda cloud: cloud.launch(request))
                else:
                    service.run(provider, partial(discard, request, given_up))
            service.clock.advance(seconds)
        proxy.clear()
        ids = lab.account.emulator.counters()["tokens"].get(request.token, [])
        assert len(ids) <= 1
        until = given_up or service.clock.now()
        while True:
            try:
                service.run(providers[0], partial(discard, request, until))
                break
            except UnknownOutcomeError:
                service.clock.advance(5)
        assert lab.account.emulator.counters()["tokens"].get(request.token, []) == ids
        assert all(lab.account.state(instance_id) == "terminated" for instance_id in ids)

    run()


def test_an_instance_that_ec2_does_not_know_yet_is_ended_when_it_does(lab: Lab, service: Service) -> None:
    lab.account.emulator.staleness(seconds=5, terminate=True)
    provider = lab.provider()
    made = provider.launch(lab.request())
    given_up = service.clock.now()

    async def end(cloud: Cloud) -> None:
        with pytest.raises(UnknownOutcomeError):
            await cloud.terminate(made.id, given_up)
        service.clock.advance(5)
        await cloud.terminate(made.id, given_up)

    service.run(provider, end)
    assert lab.account.state(made.id) == "terminated"


def test_whoever_asks_at_once_shares_one_list_and_one_termination(lab: Lab, service: Service) -> None:
    provider = lab.provider()
    made = [provider.launch(lab.request()) for _ in range(20)]

    async def use(cloud: Cloud) -> None:
        lists = await asyncio.gather(*(cloud.instances() for _ in range(50)))
        assert all({i.id for i in listed} == {i.id for i in made} for listed in lists)
        await asyncio.gather(*(cloud.terminate(i.id) for i in made for _ in range(2)))
        assert await cloud.instances() == []

    service.run(provider, use)
    assert lab.calls("DescribeInstances") == 2
    assert lab.calls("TerminateInstances") == 1


def test_lists_keep_their_distance_however_many_wait(lab: Lab, service: Service) -> None:
    lab.account.emulator.delays(pending=60)
    provider = lab.provider()
    made = [provider.launch(lab.request()) for _ in range(10)]

    async def use(cloud: Cloud) -> None:
        deaths = [asyncio.create_task(cloud.death(i)) for i in made]
        while service.clock.monotonic() < 20:
            await asyncio.sleep(0.001)
        lab.end(provider, *(i.id for i in made))
        for found in await asyncio.gather(*deaths):
            assert found.state is InstanceState.TERMINATING

    service.run(provider, use)
    assert lab.calls("DescribeInstances") <= service.clock.monotonic() / provider.watch_interval + 2


def test_a_throttled_launch_makes_the_others_wait(lab: Lab, service: Service) -> None:
    lab.account.emulator.limits({"RunInstances": (0, 0.001)})
    provider = lab.provider()

    async def use(cloud: Cloud) -> float:
        await cloud.launch_turn()
        with pytest.raises(ThrottledError):
            await cloud.launch(lab.request())
        before = service.clock.monotonic()
        await asyncio.gather(cloud.launch_turn(), cloud.launch_turn())
        return service.clock.monotonic() - before

    assert service.run(provider, use) >= 1


def test_calls_stay_within_what_ec2_takes(lab: Lab, service: Service) -> None:
    lab.account.emulator.limits()
    provider = lab.provider()

    async def use(cloud: Cloud) -> None:
        for _ in range(24):
            await cloud.launch_turn()
            await cloud.launch(lab.request())

    service.run(provider, use)
    assert lab.account.emulator.counters()["errors"] == {}
    assert service.clock.monotonic() == pytest.approx(10)


# The provider is exchanged


def test_a_view_keeps_its_provider_while_all_others_get_the_new_one(lab: Lab, service: Service) -> None:
    old, new = lab.provider(TAGS="age=old"), lab.provider(TAGS="age=new", PODVM_INSTANCE_TYPE="m6a.xlarge")

    async def use(cloud: Cloud) -> None:
        with cloud.unchanging() as view:
            cloud.exchange(new)
            assert {o.instance_type for o in await view.offerings()} == {"m6a.large"}
            assert {o.instance_type for o in await cloud.offerings()} == {"m6a.xlarge"}
            kept, changed = lab.request(), lab.request()
            made = [await view.launch(kept), await cloud.launch(changed)]
        # Both are seen, and can be ended, by whichever provider there is.
        assert {one.id for one in await cloud.instances()} == {one.id for one in made}
        assert [tags_of(lab, one.id)["age"] for one in made] == ["old", "new"]
        for one in made:
            await cloud.terminate(one.id)

    service.run(old, use)


def test_a_repeat_of_a_launch_under_another_configuration_is_the_same_instance(lab: Lab, service: Service) -> None:
    old, new, request = lab.provider(TAGS="age=old"), lab.provider(TAGS="age=new"), lab.request()

    async def use(cloud: Cloud) -> None:
        made = await cloud.launch(request)
        cloud.exchange(new)
        assert (await cloud.launch(request)).id == made.id
        assert tags_of(lab, made.id)["age"] == "old"

    service.run(old, use)
    assert len(lab.ids()) == 1


def test_an_examination_tells_problems_and_refuses_another_account(lab: Lab, service: Service) -> None:
    here = lab.provider()
    bad = lab.provider(PODVM_INSTANCE_TYPE="zz9.large")
    elsewhere = lab.provider(AWS_REGION="us-west-2")  # as AWS_PROFILE may lead to

    async def use(cloud: Cloud) -> None:
        assert await cloud.examine(here) == []
        assert [problem.key for problem in await cloud.examine(bad)] == ["PODVM_INSTANCE_TYPE"]
        (problem,) = await cloud.examine(elsewhere)
        assert "aws/us-west-2" in problem.message

    service.run(here, use)


def tags_of(lab: Lab, instance_id: str) -> dict[str, str]:
    found = lab.account.ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    return {tag["Key"]: tag["Value"] for tag in found["Tags"]}
