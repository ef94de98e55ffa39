"""What the worker's own metadata says, from a real HTTP server."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from providers.aws.metadata import WorkerMetadata
from providers.aws.settings import AwsKeys
from providers.base import UnavailableError
from providers.keys import read_keys
from tests.clouds.imds import Metadata, serve_metadata


@pytest.fixture
def server() -> Iterator[Metadata]:
    with serve_metadata() as running:
        yield running


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
