"""The API server's stand-in as a test sees it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from tests.clouds.process import ServerProcess
from tests.kube.__main__ import TOKEN

T = TypeVar("T")
# Longer than any wait for a second try; what is waited for takes milliseconds otherwise.
PATIENCE_SECONDS = 30.0


class KubeApiServer:
    """Context manager: the process runs inside it."""

    def __enter__(self) -> KubeApiServer:
        self._server = ServerProcess("tests.kube", []).__enter__()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{int(self._server.ready_line)}", trust_env=False)
        self._directory = tempfile.TemporaryDirectory(prefix="kube-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._directory.cleanup()
        self._server.__exit__(kind, value, trace)

    def environ(self) -> dict[str, str]:
        """What leads a service here."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "one", "cluster": {"server": str(self._http.base_url)}}],
            "users": [{"name": "caa", "user": {"token": TOKEN}}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "caa"}}],
            "current-context": "one",
        }
        file = Path(self._directory.name) / "config"
        file.write_text(json.dumps(config))
        return {"KUBECONFIG": str(file), "CAA_KUBERNETES": "true"}

    # What tests do and see

    def do(self, verb: str, **arguments: Any) -> Any:
        """A control verb of `tests.kube.__main__`."""
        answer = self._http.post(f"/_control/{verb}", json=arguments)
        answer.raise_for_status()
        return answer.json()

    def add_pod(self, name: str, namespace: str = "default", created: str = "2026-01-01T00:00:00Z") -> str:
        """A Pod; its UID."""
        self.do("namespace", name=namespace)
        body = {"metadata": {"name": name, "creationTimestamp": created}}
        pod = self.do("add", resource="pods", namespace=namespace, body=body)
        return str(pod["metadata"]["uid"])

    def events(self, pod: str) -> list[dict[str, Any]]:
        """Of a Pod, in order."""
        return [one for one in self.do("listed", resource="events") if one["involvedObject"]["name"] == pod]

    def reasons(self, pod: str) -> list[str]:
        """Of the Pod's events, in order."""
        return [one["reason"] for one in self.events(pod)]

    def peer_pods(self) -> list[dict[str, Any]]:
        return list(self.do("listed", resource="peerpods"))

    def capacity(self, node: str) -> dict[str, str]:
        """Of a node."""
        (found,) = [one for one in self.do("listed", resource="nodes") if one["metadata"]["name"] == node]
        return dict(found.get("status", {}).get("capacity", {}))


def eventually(look: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """What is seen once it is as wanted; the service works beside its answers."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not wanted(seen := look()):
        assert time.monotonic() < deadline, f"after {PATIENCE_SECONDS:g} s it is {seen}"
        time.sleep(0.02)
    return seen
