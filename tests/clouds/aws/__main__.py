"""The emulated EC2 as a process: `python -m tests.clouds.aws`. Ends when its standard input does."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs

# Read by moto when it is imported. Its own images would cost a second and answer to names nobody seeded.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"
os.environ["MOTO_ENABLE_AMI_VALIDATION"] = "1"
os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "1"

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from tests.clouds.aws import quotas
from tests.clouds.aws.conditions import Conditions
from tests.clouds.aws.control import Control
from tests.clouds.aws.ebs import EbsError
from tests.clouds.aws.errors import Ec2Error
from tests.clouds.aws.instance import EmulatedInstance
from tests.clouds.aws.overlay import Overlay
from tests.clouds.process import end_with_parent

CONTROL_PREFIX = "/_control/"
# How often a caller that waits for guests has a look, and how long it may wait in one call.
_WATCH_SECONDS, _MAX_WAIT_SECONDS = 0.01, 30.0
_CODE = re.compile(rb"<Code>([^<]+)</Code>")
StartResponse = Any


class Application:
    """WSGI: moto behind one lock (it is not thread-safe), with admission, counters and the control verbs."""

    def __init__(self, region: str) -> None:
        self._conditions = Conditions()
        self._overlay = Overlay(self._conditions)
        self._overlay.install()
        self._control = Control(self._conditions, self._overlay, region)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._counting = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        path = environ.get("PATH_INFO", "")
        if path.startswith(CONTROL_PREFIX):
            return self._answer_control(path.removeprefix(CONTROL_PREFIX), body, start_response)
        if environ.get("HTTP_X_AMZ_TARGET") == quotas.TARGET:
            answer = quotas.answer(body, self._conditions.vcpu_quota)
            start_response(
                "200 OK", [("Content-Type", "application/x-amz-json-1.1"), ("Content-Length", str(len(answer)))]
            )
            return [answer]
        environ["wsgi.input"] = io.BytesIO(body)
        ebs = self._overlay.ebs
        block = path.startswith("/snapshots/")
        with self._counting:
            ebs.in_flight += block
            ebs.most_in_flight = max(ebs.most_in_flight, ebs.in_flight)
        try:
            with self._lock:
                return self._answer_cloud(environ, body, start_response)
        finally:
            with self._counting:
                ebs.in_flight -= block

    def _answer_cloud(self, environ: dict[str, Any], body: bytes, start_response: StartResponse) -> list[bytes]:
        action = _action(environ, body)
        EmulatedInstance.settle()
        started: list[Any] = []
        try:
            self._conditions.admit(action)
            answer = b"".join(self._moto(environ, lambda *given: started.extend(given)))
        except Ec2Error as error:
            started, answer = _error_head(error), error.body
        except EbsError as error:
            started, answer = [f"{error.code} {error.name}", error.get_headers()], error.get_body().encode()
        except NotImplementedError as error:
            failure = Ec2Error("UnsupportedOperation", f"not emulated: {error}")
            started, answer = _error_head(failure), failure.body
        except Exception:
            traceback.print_exc()
            failure = Ec2Error("InternalError", "An internal error has occurred")
            started, answer = _error_head(failure), failure.body
        status, headers = started[0], started[1]
        if not status.startswith("2"):
            code = _CODE.search(answer)
            self._conditions.errors[f"{action} {code[1].decode() if code else status}"] += 1
        start_response(status, headers)
        return [answer]

    def _answer_control(self, name: str, body: bytes, start_response: StartResponse) -> list[bytes]:
        arguments = json.loads(body) if body else {}
        try:
            result = self._watch(**arguments) if name == "watch" else self._do(name, arguments)
        except Exception as error:
            traceback.print_exc()
            status, result = "400 Bad Request", {"error": f"{type(error).__name__}: {error}"}
        else:
            status = "200 OK"
        answer = json.dumps(result).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]

    def _do(self, name: str, arguments: dict[str, Any]) -> Any:
        verb = self._control.verb(name)
        if verb is None:
            raise ValueError(f"no control verb {name!r}")
        with self._lock:
            EmulatedInstance.settle()
            result = verb(**arguments)
            EmulatedInstance.settle()
            return result

    def _watch(self, version: int, seconds: float) -> Any:
        """`guests`, once its version is another than the one given or the time is up."""
        deadline = time.monotonic() + min(seconds, _MAX_WAIT_SECONDS)
        while True:
            with self._lock:
                EmulatedInstance.settle()
                if EmulatedInstance.version != version or time.monotonic() >= deadline:
                    return self._control.guests()
            time.sleep(_WATCH_SECONDS)


def _action(environ: dict[str, Any], body: bytes) -> str:
    """Of the query protocol; of another API method and path, without what is different in each call."""
    path = environ.get("PATH_INFO", "")
    if path.startswith("/snapshots"):
        method = environ["REQUEST_METHOD"]
        return {"PUT": "PutSnapshotBlock", "GET": "ListSnapshotBlocks"}.get(
            method, "CompleteSnapshot" if path.startswith("/snapshots/completion/") else "StartSnapshot"
        )
    return parse_qs(body.decode("utf-8", "replace")).get("Action", ["-"])[0]


def _error_head(error: Ec2Error) -> list[Any]:
    headers = [("Content-Type", "text/xml;charset=UTF-8"), ("Content-Length", str(len(error.body)))]
    return [f"{error.code} {error.name}", headers]


class _QuietHandler(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A test that fails wants the tracebacks only."""


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--region", default="us-east-1")
    arguments = parser.parse_args()
    server = make_server(
        "127.0.0.1", arguments.port, Application(arguments.region), threaded=True, request_handler=_QuietHandler
    )
    end_with_parent()
    with os.fdopen(arguments.ready_fd, "w") as ready:
        ready.write(f"{server.server_port}\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
