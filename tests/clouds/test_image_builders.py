"""Who builds the pod VM image: one of many nodes, with what memory, how often and for how long."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from caa.images.image import ImageState
from caa.images.imaging import MAX_FAILURES, ImageFailedError, ImageInUseError, Imaging
from caa.images.work import DEADLINES
from caa.ledger import Ledger, open_ledger, upgrade
from caa.sandbox import AttemptState, SandboxState
from imagebuilder.publish.aws import AwsPublisher
from imagebuilder.publish.upload import SENDERS
from imagebuilder.sources import Disk, Progress
from providers.aws.settings import AwsKeys
from providers.keys import read_keys
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagefates import kill_builder
from tests.clouds.imagelab import MIB, ImageLab, image_lab, make_disk
from tests.ledger.samples import attempt, starting

# What the promise is about; `make test` does an eighth of it.
FULL = bool(os.environ.get("CAA_SOAK"))
SIZE, DATA = (2048 * MIB, 400 * MIB) if FULL else (256 * MIB, 50 * MIB)
MOST_SENT = DATA + DATA // 8
MOST_MEMORY = 150 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw")


@pytest.fixture
def way(account: Account) -> Iterator[FaultProxy]:
    account.emulator.run_clock()
    with FaultProxy(account.emulator.url) as made:
        yield made


@pytest.fixture
def node(
    account: Account, way: FaultProxy, disk: Path, tmp_path: Path, postgresql_ledger: str
) -> Iterator[Callable[[str], ImageLab]]:
    """Makes nodes that share a ledger."""
    environ = account.emulator.environ(way.url) | {"CLOUD_PROVIDER": "aws", "CAA_LEDGER_URL": postgresql_ledger}
    labs: list[Any] = []

    def make(name: str) -> ImageLab:
        lab = image_lab(tmp_path / name, environ, disk, name)
        labs.append(lab)
        return lab.__enter__()

    yield make
    for lab in labs:
        lab.__exit__(None, None, None)


def test_of_two_nodes_that_begin_at_once_one_builds_and_both_have_the_image(
    account: Account, node: Callable[[str], ImageLab]
) -> None:
    commands = [node(name).begin("ensure", "--json") for name in ("worker-1", "worker-2")]
    assert [command.wait() for command in commands] == [0, 0], [command.said for command in commands]
    assert len({command.said.split('"image": "')[1].split('"')[0] for command in commands}) == 1
    assert account.emulator.counters()["calls"]["StartSnapshot"] == 1
    assert account.emulator.counters()["calls"]["RegisterImage"] == 1
    assert account.emulator.disks()["ebs"]["again"] == 0


def test_when_the_builder_dies_another_node_goes_on_where_it_was(
    account: Account, way: FaultProxy, node: Callable[[str], ImageLab]
) -> None:
    first, second = node("worker-1"), node("worker-2")
    kill_builder(first, way, Phase.BEFORE, method="PUT", at=18)
    before = account.emulator.disks()["ebs"]["blocks"]
    assert second.json("ensure")["built"]
    ebs = account.emulator.disks()["ebs"]
    assert 0 < before < ebs["blocks"]
    assert len(ebs["snapshots"]) == 1
    assert ebs["again"] <= SENDERS  # of what was there only what the dead one could not write down


def test_an_upload_sends_what_holds_data_in_parallel_with_little_memory(
    account: Account, way: FaultProxy, tmp_path: Path
) -> None:
    path = make_disk(tmp_path / "large.raw", SIZE, blocks=1)
    dice = random.Random(1)
    with path.open("r+b") as file:
        for number in range(DATA // MIB):
            file.seek(SIZE // 8 + number * 4 * MIB)
            file.write(dice.randbytes(MIB))
    assert DATA <= path.stat().st_blocks * 512 < MOST_SENT
    environ = account.emulator.environ() | {"CLOUD_PROVIDER": "aws"}
    with image_lab(tmp_path, environ, path) as lab:
        command = lab.begin("ensure")
        memory = 0
        while command.process.is_alive():
            memory = max(memory, _peak(command.pid))
            command.process.join(0.1)
        assert command.wait() == 0, command.said
    ebs = account.emulator.disks()["ebs"]
    print(
        f"{SIZE >> 20} MiB disk with {DATA >> 20} MiB of data: {ebs['bytes'] / MIB:.0f} MiB sent, "
        f"{ebs['most_in_flight']} requests in flight, {memory / MIB:.0f} MiB of memory"
    )
    assert ebs["bytes"] <= MOST_SENT
    assert ebs["most_in_flight"] >= 8
    assert 0 < memory <= MOST_MEMORY, f"{memory / MIB:.0f} MiB"


def _peak(pid: int) -> int:
    """The most memory that a process ever had; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


# In this process, on a clock that only waiting moves.


class Time:
    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += max(seconds, 0.001)


class GivenDisk:
    """A source whose disk is there already, and takes `seconds` all the same."""

    name = "given"

    def __init__(self, path: Path, time: Time) -> None:
        self.disk = Disk(path, path.stat().st_size, "amd64", "ab" * 32, {"disk": "ab" * 32})
        self.time, self.seconds, self.tries = time, 0.0, 0

    def obtain(self, progress: Progress) -> Disk:
        self.tries += 1
        self.time.passed += self.seconds
        progress("fetch", 1, 2)
        return self.disk

    def clear(self) -> None:
        """It is not ours."""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    made = open_ledger(url)
    yield made
    made.close()


@pytest.fixture
def imaging(
    account: Account, way: FaultProxy, disk: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Imaging]:
    for key, value in account.emulator.environ(way.url).items():
        monkeypatch.setenv(key, value)
    publisher = AwsPublisher(read_keys(AwsKeys, dict(os.environ)))
    time = Time()
    yield Imaging(ledger.images, publisher, GivenDisk(disk, time), "prod", "worker-1/x/1", time)
    publisher.close()


def test_a_cloud_that_never_works_is_asked_so_often_and_then_no_more_until_somebody_says_so(
    imaging: Imaging, account: Account, way: FaultProxy
) -> None:
    way.add(Fault.STATUS, Phase.BEFORE, method="POST", url="/snapshots$", status=500, times=None)
    with pytest.raises(ImageFailedError, match="StartSnapshot"):
        imaging.ensure()
    image = imaging.store.open("prod", imaging.account)
    assert image is not None
    assert (image.state, image.failures + 1, image.attempts) == (ImageState.FAILED, MAX_FAILURES, MAX_FAILURES)
    assert account.emulator.disks()["snapshots"] == {}
    with pytest.raises(ImageFailedError, match="caa image retry"):
        imaging.ensure()
    way.clear()
    assert imaging.retry()
    assert imaging.ensure().state is ImageState.READY


def test_a_phase_that_takes_too_long_ends_and_is_tried_again(imaging: Imaging) -> None:
    source = imaging.source
    assert isinstance(source, GivenDisk)
    source.seconds = DEADLINES["source"] + 1
    with pytest.raises(ImageFailedError, match="DeadlineExceeded: the phase 'source' took longer than 3600 s"):
        imaging.ensure()
    assert source.tries == MAX_FAILURES


def test_an_image_that_sandboxes_use_is_kept_by_refresh_and_by_delete(
    imaging: Imaging, account: Account, ledger: Ledger, tmp_path: Path
) -> None:
    first = imaging.ensure()
    row = starting(ledger, "sb-1")
    ledger.add_attempt(replace(attempt("sb-1"), image=first.image_id), sandbox_version=row.version)
    source = imaging.source
    assert isinstance(source, GivenDisk)
    other = make_disk(tmp_path / "other.raw", seed=3)
    source.disk = Disk(other, other.stat().st_size, "amd64", "cd" * 32, {})
    second = imaging.refresh()
    assert second.image_id != first.image_id
    assert imaging.sweep() == []
    assert {first.image_id, second.image_id} <= set(account.emulator.disks()["images"])
    with pytest.raises(ImageInUseError, match="1 sandboxes use the image"):
        imaging.delete()
    _end(ledger, "sb-1")
    assert [image.image_id for image in imaging.sweep()] == [first.image_id]
    assert set(account.emulator.disks()["images"]) == {second.image_id, *account.seed.images.values()}


def _end(ledger: Ledger, sandbox_id: str) -> None:
    (one,) = ledger.attempts(sandbox_id)
    ledger.save_attempt(replace(one, state=AttemptState.REFUSED))
    row = ledger.sandbox(sandbox_id)
    assert row is not None
    row = ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
    ledger.save_sandbox(replace(row, state=SandboxState.FAILED))
