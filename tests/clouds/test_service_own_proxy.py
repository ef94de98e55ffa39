"""`caa serve` beside an agent proxy that something else runs, as on Kubernetes: it starts no other."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from caa.agentproxy.control import ProxyControl
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import service_directory, service_environ
from tests.lab.service import ServiceProcess, accepts, new_id

PATIENCE_S = 60.0


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    """Not started."""
    environ = account.emulator.environ(proxy.url) | service_environ(account, CAA_START_PROXY="false")
    with service_directory() as directory:
        made = ServiceProcess(directory, environ)
        try:
            yield made
        finally:
            made.shut_down()


@contextlib.contextmanager
def proxy_process(service: ServiceProcess) -> Iterator[subprocess.Popen[bytes]]:
    """`caa proxy` of this service's directories, as its DaemonSet runs it."""
    with service.log_file.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "caa.cli.main", "proxy"], env=service.environ, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def health(service: ServiceProcess, question: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caa.cli.main", "health", question]
    return subprocess.run(command, env=service.environ, capture_output=True, text=True, timeout=PATIENCE_S)


def proxy_pid(service: ServiceProcess) -> int:
    return asyncio.run(ProxyControl(service.run_dir).version()).pid


def test_it_waits_for_its_proxy_and_a_new_service_finds_the_same_one(service: ServiceProcess) -> None:
    service.start()
    deadline = time.monotonic() + PATIENCE_S
    while not accepts(service.api_socket):
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.05)
    waiting = health(service, "ready")
    assert (waiting.returncode, waiting.stderr) == (1, "caa: the agent proxy; the first reconcile round\n")
    assert health(service, "live").returncode == 0
    assert health(service, "proxy").returncode == 3
    with proxy_process(service) as process:
        service.wait_ready()
        assert proxy_pid(service) == process.pid
        sandbox = new_id()
        service.create(sandbox, "web")
        service.start_sandbox(sandbox)
        service.kill()
        service.start()
        service.wait_ready()
        assert proxy_pid(service) == process.pid
        assert service.sandbox(sandbox)["state"] == "running"


def test_while_the_proxy_is_away_no_other_is_started_and_its_successor_carries_on(service: ServiceProcess) -> None:
    with proxy_process(service):
        service.start()
        service.wait_ready()
        sandbox = new_id()
        service.create(sandbox, "web")
        service.start_sandbox(sandbox)
    # A round looks at the proxy every few seconds; this log line is the last thing it does about one that is away.
    deadline = time.monotonic() + PATIENCE_S
    while "the agent proxy cannot be asked now" not in service.log_tail(1000):
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.1)
    assert not (service.run_dir / "proxy.log").exists()
    assert health(service, "proxy").returncode == 3
    deadline = time.monotonic() + PATIENCE_S
    with proxy_process(service) as second:
        assert service.sandbox(sandbox)["state"] == "running"
        while not agent_of(service, sandbox):
            assert time.monotonic() < deadline, service.log_tail()
            time.sleep(0.1)
        assert proxy_pid(service) == second.pid


def agent_of(service: ServiceProcess, sandbox: str) -> bool:
    """Whether the proxy has this sandbox open."""
    with contextlib.suppress(OSError):
        return any(one.id == sandbox for one in asyncio.run(ProxyControl(service.run_dir).list()))
    return False
