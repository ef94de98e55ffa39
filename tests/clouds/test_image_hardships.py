"""A builder of pod VM images without room, or with a tool that hangs, on each cloud: told, and nothing left."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.clouds import azure_image_lab
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.imagelab import make_disk
from tests.clouds.imageworld import World, grow, hanging_qemu_img, mended, small_disk, unchecked_space, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

# The disk has 30 MiB of data. How it is converted there; nothing is on AWS, where the source alone is.
WRITES = {"aws": "-O raw", "azure": "-O vpc", "ibm": "-O qcow2"}
Make = Callable[[Path], World]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("disk") / "disk.raw", size=(96 << 20) + 1536, blocks=60)


@contextlib.contextmanager
def _aws(request: pytest.FixtureRequest, _directory: Path) -> Iterator[tuple[dict[str, str], Callable[[], object]]]:
    account = request.getfixturevalue("account")
    account.emulator.run_clock()

    def left() -> object:
        disks = account.emulator.disks()
        return [name for name in disks["images"].values() if name.startswith("podvm-")] or disks["snapshots"]

    with FaultProxy(account.emulator.url) as way:
        yield account.emulator.environ(way.url) | {"CLOUD_PROVIDER": "aws"}, left


@contextlib.contextmanager
def _azure(request: pytest.FixtureRequest, directory: Path) -> Iterator[tuple[dict[str, str], Callable[[], object]]]:
    with azure_image_lab.server(directory) as server, azure_image_lab.emptied(server) as cloud:
        yield cloud.environ(), cloud.resources


@contextlib.contextmanager
def _ibm(request: pytest.FixtureRequest, _directory: Path) -> Iterator[tuple[dict[str, str], Callable[[], object]]]:
    ibm = request.getfixturevalue("ibm")
    ibm.emulator.run_clock()
    trust = ssl.create_default_context(cafile=str(ibm.emulator.ca_file))
    httpx.put(f"{ibm.emulator.object_storage_url}/images", verify=trust, timeout=60).raise_for_status()

    def left() -> object:
        storage = ibm.emulator.counters()["object_storage"]
        images = [one for one in ibm.emulator.resources("images") if one["name"].startswith("podvm-")]
        return images or storage["objects"] or storage["uploads"]

    with ibm.emulator.proxy() as way:
        keys = {"CLOUD_PROVIDER": "ibmcloud", "IBMCLOUD_COS_BUCKET": "images"}
        keys |= {"IBMCLOUD_COS_ENDPOINT": f"{way.url}/cos", "AWS_CA_BUNDLE": str(ibm.emulator.ca_file)}
        yield ibm.emulator.environ(way.url) | keys, left


CLOUDS = {"aws": _aws, "azure": _azure, "ibm": _ibm}


# Each takes some 3 seconds; `make soak` does all of them.
SOAK = bool(os.environ.get("CAA_SOAK"))


@pytest.fixture
def make(
    request: pytest.FixtureRequest, cloud: str, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """A builder with its state in a directory."""
    (tmp_path / "cloud").mkdir()
    with contextlib.ExitStack() as stack:
        environ, left = stack.enter_context(CLOUDS[cloud](request, tmp_path / "cloud"))
        yield lambda state: stack.enter_context(world(monkeypatch, state, disk, environ, left))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Room for the disk, beside what must stay free, and not for the disk twice."""
    with small_disk(tmp_path / "small", 110) as place:
        yield place


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_lack_of_room_for_what_the_cloud_takes_is_told_before_and_leaves_nothing(
    small: Path, make: Make, cloud: str
) -> None:
    if cloud == "aws":
        grow(small, 90)
    made = make(small)
    made.fails("NoSpace", "MiB free; unpacking" if cloud == "aws" else "MiB free; writing", "needs")
    grow(small, 300)
    made.works()


@pytest.mark.parametrize("cloud", CLOUDS if SOAK else ["azure"])
def test_a_disk_that_fills_up_during_the_conversion_is_told_and_leaves_nothing(
    small: Path, make: Make, cloud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked_space(monkeypatch)
    grow(small, 20 if cloud == "aws" else 50)
    made = make(small)
    made.fails("NoSpace", "the disk is full")
    grow(small, 300)
    made.works()


@pytest.mark.parametrize("cloud", CLOUDS if SOAK else ["ibm"])
def test_a_tool_that_hangs_is_ended_at_its_deadline_with_all_it_started_and_nothing_is_left(
    make: Make, cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path / "state")
    phase = "source" if cloud == "aws" else "convert"
    with hanging_qemu_img(monkeypatch, tmp_path / "tools", WRITES[cloud], made):
        made.fails("DeadlineExceeded", f"the phase '{phase}' took longer than")
    mended(monkeypatch)
    made.works()
