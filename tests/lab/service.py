"""`caa serve` as a real process, and its two front doors as a caller sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import httpx

from caa.agentproxy.control import ProxyControl
from caa.api.hypervisor import CreateVMRequest, CreateVMResponse, SandboxRequest
from caa.ttrpc.client import call_once

SERVICE = "hypervisor.Hypervisor"
# A fresh start imports and checks in about a second here; a loaded machine gets many times that.
READY_SECONDS = 60.0


class Process(Protocol):
    """What is used here of `subprocess.Popen`, so that a service may be started in other ways."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def terminate(self) -> None: ...


class ServiceProcess:
    """One service with directories of its own. `environ` adds to what it is started with."""

    def __init__(self, directory: Path, environ: dict[str, str]) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"
        self.log_file = directory / "serve.log"
        self.environ = {
            **os.environ,
            "CAA_STATE_DIR": str(self.state_dir),
            "CAA_RUN_DIR": str(self.run_dir),
            **environ,
        }
        self.process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "caa.sock"

    @property
    def hypervisor_socket(self) -> Path:
        return self.run_dir / "hypervisor.sock"

    def start(self) -> None:
        """Start the process and return at once."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caa.cli.main", "serve"], env=self.environ, stdout=log, stderr=log
            )

    def wait_ready(self) -> float:
        """Seconds until /readyz answers 200."""
        begun = time.monotonic()
        while time.monotonic() - begun < READY_SECONDS:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"caa serve ended with {self.process.returncode}:\n{self.log_tail()}")
            # httpx leaks the socket of a connection that fails, so it is asked only when somebody listens.
            if accepts(self.api_socket):
                with contextlib.suppress(httpx.TransportError), self.rest(timeout=5) as client:
                    if client.get("/readyz").status_code == 200:
                        return time.monotonic() - begun
            time.sleep(0.02)
        raise AssertionError(f"caa serve is not ready after {READY_SECONDS:g} s:\n{self.log_tail()}")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def shut_down(self) -> None:
        """Everything of this service ends: the control plane, then the proxy it had started."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        with contextlib.suppress(OSError, TimeoutError):
            asyncio.run(ProxyControl(str(self.run_dir)).shutdown())

    def log_tail(self, lines: int = 40) -> str:
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    # The REST door.

    def rest(self, timeout: float = 300) -> httpx.Client:
        # No TLS on a unix socket; without this each client reads all CA certificates first.
        transport = httpx.HTTPTransport(uds=str(self.api_socket), verify=False)
        return httpx.Client(transport=transport, base_url="http://caa", timeout=timeout)

    def create(
        self, sandbox_id: str, pod: str, annotations: dict[str, str] | None = None, netns: str = ""
    ) -> dict[str, Any]:
        body = {
            "id": sandbox_id,
            "annotations": pod_annotations(pod) | (annotations or {}),
            "network_namespace_path": netns,
        }
        with self.rest() as client:
            return dict(checked(client.post("/v1/sandboxes", json=body)))

    def begin_start(self, sandbox_id: str) -> httpx.Response:
        with self.rest() as client:
            return client.post(f"/v1/sandboxes/{sandbox_id}/start")

    def start_sandbox(self, sandbox_id: str) -> dict[str, Any]:
        return dict(checked(self.begin_start(sandbox_id)))

    def stop_sandbox(self, sandbox_id: str) -> dict[str, Any]:
        with self.rest() as client:
            return dict(checked(client.post(f"/v1/sandboxes/{sandbox_id}/stop")))

    def sandbox(self, sandbox_id: str) -> dict[str, Any]:
        with self.rest() as client:
            return dict(checked(client.get(f"/v1/sandboxes/{sandbox_id}")))

    def sandboxes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        params: dict[str, str | int] = {"limit": 200}
        with self.rest() as client:
            while True:
                page = checked(client.get("/v1/sandboxes", params=params))
                found += page["sandboxes"]
                if not page["next_cursor"]:
                    return found
                params["cursor"] = page["next_cursor"]

    def events(self, sandbox_id: str) -> list[dict[str, Any]]:
        with self.rest() as client:
            return list(checked(client.get(f"/v1/sandboxes/{sandbox_id}/events", params={"limit": 500}))["events"])

    def wait_for_state(self, sandbox_id: str, states: set[str], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            row = self.sandbox(sandbox_id)
            if row["state"] in states:
                return row
            assert time.monotonic() < deadline, f"{sandbox_id} is {row['state']}, not {states}\n{self.log_tail()}"
            time.sleep(0.1)

    # The shim's door. One connection for each call, as the Go shim does.

    def create_vm(self, sandbox_id: str, pod: str) -> str:
        request = CreateVMRequest(id=sandbox_id, annotations=pod_annotations(pod), network_namespace_path="")
        reply = self._call("CreateVM", request.encode())
        return CreateVMResponse.decode(reply).agent_socket_path

    def start_vm(self, sandbox_id: str) -> bytes:
        return self._call("StartVM", SandboxRequest(id=sandbox_id).encode(), timeout=600)

    def stop_vm(self, sandbox_id: str) -> bytes:
        return self._call("StopVM", SandboxRequest(id=sandbox_id).encode())

    def _call(self, method: str, payload: bytes, timeout: float | None = None) -> bytes:
        return asyncio.run(call_once(str(self.hypervisor_socket), SERVICE, method, payload, timeout=timeout))


def accepts(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def pod_annotations(pod: str, namespace: str = "default") -> dict[str, str]:
    """The nine keys that a shim always sends."""
    prefix = "io.katacontainers.config.hypervisor."
    return {
        "io.kubernetes.cri.sandbox-name": pod,
        "io.kubernetes.cri.sandbox-namespace": namespace,
        prefix + "machine_type": "",
        prefix + "image": "",
        prefix + "default_vcpus": "0",
        prefix + "default_memory": "0",
        prefix + "cc_init_data": "",
        prefix + "default_gpus": "0",
        prefix + "default_gpu_model": "",
    }


def new_id() -> str:
    """A sandbox id as a container runtime makes it."""
    return secrets.token_hex(32)


def checked(response: httpx.Response) -> Any:
    """The answer's body, if it is a success."""
    request = response.request
    assert response.is_success, f"{request.method} {request.url}: {response.status_code} {response.text}"
    return response.json()


def running_service(directory: Path, environ: dict[str, str]) -> AbstractContextManager[ServiceProcess]:
    """A service that is ready, and gone afterwards."""
    return running(ServiceProcess(directory, environ))


@contextlib.contextmanager
def running(service: ServiceProcess) -> Iterator[ServiceProcess]:
    """The same, however it is started."""
    service.start()
    try:
        service.wait_ready()
        yield service
    finally:
        service.shut_down()
