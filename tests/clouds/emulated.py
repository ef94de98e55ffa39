"""What the emulated clouds have in common for a test: their control verbs, and for two of them a process behind TLS."""

from __future__ import annotations

import base64
import contextlib
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.clouds.faultproxy import FaultProxy, make_tls
from tests.clouds.process import ServerProcess


class Controls:
    """Verbs that every emulator knows. `_http` is a client of its control port."""

    _http: httpx.Client

    def stop_clock(self) -> None:
        """From now on only `advance` lets time pass."""
        self._do("clock", running=False)

    def run_clock(self) -> None:
        self._do("clock", running=True)

    def advance(self, seconds: float) -> None:
        self._do("advance", seconds=seconds)

    def capacity(self, *rules: dict[str, Any]) -> None:
        """Rules of instance_type, zone, market (each "*" unless given) and remaining (0). None: endless capacity."""
        self._do("capacity", rules=list(rules))

    def staleness(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        """How long lists do not know a new instance; with `terminate` its deletion does not either."""
        self._do("staleness", calls=calls, seconds=seconds, terminate=terminate)

    def user_data(self, instance_id: str) -> bytes:
        return base64.b64decode(self._do("user_data", instance_id=instance_id)["user_data"])

    def reset(self) -> None:
        self._do("reset")

    def _do(self, verb: str, **arguments: Any) -> Any:
        response = self._http.post(f"/_control/{verb}", json=arguments)
        assert response.is_success, f"{verb}: {response.text}"
        return response.json() if response.content else None


class TlsEmulator(Controls):
    """Context manager: the process runs inside it. Starts without limits, delays, or anything seeded.

    `action` makes a request's name of its method, URL and body.
    """

    def __init__(self, module: str, action: Callable[[str, str, bytes], str], *arguments: str) -> None:
        self._module = module
        self._action = action
        self._arguments = arguments
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cloud-")))
            self._tls, self.ca_file = make_tls(self.directory)
            arguments = [*self._arguments, "--pair", str(self.directory / "server.pem")]
            self.server = stack.enter_context(ServerProcess(self._module, arguments))
            self.port, self.control_port = (int(port) for port in self.server.ready_line.split())
            self._http = stack.enter_context(httpx.Client(base_url=self.control_url, timeout=60, trust_env=False))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def control_url(self) -> str:
        """Where guests ask, and where the worker's metadata is."""
        return f"http://127.0.0.1:{self.control_port}"

    def proxy(self) -> FaultProxy:
        """A way to the cloud that may be broken, and knows requests by their names."""
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        return FaultProxy(self.url, self._tls, trust, action=self._action)

    def failing(self, *rules: dict[str, Any]) -> None:
        """As `capacity`; but such instances are accepted, and fail afterwards."""
        self._do("failing", rules=list(rules))

    def keeping(self, *kinds: str) -> None:
        """From now on these stay when their instance goes, whatever was asked: interfaces and disks, by the cloud's
        own words."""
        self._do("keeping", kinds=list(kinds))

    def limits(self, limits: dict[str, tuple[float, float]], retry_after: int = 1) -> None:
        """Request name -> (burst, requests a second)."""
        self._do("limits", limits=limits, retry_after=retry_after)
