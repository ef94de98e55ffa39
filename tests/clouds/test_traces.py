"""Traces of starts, as a real collector over HTTP gets them."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from caa.sizing import MACHINE_TYPE
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import CLUSTER, NODE, pod_service
from tests.lab.service import ServiceProcess, new_id

# The library sends every five seconds; a loaded machine takes its time.
SENT_SECONDS = 60.0
SECRET = "a-secret-in-no-trace"
STATUS_ERROR = 2


class Collector:
    """What came, as bytes and as spans."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def spans(self) -> list[dict[str, Any]]:
        """All of them, in no order."""
        return [
            {
                "name": span.name,
                "trace": span.trace_id,
                "id": span.span_id,
                "parent": span.parent_span_id,
                "begin": span.start_time_unix_nano,
                "end": span.end_time_unix_nano,
                "failed": span.status.code == STATUS_ERROR,
                "told": span.status.message,
                "events": [event.name for event in span.events],
                "resource": attributes(resource.resource.attributes),
                **attributes(span.attributes),
            }
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def trace(self, sandbox_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The one trace of a sandbox: its root, and all below it by when they began."""
        deadline = time.monotonic() + SENT_SECONDS
        while True:
            spans = self.spans()
            roots = [span for span in spans if span.get("caa.sandbox.id") == sandbox_id]
            if roots:
                (root,) = roots
                below = [span for span in spans if span["trace"] == root["trace"] and span is not root]
                return root, sorted(below, key=lambda span: (span["begin"], span["end"]))
            assert time.monotonic() < deadline, f"no trace of {sandbox_id} came"
            time.sleep(0.1)


def attributes(given: Any) -> dict[str, Any]:
    """Each with the value of its kind."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in given}


def at(event: dict[str, Any]) -> int:
    """When an event of the trail was, in nanoseconds as spans have it."""
    return int(datetime.fromisoformat(event["at"]).timestamp() * 1_000_000) * 1000


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on loopback."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append(dict(self.headers))
            collector.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            server.shutdown()


def start(service: ServiceProcess, pod: str, annotations: dict[str, str] | None = None) -> tuple[str, int]:
    """A sandbox and the status of the answer to its start."""
    sandbox_id = new_id()
    service.create(sandbox_id, pod, annotations)
    return sandbox_id, service.begin_start(sandbox_id).status_code


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_a_start_is_one_trace_with_its_phases_and_a_refused_offering(
    account: Account, proxy: FaultProxy, collector: Collector
) -> None:
    (first, *_) = account.seed.subnets
    account.emulator.capacity({"zone": first})
    keys = {
        "CAA_TRACES_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "CAA_LOG_FORMAT": "json",
    }
    with pod_service(account, proxy.url, **keys) as service:
        ran, status = start(service, "web")
        assert status == 200
        failed, status = start(service, "wrong", {MACHINE_TYPE: "x9.huge"})
        assert status >= 400
        root, below = collector.trace(ran)
        assert root["name"] == "StartVM"
        assert (root["k8s.namespace.name"], root["k8s.pod.name"], root["cloud.provider"]) == ("default", "web", "aws")
        assert root["resource"]["k8s.node.name"] == NODE
        assert root["resource"]["k8s.cluster.name"] == CLUSTER
        assert not root["failed"]
        assert root["events"][0] == "StartRequested"
        assert root["events"][-1] == "Running"
        # Phase by phase without a gap, but for the tunnel, which is built beside others.
        names = [span["name"] for span in below]
        assert names == ["choose", "launch", "choose", "launch", "address", "boot", "agent"]
        assert {span["parent"] for span in below} == {root["id"]}
        assert below[0]["begin"] == root["begin"]
        assert all(one["end"] == next_one["begin"] for one, next_one in itertools.pairwise(below))
        # The agent answered when the trail says so; then the start was recorded, and over.
        told = {event["kind"]: event for event in service.events(ran)}
        answered = at(told["AddressKnown"]) + round(told["Running"]["data"]["agent_seconds"] * 1e9)
        assert abs(below[-1]["end"] - min(answered, root["end"])) < 1_000_000
        assert root["end"] == at(told["Running"])
        refused, accepted = (span for span in below if span["name"] == "launch")
        assert (refused["failed"], refused["caa.zone"]) == (True, first)
        assert refused["caa.outcome"] == "InsufficientInstanceCapacity"
        assert (accepted["failed"], accepted["caa.outcome"], accepted["caa.attempt"]) == (False, "accepted", 2)
        root, below = collector.trace(failed)
        assert root["failed"]
        assert root["told"].startswith("NoInstanceType: ")
        assert root["caa.reason"] == "NoInstanceType"
        assert {headers["x-tenant"] for headers in collector.headers} == {"blue"}
        sent = b"".join(collector.bodies)
        assert SECRET.encode() not in sent
        assert b"PRIVATE KEY" not in sent
        assert b"write_files" not in sent
        service.stop()  # so no line of the log is half written
        # The log tells the same events, each line with the whole id of its sandbox.
        lines = [json.loads(line) for line in service.log_file.read_text().splitlines()]
        for sandbox_id, word in ((ran, "Running: "), (failed, "NoInstanceType: ")):
            assert any(line["message"].startswith(word) and line["sandbox"] == sandbox_id for line in lines)
            name = f"podvm-{'web' if sandbox_id == ran else 'wrong'}-{sandbox_id[:8]}"
            assert {line.get("sandbox") for line in lines if name in line["message"]} <= {sandbox_id}


def test_a_collector_that_is_not_there_holds_up_nothing_and_is_told_of_once(
    account: Account, proxy: FaultProxy
) -> None:
    with pod_service(account, proxy.url, CAA_TRACES_ENDPOINT="http://127.0.0.1:9/v1/traces") as service:
        for number in range(2):
            assert start(service, f"web-{number}")[1] == 200
        deadline = time.monotonic() + SENT_SECONDS
        while "does not take traces" not in service.log_file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        service.stop()
        log = service.log_file.read_text()
    assert log.count("CAA_TRACES_ENDPOINT: http://127.0.0.1:9/v1/traces does not take traces") == 1
    assert "Traceback" not in log


def test_a_collector_that_never_answers_holds_up_neither_starts_nor_the_services_end(
    account: Account, proxy: FaultProxy
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/traces?token={SECRET}"
        with pod_service(account, proxy.url, CAA_TRACES_ENDPOINT=url) as service:
            assert start(service, "web")[1] == 200
            # The trace is on its way, and stays there.
            listening.settimeout(SENT_SECONDS)
            connection, _ = listening.accept()
            with connection:
                assert start(service, "shop")[1] == 200
                service.stop()
            log = service.log_file.read_text()
    assert SECRET not in log
    assert "Traceback" not in log
