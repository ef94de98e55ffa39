"""The API server's stand-in as a test sees it."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from caa.webhook.certificates import renewed
from tests.clouds.process import ServerProcess
from tests.kube.server import TOKEN

T = TypeVar("T")
# Longer than any wait for a second try; what is waited for takes milliseconds otherwise.
PATIENCE_SECONDS = 90.0


class KubeApiServer:
    """Context manager: the process runs inside it. `tls` is for HTTPS, with a CA of its own as every cluster has it."""

    def __init__(self, *, tls: bool = False) -> None:
        self._tls = tls

    def __enter__(self) -> KubeApiServer:
        self._directory = tempfile.TemporaryDirectory(prefix="kube-")
        self._authority, pair = (Path(self._directory.name) / name for name in ("ca.crt", "tls.pem"))
        if self._tls:
            pki = renewed(None, "localhost", datetime.now(UTC))
            self._authority.write_text(pki.ca_bundle)
            pair.write_text(pki.certificate + pki.key)
        self._server = ServerProcess("tests.kube", ["--certificate", str(pair)] if self._tls else []).__enter__()
        place = "https://localhost" if self._tls else "http://127.0.0.1"
        self.url = f"{place}:{int(self._server.ready_line)}"
        self._http = httpx.Client(base_url=self.url, trust_env=False, verify=False, timeout=PATIENCE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._directory.cleanup()
        self._server.__exit__(kind, value, trace)

    def kubeconfig(self) -> Path:
        """What a client is configured by: for KUBECONFIG."""
        cluster = {"server": self.url}
        if self._tls:
            cluster["certificate-authority"] = str(self._authority)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "one", "cluster": cluster}],
            "users": [{"name": "caa", "user": {"token": TOKEN}}],
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "caa"}}],
            "current-context": "one",
        }
        file = Path(self._directory.name) / "config"
        file.write_text(json.dumps(config))
        return file

    def environ(self) -> dict[str, str]:
        """What leads a service here."""
        return {"KUBECONFIG": str(self.kubeconfig()), "CAA_KUBERNETES": "true"}

    @contextlib.contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Speaks to the API by path, as whoever has the token."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(
            base_url=self.url, headers=headers, trust_env=False, verify=False, timeout=PATIENCE_SECONDS
        ) as client:
            yield client

    # What tests do and see

    def do(self, verb: str, /, **arguments: Any) -> Any:
        """A control verb of `tests.kube.server.ApiServer`."""
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
