"""When a changed directory is looked at, and what becomes of the provider before: on a clock of the test's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from caa.agentproxy.control import ProxyControl
from caa.cloud import Cloud
from caa.configuring import build
from caa.guestconfig import TlsProfile
from caa.ledger import open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.limiter import Limiter
from caa.metadata.service import MetadataService
from caa.metadata.tokens import Tokens
from caa.node import AgentTls, Current, Node
from caa.reload import RETRY_SECONDS, Reload
from caa.sources import Sources
from caa.tunnels import Tunnels
from providers.base import OwnerScope
from tests.clouds.aws_lab import Lab
from tests.clouds.podworld import service_environ
from tests.lab.mounted import Mounted

RIGHT = {"TAGS": "age=old"}


class Clock:
    """Stands still but for sleeping."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)


class World:
    """A node on the emulated EC2 whose ConfigMap is mounted."""

    def __init__(self, lab: Lab, path: Path, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.lab = lab
        self.clock = Clock()
        self.config = Mounted(path / "config", RIGHT)
        self.run = run
        lab.provider().close()  # for what it puts into the environment, where boto looks
        environ = lab.account.emulator.environ() | service_environ(lab.account)
        environ |= {"CAA_STATE_DIR": str(path), "CAA_RUN_DIR": str(path), "PODS_DIR": "/run/caa-pods"}
        sources = Sources(environ | {"CAA_CONFIG_DIR": str(self.config.path)})
        merged = sources.read()
        configured = build(merged.values)
        settings = configured.settings
        upgrade(settings.ledger_url)
        self.ledger = open_ledger(settings.ledger_url)
        self.threads = LedgerThreads()
        scope = OwnerScope(settings.cluster_id, settings.node_name)
        limiter = Limiter(
            self.ledger.account, self.threads, self.clock, configured.provider.account, configured.provider.limits
        )
        self.cloud = Cloud(configured.provider, scope, self.clock, limiter)
        metadata = MetadataService(
            self.ledger, self.threads, self.cloud.describe, lambda: settings, Tokens(b"k" * 32), self.clock
        )
        self.node = Node(
            scope=scope,
            ledger=self.ledger,
            ledger_threads=self.threads,
            cloud=self.cloud,
            proxy=ProxyControl(str(settings.run_dir)),
            tunnels=Tunnels(self.ledger, self.threads, scope, self.clock, settings.tunnel_settings, metadata),
            clock=self.clock,
            tls=AgentTls(None, "", "", "", TlsProfile("", ())),
            pods_dir=settings.pods_dir,
            forwarder_port=settings.forwarder_port,
            current=Current(settings),
        )
        self.reload = Reload(sources, merged, self.node)

    def look(self, after: float = 1.0) -> tuple[int, str]:
        """Look once more; the generation, and the key of what is refused."""
        self.clock.seconds += after
        self.run(self.reload.look())
        status = self.reload.status
        return status.generation, status.refused.problems[0].key if status.refused else ""

    async def close(self) -> None:
        await self.cloud.close()
        await self.threads.close()
        await self.node.tunnels.close()
        self.ledger.close()


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> Iterator[World]:
    with asyncio.Runner() as runner:
        made = World(lab, tmp_path, runner.run)
        yield made
        runner.run(made.close())


def test_nothing_is_asked_while_nothing_changes(world: World) -> None:
    assert world.look() == (1, "")
    asked = world.lab.account.emulator.counters()["calls"]
    for _ in range(3):
        assert world.look(RETRY_SECONDS) == (1, "")
    assert world.lab.account.emulator.counters()["calls"] == asked


def test_a_change_between_reading_and_the_first_look_is_seen(world: World) -> None:
    world.config.write({"TAGS": "age=new"})
    assert world.look() == (2, "")


def test_other_files_with_the_same_values_are_no_change(world: World) -> None:
    world.look()
    world.config.write(RIGHT)
    assert world.look() == (1, "")


def test_what_was_refused_is_asked_again_after_a_while_and_applies_once_it_is_right(world: World) -> None:
    world.config.write(RIGHT | {"SSH_KP_NAME": "late"})
    assert world.look() == (1, "SSH_KP_NAME")
    world.lab.account.ec2.create_key_pair(KeyName="late")
    assert world.look(RETRY_SECONDS - 2) == (1, "SSH_KP_NAME")
    assert world.look(2) == (2, "")
    assert world.look(RETRY_SECONDS) == (2, "")


def test_taking_a_refused_change_back_ends_the_refusal_and_keeps_it_in_memory(world: World) -> None:
    world.config.write(RIGHT | {"PROXY_TIMEOUT": "soon"})
    assert world.look() == (1, "PROXY_TIMEOUT")
    world.config.write(RIGHT)
    assert world.look() == (1, "")
    last = world.reload.status.last_refused
    assert last is not None
    assert last.keys == ("PROXY_TIMEOUT",)


def test_a_directory_that_is_gone_is_refused_and_all_stays(world: World) -> None:
    away = world.config.path.rename(world.config.path.parent / "away")
    assert world.look() == (1, "CAA_CONFIG_DIR")
    assert world.reload.status.last_refused is not None
    away.rename(world.config.path)
    assert world.look() == (1, "")


def test_a_key_that_waits_for_a_restart_is_refused_too_when_the_restart_would_fail(world: World) -> None:
    world.config.write(RIGHT | {"CAA_API_SOCKET": "relative"})
    assert world.look() == (1, "CAA_API_SOCKET")
    world.config.write(RIGHT | {"CAA_API_SOCKET": "/run/other.sock"})
    assert world.look() == (1, "")
    assert world.reload.status.restart_needed == ("CAA_API_SOCKET",)
    assert world.node.current.settings.api_socket.name == "caa.sock"


def test_a_start_under_way_keeps_settings_and_provider_and_the_next_has_both_new(world: World) -> None:
    with contextlib.ExitStack() as starts:
        old = starts.enter_context(world.node.unchanging())
        world.config.write({"TAGS": "age=new", "PROXY_TIMEOUT": "1m", "ENABLE_SCRATCH_SPACE": "true"})
        assert world.look() == (2, "")
        new = starts.enter_context(world.node.unchanging())
        assert (old.proxy_timeout, old.scratch_space) == (300.0, False)
        assert (new.proxy_timeout, new.scratch_space) == (world.node.proxy_timeout, True) == (60.0, True)
        assert old.cloud.name == new.cloud.name == "aws"
        shapes = [world.run(launch(world.lab, view.cloud)) for view in (old, new)]
    assert shapes == ["old", "new"]


async def launch(lab: Lab, cloud: Cloud) -> str:
    """The tag `age` of a new instance."""
    made = await cloud.launch(lab.request())
    found = lab.account.ec2.describe_instances(InstanceIds=[made.id])["Reservations"][0]["Instances"][0]
    return str(next(tag["Value"] for tag in found["Tags"] if tag["Key"] == "age"))
