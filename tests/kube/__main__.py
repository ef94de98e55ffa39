"""The API server's stand-in as a process: `python -m tests.kube`. Ends when its standard input does.

One port, plain HTTP with a bearer token; `/_control/` is for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.clouds.process import end_with_parent
from tests.kube.objects import Objects, Refusal

TOKEN = "token-of-a-service-account"
_PATH = re.compile(
    r"/(?P<api>api/v1|apis/confidentialcontainers\.org/v1alpha1)(/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(/(?P<name>[^/]+))?(/(?P<sub>status))?"
)
_VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}


class ApiServer:
    """Behind one lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answering = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.objects = Objects()
        self.calls: list[dict[str, Any]] = []
        self.refusing: list[dict[str, Any]] = []
        self.down = False
        self.answering.set()

    # Control verbs

    def set_down(self, down: bool) -> None:
        """Whether every connection is reset."""
        self.down = down

    def set_silent(self, silent: bool) -> None:
        """Whether no call is answered; when it ends, those that wait are."""
        if silent:
            self.answering.clear()
        else:
            self.answering.set()

    def refuse(self, code: int, resource: str, times: int) -> None:
        """Answer the next `times` calls about a resource ("" is any) with this code."""
        self.refusing.append({"code": code, "resource": resource, "times": times})

    def namespace(self, name: str) -> None:
        self.objects.namespaces.add(name)

    def without(self, kind: str) -> None:
        """The kind's definition is not installed."""
        self.objects.kinds.discard(kind)

    def add(self, resource: str, namespace: str, body: dict[str, Any]) -> Any:
        return self.objects.create(resource, namespace, body)

    def set_status(self, resource: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """The whole status, as its owner writes it."""
        self.objects.get(resource, namespace, name)["status"] = status

    def remove(self, resource: str, namespace: str, name: str) -> None:
        self.objects.delete(resource, namespace, name)

    def listed(self, resource: str) -> Any:
        return self.objects.list(resource, "", {})

    def called(self) -> Any:
        return self.calls

    # The API

    def answer(self, method: str, url: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        parts = urlsplit(url)
        if parts.path.startswith("/_control/"):
            with self.lock:
                return 200, getattr(self, parts.path.removeprefix("/_control/"))(**(body or {}))
        self.answering.wait()
        with self.lock:
            try:
                return self._answer(method, parts.path, parts.query, headers, body)
            except Refusal as refusal:
                return refusal.code, refusal.status

    def _answer(self, method: str, path: str, query: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        if headers.get("authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized", "Unauthorized")
        match = _PATH.fullmatch(path)
        if match is None:
            raise Refusal(404, "NotFound", f"no such path: {path}")
        resource, namespace, name = match["resource"], match["namespace"] or "", match["name"] or ""
        verb = "list" if method == "GET" and not name else _VERBS[method]
        full = resource + (f"/{match['sub']}" if match["sub"] else "")
        self.calls.append(
            {"verb": verb, "resource": full, "namespace": namespace, "name": name, "at": time.monotonic()}
        )
        for rule in self.refusing:
            if rule["times"] > 0 and rule["resource"] in ("", resource):
                rule["times"] -= 1
                raise Refusal(rule["code"], "Refused", f"the test refuses {verb} {resource}")
        match verb:
            case "create":
                return 201, self.objects.create(resource, namespace, body)
            case "list":
                selector = parse_qs(query).get("labelSelector", [""])[0]
                labels = dict(part.split("=", 1) for part in selector.replace("==", "=").split(",") if part)
                items = self.objects.list(resource, namespace, labels)
                return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
            case "patch":
                assert headers["content-type"] == "application/merge-patch+json", headers
                return 200, self.objects.patch(resource, namespace, name, body, status=bool(match["sub"]))
            case "delete":
                return 200, self.objects.delete(resource, namespace, name)
        return 200, self.objects.get(resource, namespace, name)


def _handler(api: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if api.down and not self.path.startswith("/_control/"):
                # With this the close is a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            headers = {key.lower(): value for key, value in self.headers.items()}
            status, result = api.answer(self.command, self.path, headers, body)
            data = json.dumps(result).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, required=True)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(ApiServer()))
    server.daemon_threads = True
    end_with_parent()
    os.write(args.ready_fd, f"{server.server_address[1]}\n".encode())
    os.close(args.ready_fd)
    server.serve_forever()


if __name__ == "__main__":
    main()
