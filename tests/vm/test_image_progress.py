"""A service whose image is built from nothing says how far that is, while the real tools are at it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder.steps import STEPS
from tests.lab.image import lab_environ
from tests.lab.service import ServiceProcess, accepts, new_id

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mmdebstrap") is None, reason="building an image needs root and mmdebstrap"
)

PATIENCE_S = 600.0  # of which the downloads take most, where the mirror is slow


@pytest.fixture
def service(lab: dict[str, str]) -> Iterator[ServiceProcess]:
    """A service on libvirt without an image."""
    cluster = f"test-{secrets.token_hex(4)}"
    own = {"CAA_CLUSTER_ID": cluster, "NODE_NAME": "worker", "LIBVIRT_VOL_NAME": f"podvm-{cluster}.qcow2"}
    directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
    made = ServiceProcess(directory, lab_environ() | own)
    made.start()
    try:
        yield made
    finally:
        made.shut_down()
        shutil.rmtree(directory)


def test_on_a_terminal_one_bar_goes_through_all_steps_in_percent(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "caa.cli.main", "image", "build", "--output", str(tmp_path / "podvm")]
    with subprocess.Popen(command, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}) as process:
        os.close(theirs)
        said, deadline = "", time.monotonic() + PATIENCE_S
        while not re.search(r"unpack packages .* [1-9]\d* %", said):
            assert time.monotonic() < deadline, said
            said += os.read(ours, 65536).decode(errors="replace")
        process.terminate()
        with contextlib.suppress(OSError):  # that is how the end of a terminal reads
            while os.read(ours, 65536):
                pass
    os.close(ours)
    assert "package lists" in said
    assert "bytes" not in said


def test_a_start_is_told_the_step_of_the_build_and_how_much_is_done(service: ServiceProcess) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not accepts(service.api_socket):
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.05)
    sandbox = new_id()
    service.create(sandbox, "web")
    seen: dict[str, int] = {}
    while "install the base" not in seen:
        assert time.monotonic() < deadline, (seen, service.log_tail())
        said = service.begin_start(sandbox).json()["detail"]
        if match := re.fullmatch(r"the pod VM image is being built: ([a-z ]+), (\d+) %(, \d+ s left)?", said):
            seen[match[1]] = int(match[2])
        time.sleep(0.2)
    assert list(seen) == [step for step in STEPS if step in seen]
    assert list(seen.values()) == sorted(seen.values())
    with service.rest() as client:
        building = client.get("/v1/image/status").json()["building"]
    assert (building["phase"], building["bytes_total"]) == ("source", None)
    assert building["percent"] >= seen["install the base"]
    assert building["seconds_remaining"] > 0
    service.shut_down()
    while list((service.state_dir / "image").glob(".image-*")):  # the builder is told to end, too
        assert time.monotonic() < deadline
        time.sleep(0.2)
