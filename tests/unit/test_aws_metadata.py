"""What the worker's own metadata says, from a real HTTP server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from providers.aws.metadata import WorkerMetadata
from providers.aws.settings import AwsKeys
from providers.base import UnavailableError
from providers.keys import read_keys

MAC = "0e:00:00:00:00:01"
VALUES = {
    "placement/region": "eu-west-1",
    "mac": MAC,
    f"network/interfaces/macs/{MAC}/subnet-id": "subnet-9",
    f"network/interfaces/macs/{MAC}/security-group-ids": "sg-8\nsg-9",
    "public-keys/": "0=ops\n1=other",
}


class Metadata(ThreadingHTTPServer):
    """IMDSv2: a token by PUT, values by GET with it."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = values
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Metadata
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        asked = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        self.answer(200 if self.path == "/latest/api/token" and asked.isdigit() else 400, "session")

    def do_GET(self) -> None:
        path = self.path.removeprefix("/latest/meta-data/")
        self.server.asked.append(path)
        if self.headers.get("X-aws-ec2-metadata-token") != "session":
            self.answer(401, "")
        elif path in self.server.values:
            self.answer(200, self.server.values[path])
        else:
            self.answer(404, "not found")

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Metadata]:
    with Metadata(dict(VALUES)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def worker(port: int, **environ: str) -> WorkerMetadata:
    endpoint = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{port}/"}
    return WorkerMetadata(read_keys(AwsKeys, {"PODVM_AMI_ID": "ami-1"} | endpoint | environ))


def test_the_workers_place_is_read(server: Metadata) -> None:
    node = worker(server.server_port)
    assert node.region() == "eu-west-1"
    assert node.subnet() == "subnet-9"
    assert node.security_groups() == ("sg-8", "sg-9")
    assert node.key_pair() == "ops"


def test_each_value_is_read_once(server: Metadata) -> None:
    node = worker(server.server_port)
    for _ in range(3):
        node.subnet()
        node.security_groups()
        node.key_pair()
    assert len(server.asked) == len(set(server.asked)) == 4


def test_a_worker_without_key_pair_has_none(server: Metadata) -> None:
    del server.values["public-keys/"]
    assert worker(server.server_port).key_pair() == ""


def test_a_value_that_is_missing_names_the_key_to_set(server: Metadata) -> None:
    server.values.clear()
    with pytest.raises(UnavailableError, match=r"AWS_SG_IDS is not set.*set AWS_SG_IDS"):
        worker(server.server_port).security_groups()


def test_without_metadata_the_key_to_set_is_named_and_no_key_pair_needed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        node = worker(taken.getsockname()[1])
        with pytest.raises(UnavailableError, match=r"AWS_REGION is not set.*set AWS_REGION"):
            node.region()
        assert node.key_pair() == ""


def test_a_silent_metadata_service_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("providers.aws.metadata.TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnavailableError, match="timed out"):
        worker(silent.getsockname()[1]).subnet()


def test_disabled_metadata_is_never_asked(server: Metadata) -> None:
    with pytest.raises(UnavailableError, match="AWS_EC2_METADATA_DISABLED is true"):
        worker(server.server_port, AWS_EC2_METADATA_DISABLED="true").region()
    assert server.asked == []
