"""`caa health` as a probe meets it: a real process that asks a real service, or a real agent proxy."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_cli_main import PATIENCE_S, run
from tests.wire.rest_service import serving, settings_in


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="caa-", dir="/run") as name:
        yield Path(name)


def test_a_service_that_is_well_is_told_by_the_exit_code_alone(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as service:
        for question in ("ready", "live", "started"):
            done = run("health", question, CAA_API_SOCKET=service.socket)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert run("health", CAA_RUN_DIR=str(Path(service.socket).parent)).returncode == 0


def test_a_service_that_is_not_ready_says_why(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as service:
        service.health.unready = ["the first reconcile round"]
        done = run("health", CAA_API_SOCKET=service.socket)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "caa: the first reconcile round\n")


def test_a_service_or_proxy_that_is_not_there_is_told_apart_with_the_key_that_moves_it(run_dir: Path) -> None:
    for question, key in (("ready", "CAA_API_SOCKET"), ("proxy", "CAA_RUN_DIR")):
        done = run("health", question, CAA_RUN_DIR=str(run_dir))
        assert done.returncode == 3
        assert str(run_dir) in done.stderr
        assert key in done.stderr


def test_the_agent_proxy_answers_for_itself(run_dir: Path) -> None:
    environ = {"CAA_RUN_DIR": str(run_dir), "CAA_STATE_DIR": str(run_dir / "state")}
    proxy = subprocess.Popen([sys.executable, "-m", "caa.cli.main", "proxy"], env=environ, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while (done := run("health", "proxy", **environ)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
    finally:
        proxy.terminate()
        assert proxy.wait(PATIENCE_S) == 0


def test_a_probe_loads_no_library() -> None:
    code = "import sys, caa.cli.health; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"pydantic", "httpx", "rich", "sqlalchemy", "fastapi", "uvicorn"}
