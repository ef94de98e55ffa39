"""`caa image build` from a web server: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

from tests.images.conftest import Build
from tests.lab.fileserver import FileServer
from tests.lab.smalldisk import MIB, convert


def source(server: FileServer, digest: str = "") -> str:
    return f"{server.url}#sha256={digest or hashlib.sha256(server.content).hexdigest()}"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_is_fetched_and_checked(build: Build, disk: Path, output: Path, tmp_path: Path, kind: str) -> None:
    with FileServer(convert(disk, kind, tmp_path / "served").read_bytes()) as server:
        done = build(source(server))
    assert done.code == 0
    assert output.read_bytes() == disk.read_bytes()
    assert server.asked == [""]


def test_a_broken_connection_is_resumed_where_it_broke(build: Build, disk: Path, output: Path) -> None:
    with FileServer(disk.read_bytes(), cuts=[5 * MIB, 3 * MIB]) as server:
        assert build(source(server)).code == 0
    assert output.read_bytes() == disk.read_bytes()
    assert server.asked == ["", f"bytes={5 * MIB}-", f"bytes={8 * MIB}-"]


def test_a_server_that_cannot_begin_in_the_middle_is_read_again_from_the_start(
    build: Build, disk: Path, output: Path
) -> None:
    with FileServer(disk.read_bytes(), cuts=[5 * MIB], ranges=False) as server:
        assert build(source(server)).code == 0
    assert output.read_bytes() == disk.read_bytes()


def test_a_server_that_is_overloaded_is_asked_again(build: Build, disk: Path) -> None:
    with FileServer(disk.read_bytes(), statuses=[503]) as server:
        assert build(source(server)).code == 0
    assert len(server.asked) == 2


def test_a_redirection_is_followed_and_a_size_need_not_be_told(build: Build, disk: Path) -> None:
    with FileServer(disk.read_bytes(), sized=False) as server, FileServer(b"", redirect_to=server.url) as first:
        assert build(f"{first.url}#sha256={hashlib.sha256(disk.read_bytes()).hexdigest()}").code == 0


def test_another_content_is_refused_with_both_digests(build: Build, disk: Path) -> None:
    with FileServer(disk.read_bytes()) as server:
        done = build(source(server, "0" * 64))
    found = hashlib.sha256(disk.read_bytes()).hexdigest()
    assert f"{server.url} has the sha256 {found}, and not {'0' * 64} as it should" in done.stderr


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "does not exist: the server answered 404"),
        (403, "may not be read: the server answered 403"),
        (400, "cannot be read: the server answered 400"),
    ],
)
def test_a_refusal_is_told_at_once(build: Build, status: int, words: str) -> None:
    with FileServer(b"", statuses=[status]) as server:
        assert f"{server.url} {words}" in build(source(server)).stderr
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_told_after_a_few_tries(build: Build) -> None:
    with socket.socket() as taken:  # by us, so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = build(f"http://127.0.0.1:{port}/disk#sha256={'0' * 64}")
    assert f"http://127.0.0.1:{port}/disk cannot be read: " in done.stderr
    assert "(tried 4 times)" in done.stderr


def test_a_size_that_cannot_be_right_is_refused_before_a_byte_is_written(build: Build, disk: Path) -> None:
    with FileServer(disk.read_bytes(), claimed=1 << 40) as server:
        assert "has 1024 GiB or more; allowed: up to 32 GiB" in build(source(server)).stderr
