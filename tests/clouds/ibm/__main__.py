"""The emulated IBM Cloud as a process: `python -m tests.clouds.ibm`. Ends when its standard input does.

Two ports: the cloud's APIs over TLS, and in plain HTTP the control verbs and the worker's instance metadata.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import threading
import time
import traceback
import uuid
from typing import Any
from urllib.parse import urlsplit

from tests.clouds.ibm.api import Answer, Api, first_values
from tests.clouds.ibm.control import Control
from tests.clouds.ibm.errors import ApiError
from tests.clouds.ibm.names import name_of
from tests.clouds.ibm.objectstorage import PREFIX, unchunked
from tests.clouds.process import end_with_parent
from tests.clouds.serving import Server

CONTROL_PREFIX = "/_control/"
# How often a caller that waits for guests has a look, and how long it may wait in one call.
_WATCH_SECONDS, _MAX_WAIT_SECONDS = 0.01, 30.0


class Emulator:
    """Everything behind both ports, behind one lock."""

    def __init__(self, region: str) -> None:
        self.api = Api(region)
        self.control = Control(self.api)
        self.lock = threading.Lock()

    def answer_cloud(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """One request of the cloud's APIs."""
        parts = urlsplit(url)
        with self.lock:
            self.api.settle()
            if parts.path.startswith(PREFIX):
                query = first_values(parts.query)
                if "aws-chunked" in headers.get("content-encoding", ""):
                    body = unchunked(body)
                found = self.api.buckets.handle(method, parts.path.removeprefix(PREFIX), query, body)
                return found.status, found.headers, found.body
            trace, name = str(uuid.uuid4()), name_of(method, url)
            extra = {"X-Request-Id": trace}
            try:
                self.api.conditions.admit(name)
                status, result = self._cloud(method, parts.path, parts.query, headers, body)
                self.api.settle()
            except Exception as error:
                refusal = error if isinstance(error, ApiError) else _broken()
                status, result = refusal.status, refusal.body(trace)
                extra |= refusal.headers
                self.api.conditions.errors[f"{name} {refusal.code}"] += 1
            return status, extra | {"Content-Type": "application/json"}, _json(result)

    def _cloud(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        token = headers.get("authorization", "")
        if path == "/identity/token":
            return self.api.token(first_values(body.decode()))
        asked = json.loads(body) if body else None
        if path == "/v3/tags/attach":
            return self.api.tag(asked, token)
        if not path.startswith("/v1/"):
            raise ApiError(404, "invalid_route", "The requested route does not exist")
        return self.api.vpc(method, path.removeprefix("/v1"), first_values(query), asked, token)

    def answer_control(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """A control verb, or the worker's metadata."""
        path = urlsplit(url).path
        kind = {"Content-Type": "application/json"}
        if not path.startswith(CONTROL_PREFIX):
            with self.lock:
                status, result = self.api.metadata(method, path, headers)
            return status, kind, _json(result)
        name = path.removeprefix(CONTROL_PREFIX)
        arguments = json.loads(body) if body else {}
        try:
            answer = self._watch(**arguments) if name == "watch" else self._do(name, arguments)
            return 200, kind, answer
        except Exception as error:
            traceback.print_exc()
            return 400, kind, _json({"error": f"{type(error).__name__}: {error}"})

    def _do(self, name: str, arguments: dict[str, Any]) -> bytes:
        verb = self.control.verb(name)
        if verb is None:
            raise ValueError(f"no control verb {name!r}")
        with self.lock:
            self.api.settle()
            result = verb(**arguments)
            self.api.settle()
            return json.dumps(result).encode()

    def _watch(self, version: int, seconds: float) -> bytes:
        """`guests`, once its version is another than the one given or the time is up."""
        deadline = time.monotonic() + min(seconds, _MAX_WAIT_SECONDS)
        while True:
            with self.lock:
                self.api.settle()
                if self.api.region.version != version or time.monotonic() >= deadline:
                    return json.dumps(self.control.guests()).encode()
            time.sleep(_WATCH_SECONDS)


def _broken() -> ApiError:
    """For a defect of the emulator itself, which a test that fails wants to see."""
    traceback.print_exc()
    return ApiError(500, "internal_error", "An unexpected error occurred")


def _json(result: Any) -> bytes:
    return b"" if result is None else json.dumps(result).encode()


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", required=True, help="certificate and key, PEM")
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--region", default="us-south")
    arguments = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(arguments.pair)
    emulator = Emulator(arguments.region)
    cloud, control = Server(emulator.answer_cloud, context), Server(emulator.answer_control)
    emulator.api.region.base = f"https://localhost:{cloud.server_port}/v1"
    end_with_parent()
    threading.Thread(target=control.serve_forever, daemon=True).start()
    with os.fdopen(arguments.ready_fd, "w") as ready:
        ready.write(f"{cloud.server_port} {control.server_port}\n")
    cloud.serve_forever()


if __name__ == "__main__":
    main()
