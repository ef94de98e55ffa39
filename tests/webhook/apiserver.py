"""As much of an API server as the webhook speaks to: objects by path, resourceVersion, 409. No watches, no RBAC."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/caa-webhook"
SECRETS = "/api/v1/namespaces/peerpods/secrets"
SECRET = f"{SECRETS}/caa-webhook-tls"


class ApiServer(ThreadingHTTPServer):
    """`objects` by path; `calls` as (verb, path); `conflicts` is how many writes are still refused."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        webhook = {
            "name": "pods.peerpods.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"service": {"name": "caa-webhook", "namespace": "peerpods"}},
        }
        metadata = {"name": "caa-webhook", "resourceVersion": "1"}
        self.objects: dict[str, Any] = {CONFIGURATION: {"metadata": metadata, "webhooks": [webhook]}}
        self.calls: list[tuple[str, str]] = []
        self.conflicts = 0
        self.url = f"http://127.0.0.1:{self.server_port}"

    def kubeconfig(self) -> dict[str, Any]:
        """What a client of it is configured by."""
        return {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "peerpods"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {}}],
        }


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        self.server.calls.append(("get", self.path))
        found = self.server.objects.get(self.path)
        self._send(200, found) if found else self._refuse(404, "NotFound")

    def do_POST(self) -> None:
        sent = self._body("create")
        path = f"{self.path}/{sent['metadata']['name']}"
        self._refuse(409, "AlreadyExists") if path in self.server.objects else self._store(path, sent, "0")

    def do_PUT(self) -> None:
        sent = self._body("update")
        version = self.server.objects[self.path]["metadata"]["resourceVersion"]
        if self.server.conflicts or sent["metadata"].get("resourceVersion") != version:
            self.server.conflicts -= self.server.conflicts > 0
            self._refuse(409, "Conflict")
        else:
            self._store(self.path, sent, version)

    def _body(self, verb: str) -> Any:
        self.server.calls.append((verb, self.path))
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _store(self, path: str, value: Any, version: str) -> None:
        value["metadata"]["resourceVersion"] = str(int(version) + 1)
        self.server.objects[path] = value
        self._send(200, value)

    def _refuse(self, code: int, reason: str) -> None:
        self._send(code, {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": reason})

    def _send(self, code: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def api_server() -> Iterator[ApiServer]:
    """One that answers inside."""
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
