"""Which description a pod's answers come from, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from caa.errors import ConflictError
from caa.ledger import Ledger, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.metadata import descriptions
from caa.metadata.descriptions import GOOD_SECONDS, RETRY_SECONDS, Descriptions
from caa.metadata.facts import Answer, Request
from caa.metadata.keys import ALLOWABLE, guest_metadata
from caa.metadata.service import MetadataService, _Site
from caa.metadata.tokens import Tokens, node_key
from caa.sandbox import AttemptState, SandboxState
from caa.settings import load
from providers.base import ConfigError, UnknownOutcomeError
from tests.ledger import samples


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Cloud:
    """Describes instances when told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        self.asked.append(instance_id)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await self.gate.wait()
        self.at_once -= 1
        if self.fails:
            raise UnknownOutcomeError("NoAnswer", "EC2 did not answer")
        return {"ImageId": f"ami-{len(self.asked)}"}


def test_a_description_is_asked_for_once_and_kept() -> None:
    async def run() -> None:
        clock, cloud = Clock(), Cloud()
        kept = Descriptions(cloud.describe, clock)
        found = await asyncio.gather(*(kept.get("i-1") for _ in range(20)))
        assert found == [{"ImageId": "ami-1"}] * 20
        clock.seconds += GOOD_SECONDS + 1
        assert await kept.get("i-1") == {"ImageId": "ami-1"}  # and the next one is on its way
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await kept.get("i-1") == {"ImageId": "ami-2"}
        assert cloud.asked == ["i-1", "i-1"]

    asyncio.run(run())


def test_a_cloud_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptions, "PATIENCE_SECONDS", 0.01)

    async def run() -> None:
        clock, cloud = Clock(), Cloud()
        cloud.gate.clear()
        kept = Descriptions(cloud.describe, clock)
        assert await asyncio.gather(*(kept.get(f"i-{number}") for number in range(10))) == [{}] * 10
        assert cloud.most_at_once == descriptions.AT_ONCE
        cloud.gate.set()
        while len(cloud.asked) < 10:
            await asyncio.sleep(0)
        assert cloud.most_at_once == descriptions.AT_ONCE
        kept.close()

    asyncio.run(run())


def test_a_failed_description_leaves_the_last_one_and_is_asked_again_later() -> None:
    async def run() -> None:
        clock, cloud = Clock(), Cloud()
        kept = Descriptions(cloud.describe, clock)
        cloud.fails = True
        assert await kept.get("i-1") == {}
        cloud.fails = False
        assert await kept.get("i-1") == {}
        clock.seconds += RETRY_SECONDS
        await kept.get("i-1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await kept.get("i-1") == {"ImageId": "ami-2"}

    asyncio.run(run())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    opened = open_ledger(url)
    yield opened
    opened.close()


def running(ledger: Ledger) -> None:
    starting = samples.starting(ledger)
    attempt = ledger.add_attempt(samples.attempt(), sandbox_version=starting.version)
    ledger.save_attempt(replace(attempt, state=AttemptState.ACCEPTED, instance_id="i-1", addresses=("10.0.0.7",)))


GET = Request("GET", "/latest/meta-data/ami-id", {}, {})


async def ask(site: _Site) -> Answer:
    answering: Callable[[Request], Answer] = site.ready() or await site.found_out()
    return answering(GET)


def test_a_pods_answers_follow_settings_descriptions_and_the_end_of_its_vm(ledger: Ledger) -> None:
    async def run() -> None:
        clock, cloud, threads = Clock(), Cloud(), LedgerThreads()
        base = {"CLOUD_PROVIDER": "aws", "CAA_METADATA_ALLOW": "imds-v1"}
        chosen = [load(base)]
        service = MetadataService(ledger, threads, cloud.describe, lambda: chosen[0], Tokens(b"k" * 32), clock)
        site = _Site(service, "sb-1")
        assert (await ask(site)).status == 404
        running(ledger)
        assert (await ask(site)).body == b"ami-1"
        assert site.ready() is not None
        chosen[0] = load(base | {"CAA_METADATA_ALLOW": ""})
        assert (await ask(site)).status == 401
        chosen[0] = load(base | {"CAA_METADATA_MODE": "off"})
        assert (await ask(site)).status == 403
        chosen[0] = load(base)
        assert (await ask(site)).status == 200
        sandbox = ledger.sandbox("sb-1")
        assert sandbox is not None
        for state in (SandboxState.STOPPING, SandboxState.STOPPED):
            sandbox = ledger.save_sandbox(replace(sandbox, state=state))
        with pytest.raises(ConflictError, match="has no instance to tell about"):
            await service.seen(sandbox)
        await service.shutdown()
        await threads.close()

    asyncio.run(run())


def test_what_is_only_the_vms_to_tell_needs_mode_vm() -> None:
    right = {"CLOUD_PROVIDER": "aws"}
    for word in ("credentials", "signed-documents"):
        with pytest.raises(
            ConfigError, match=f"CAA_METADATA_ALLOW: '{word}' is not allowed with CAA_METADATA_MODE=pod"
        ):
            load(right | {"CAA_METADATA_ALLOW": word})
        settings = load(right | {"CAA_METADATA_ALLOW": word, "CAA_METADATA_MODE": "vm"})
        assert guest_metadata(settings) == {"mode": "vm", "allow": [word], "hops": 1}
    assert guest_metadata(load(right)) is None
    with pytest.raises(ConfigError, match=f"must be any of {', '.join(ALLOWABLE)}"):
        load(right | {"CAA_METADATA_ALLOW": "everything"})
    with pytest.raises(ConfigError, match="CAA_METADATA_MODE"):
        load(right | {"CAA_METADATA_MODE": "worker"})


def test_the_nodes_key_is_its_own_kept_and_for_nobody_else(tmp_path: Path) -> None:
    key = node_key(tmp_path)
    assert node_key(tmp_path) == key
    assert (tmp_path / "metadata.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "metadata.key").write_bytes(b"short")
    assert len(node_key(tmp_path)) == len(key) != 5
    assert "k" * 5 not in repr(Tokens(b"k" * 32))
