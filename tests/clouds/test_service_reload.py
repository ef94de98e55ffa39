"""The real service takes over changes of its ConfigMap and Secret while it starts sandboxes on the emulated EC2."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import alive, callers, pod_service
from tests.lab.mounted import Mounted
from tests.lab.service import ServiceProcess, checked, new_id, pod_annotations

STARTS = 100 if os.environ.get("CAA_SOAK") else 25
# More than the launches that EC2 takes in the time of one start, so that some wait for their turn during a change.
AT_ONCE = 8
FLIP_SECONDS = 0.2
# The directories are looked at every second; only a failing test waits this long.
PATIENCE = 60.0

# Type and tag are the provider's, the scratch space the service's: together they show which configuration it was.
LARGE = {"PODVM_INSTANCE_TYPE": "m6a.large", "TAGS": "shape=large", "ENABLE_SCRATCH_SPACE": "false"}
XLARGE = {"PODVM_INSTANCE_TYPE": "m6a.xlarge", "TAGS": "shape=xlarge", "ENABLE_SCRATCH_SPACE": "true"}
# The one is seen to be wrong by itself, the other only when EC2 is asked.
UNREADABLE = {"PODVM_INSTANCE_TYPE": "m6a.2xlarge", "TAGS": "shape=bad", "PROXY_TIMEOUT": "soon"}
UNKNOWN = {"PODVM_INSTANCE_TYPE": "zz9.large", "TAGS": "shape=bad"}
WHOLE = {("m6a.large", "large", False), ("m6a.xlarge", "xlarge", True)}


class World:
    """A service whose ConfigMap and Secret are mounted, and what its EC2 was asked for."""

    def __init__(self, directory: Path, account: Account, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.account = account
        self.config = Mounted(directory / "config", LARGE)
        self.secret = Mounted(
            directory / "secret",
            {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7MOUNTED", "AWS_SECRET_ACCESS_KEY": "in-no-environment"},
        )
        self.keys = {"CAA_CONFIG_DIR": str(self.config.path), "CAA_SECRET_DIR": str(self.secret.path)}
        # An empty one counts as unset.
        self.keys |= dict.fromkeys(("PODVM_INSTANCE_TYPE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")

    def asked(self) -> list[tuple[str, str, bool]]:
        """Of each launch that is no dry run: its type, its tag `shape`, whether it has a scratch space."""
        found = []
        for record in self.proxy.records:
            if record.action != "RunInstances" or b"DryRun=true" in record.body:
                continue
            body = {key: values[0] for key, values in parse_qs(record.body.decode()).items()}
            shape = next(
                body[key.replace(".Key", ".Value")]
                for key, value in body.items()
                if re.fullmatch(r"TagSpecification\.1\.Tag\.\d+\.Key", key) and value == "shape"
            )
            scratch = b"scratch-space.marker" in base64.b64decode(body["UserData"])
            found.append((body["InstanceType"], shape, scratch))
        return found

    def key_ids(self) -> set[str]:
        """Whose credentials EC2 saw."""
        return {record.key_id for record in self.proxy.records}


@pytest.fixture
def world(account: Account, tmp_path: Path) -> Iterator[World]:
    account.emulator.run_clock()
    with FakeGuests(account.emulator.url), FaultProxy(account.emulator.url) as proxy:
        yield World(tmp_path, account, proxy)


@pytest.fixture
def service(world: World) -> Iterator[ServiceProcess]:
    with pod_service(world.account, world.proxy.url, **world.keys) as service:
        yield service


def status(service: ServiceProcess) -> dict[str, Any]:
    with service.rest() as client:
        return dict(checked(client.get("/v1/config/status")))


def wait_for(service: ServiceProcess, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status once it is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(now := status(service)):
        assert time.monotonic() < deadline, f"{now}\n{service.log_tail()}"
        time.sleep(0.05)
    return now


def refused_for(key: str, now: dict[str, Any]) -> bool:
    """Whether a change is refused because of this key first."""
    return bool(now["refused"]) and now["refused"]["problems"][0]["key"] == key


def start_one(service: ServiceProcess) -> str:
    sandbox_id = new_id()
    service.create(sandbox_id, f"pod-{sandbox_id[:12]}")
    service.start_sandbox(sandbox_id)
    return sandbox_id


@contextlib.contextmanager
def flipping(config: Mounted) -> Iterator[None]:
    """The ConfigMap changes all the time, to what is right and what is wrong in turns."""
    done = threading.Event()

    def flip() -> None:
        for values in itertools.cycle((LARGE, UNREADABLE, XLARGE, LARGE, UNKNOWN, XLARGE)):
            if done.wait(FLIP_SECONDS):
                return
            config.write(values)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def start_many(service: ServiceProcess, enough: Callable[[int], bool]) -> list[str]:
    """Start sandboxes, some at a time, until `enough` says so of their number; what went wrong with any of them."""
    wrong: list[str] = []
    begun = 0

    async def caller(client: Any) -> None:
        nonlocal begun
        while not enough(begun):
            begun += 1
            sandbox_id = new_id()
            body = {"id": sandbox_id, "annotations": pod_annotations(f"pod-{sandbox_id[:12]}")}
            answers = [
                await client.post("/v1/sandboxes", json=body),
                await client.post(f"/v1/sandboxes/{sandbox_id}/start"),
            ]
            wrong.extend(answer.text for answer in answers if not answer.is_success)

    async with callers(service, AT_ONCE) as client:
        await asyncio.gather(*(caller(client) for _ in range(AT_ONCE)))
    return wrong


def test_every_start_uses_one_whole_configuration_while_it_changes_all_the_time(
    world: World, service: ServiceProcess
) -> None:
    deadline = time.monotonic() + PATIENCE + STARTS

    def enough(begun: int) -> bool:
        assert time.monotonic() < deadline, status(service)
        return begun >= STARTS and set(world.asked()) >= WHOLE and status(service)["last_refused"] is not None

    with flipping(world.config):
        wrong = asyncio.run(start_many(service, enough))
    assert wrong == []
    asked = world.asked()
    assert len(asked) >= STARTS
    assert set(asked) == WHOLE
    assert len(alive(world.account)) == len(asked)
    assert status(service)["generation"] >= 2


def test_a_wrong_change_is_refused_by_its_key_and_the_one_before_still_applies(
    world: World, service: ServiceProcess
) -> None:
    assert status(service)["generation"] == 1
    world.config.write(XLARGE)
    applied = wait_for(service, lambda now: now["generation"] == 2)
    assert applied["refused"] is None
    start_one(service)
    for wrong, key, value in ((UNREADABLE, "PROXY_TIMEOUT", "soon"), (UNKNOWN, "PODVM_INSTANCE_TYPE", "zz9.large")):
        world.config.write(wrong)
        refused = wait_for(service, partial(refused_for, key))
        assert [problem["key"] for problem in refused["refused"]["problems"]] == [key]
        assert value in refused["refused"]["problems"][0]["message"]
        assert key in refused["refused"]["keys"]
        assert (refused["generation"], refused["since"]) == (2, applied["since"])
        assert f"{key}: '{value}'" in service.log_tail()
        start_one(service)
    world.config.write(XLARGE)
    mended = wait_for(service, lambda now: now["refused"] is None)
    assert mended["generation"] == 2
    assert mended["last_refused"]["problems"][0]["key"] == "PODVM_INSTANCE_TYPE"
    assert set(world.asked()) == {("m6a.xlarge", "xlarge", True)}


def test_new_credentials_apply_without_a_restart_and_are_shown_nowhere(world: World, service: ServiceProcess) -> None:
    start_one(service)
    assert world.key_ids() == {"AKIAIOSFODNN7MOUNTED"}
    world.secret.write({"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7ROTATED", "AWS_SECRET_ACCESS_KEY": "rotated-secret"})
    now = wait_for(service, lambda now: now["generation"] == 2)
    assert "AKIAIOSFODNN7ROTATED" in world.key_ids()
    # A list that was under way with the old ones is over when this one is.
    with service.rest() as client:
        checked(client.get("/v1/audit"))
    world.proxy.clear()
    sandbox_id = start_one(service)
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, PATIENCE)
    assert world.key_ids() == {"AKIAIOSFODNN7ROTATED"}
    for told in (str(now), service.log_file.read_text()):
        assert "rotated-secret" not in told
        assert "in-no-environment" not in told


def test_keys_that_need_a_restart_keep_their_values_and_are_named(world: World, service: ServiceProcess) -> None:
    running = start_one(service)
    world.config.write(
        XLARGE
        | {"NODE_NAME": "other", "CLOUD_PROVIDER": "libvirt", "CAA_STATE_DIR": "/run/other", "VXLAN_PORT": "9000"}
    )
    now = wait_for(service, lambda now: now["generation"] == 2)
    assert now["restart_needed"] == ["CAA_STATE_DIR", "CLOUD_PROVIDER", "NODE_NAME", "VXLAN_PORT"]
    assert service.sandbox(start_one(service))["node"] == "worker"
    assert service.sandbox(running)["state"] == "running"
    assert world.asked() == [("m6a.large", "large", False), ("m6a.xlarge", "xlarge", True)]
    world.config.write(XLARGE)
    assert wait_for(service, lambda now: not now["restart_needed"])["generation"] == 2


def test_a_misspelt_key_is_warned_of_when_it_comes(world: World, service: ServiceProcess) -> None:
    before = status(service)["warnings"]  # of the environment that the tests run in
    world.config.write(LARGE | {"PODVM_INSTANCE_TYPS": "m6a.xlarge"})
    now = wait_for(service, lambda now: now["warnings"] != before)
    (warning,) = set(now["warnings"]) - set(before)
    assert "PODVM_INSTANCE_TYPS" in warning
    assert "did you mean PODVM_INSTANCE_TYPES?" in warning
    assert warning in service.log_tail()
