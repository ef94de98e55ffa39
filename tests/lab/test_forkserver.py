"""The fork server's children are what exec would have made, and none of them outlives the tests."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.podworld import service_environ
from tests.lab.forkserver import ForkedService, ForkServer
from tests.lab.service import ServiceProcess

# All of it takes a fraction of a second; a loaded machine gets many times that.
SECONDS = 30.0
# A test process that starts a service and then hangs.
HANGING = """
import json, os, sys, time
from pathlib import Path
from tests.lab.forkserver import ForkedService, ForkServer
with ForkServer() as forks:
    service = ForkedService(forks, Path(sys.argv[1]), json.loads(sys.argv[2]))
    service.start()
    service.wait_ready()
    print(forks.pid, service.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as forks:
        yield forks


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """What a service on an emulated AWS is configured by."""
    with AwsEmulator() as emulator:
        yield emulator.environ() | service_environ(Account(emulator, None, emulator.seed()))


@pytest.fixture
def directory() -> Iterator[Path]:
    """For one service, whose agent proxy ends with the test. A short one, for sockets are in it."""
    directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
    yield directory
    ServiceProcess(directory, {}).shut_down()
    shutil.rmtree(directory)


def wait_for_end(pid: int) -> None:
    """Of a process that is not a child of this one."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], SECONDS)[0], f"process {pid} still runs"
    finally:
        os.close(pidfd)


def test_a_child_has_the_environment_it_was_given_and_no_other(
    forks: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"CLOUD_PROVIDER": "aws", "CAA_STATE_DIR": "relative", "PATH": os.environ["PATH"]}
    monkeypatch.setenv("CAA_RUN_DIR", "relative-too")
    child = forks.serve(environ, tmp_path / "log")
    command = [sys.executable, "-m", "caa.cli.main", "serve"]
    direct = subprocess.run(command, env=environ, stderr=subprocess.PIPE, text=True, check=False)
    assert child.wait(SECONDS) == direct.returncode == 1
    assert "relative" in direct.stderr
    assert (tmp_path / "log").read_text() == direct.stderr


def test_a_child_runs_in_the_directory_of_its_caller_without_descriptors_of_others(
    forks: ForkServer, environ: dict[str, str], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    service = ForkedService(forks, directory, environ)
    service.start()
    service.wait_ready()
    assert service.process is not None
    of_child, of_server = Path(f"/proc/{service.process.pid}"), Path(f"/proc/{forks.pid}")
    assert (of_child / "cwd").readlink() == tmp_path
    assert open_files(of_child) & open_files(of_server) <= {"/dev/null"}
    assert str(service.log_file) in open_files(of_child)
    service.kill()


def open_files(process: Path) -> set[str]:
    """Sockets and pipes as the kernel numbers them, files by their paths."""
    found = set()
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a running process closes some meanwhile
            found.add(str(link.readlink()))
    return found


def test_how_a_child_ended_is_told_as_a_popen_tells_it(
    forks: ForkServer, environ: dict[str, str], directory: Path
) -> None:
    service = ForkedService(forks, directory, environ)
    for end, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
        service.start()
        service.wait_ready()
        assert service.process is not None
        assert service.process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            service.process.wait(0.01)
        service.process.send_signal(end)
        assert service.process.wait(SECONDS) == service.process.poll() == service.process.returncode == code
        service.process.send_signal(end)


def test_neither_server_nor_children_outlive_a_test_process_that_is_killed(
    environ: dict[str, str], directory: Path
) -> None:
    command = [sys.executable, "-c", HANGING, str(directory), json.dumps(environ)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        pids = [int(word) for word in test.stdout.readline().split()]
        test.kill()
    assert len(pids) == 2
    for pid in pids:
        wait_for_end(pid)
