"""User data from a metadata service, over real HTTP on loopback."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caa.guest.imds import ALIBABA, AWS, AZURE, CLOUDS, GCP, Cloud, detect, fetch
from caa.guest.userdata import MAX_BYTES
from caa.guest.writefiles import UserDataError

TEXT = b"#cloud-config\n"


class Service(ThreadingHTTPServer):
    """Answers each path with what is in `answers`, and notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, bytes]]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server_port


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        answers = self.server.answers.get(self.path, [(404, b"not here")])
        status, body = answers[0] if len(answers) == 1 else answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.name)
def test_the_firmware_says_which_cloud_it_is(tmp_path: Path, cloud: Cloud) -> None:
    assert detect(tmp_path) is None
    (tmp_path / "sys_vendor").write_text("QEMU\n")
    assert detect(tmp_path) is None
    (tmp_path / cloud.dmi_file).write_text(f"{cloud.dmi_value}\n")
    assert detect(tmp_path) is cloud


def test_on_ec2_a_token_is_got_first(service: Service) -> None:
    service.answers = {"/latest/api/token": [(200, b"session")], "/latest/user-data": [(200, TEXT)]}
    assert fetch(AWS, 0, service.address) == TEXT
    [(put, _, first), (get, _, second)] = service.asked
    assert (put, get) == ("PUT", "GET")
    assert first["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
    assert second["X-aws-ec2-metadata-token"] == "session"


def test_without_tokens_the_older_way_is_used(service: Service) -> None:
    service.answers = {"/latest/user-data": [(200, TEXT)]}
    assert fetch(AWS, 0, service.address) == TEXT
    assert "X-aws-ec2-metadata-token" not in service.asked[-1][2]


@pytest.mark.parametrize(
    ("cloud", "path", "header"),
    [
        (AZURE, "/metadata/instance/compute/userData?api-version=2021-01-01&format=text", ("Metadata", "true")),
        (GCP, "/computeMetadata/v1/instance/attributes/user-data", ("Metadata-Flavor", "Google")),
        (ALIBABA, "/latest/user-data", None),
    ],
    ids=["Azure", "GCP", "Alibaba"],
)
def test_each_cloud_is_asked_in_its_own_way(
    service: Service, cloud: Cloud, path: str, header: tuple[str, str] | None
) -> None:
    service.answers = {path: [(200, base64.encodebytes(TEXT * 9) if cloud.is_base64 else TEXT * 9)]}
    assert fetch(cloud, 0, service.address) == TEXT * 9
    [(_, _, headers)] = service.asked
    assert header is None or headers[header[0]] == header[1]


def test_what_is_not_there_yet_is_asked_for_again(service: Service) -> None:
    later = [(404, b""), (503, b""), (200, b""), (200, b"%%%"), (200, base64.b64encode(TEXT))]
    service.answers = {AZURE.path: later}
    assert fetch(AZURE, 30, service.address) == TEXT
    assert len(service.asked) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [((404, b"secret"), "answered with 404"), ((200, b" \n"), "it is empty"), ((200, b"%"), "it is not base64")],
)
def test_what_never_comes_is_told_with_the_last_answer(service: Service, answer: tuple[int, bytes], said: str) -> None:
    service.answers = {AZURE.path: [answer]}
    with pytest.raises(UserDataError) as caught:
        fetch(AZURE, 0, service.address)
    assert str(caught.value).startswith("no user data from Azure at 127.0.0.1 after 0 s: ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_nobody_there_is_told() -> None:
    with pytest.raises(UserDataError, match="Connection refused"):
        fetch(ALIBABA, 0, ("127.0.0.1", 1))


def test_no_more_is_read_than_user_data_may_have(service: Service) -> None:
    service.answers = {"/latest/user-data": [(200, b"#" * (2 * MAX_BYTES))]}
    assert MAX_BYTES < len(fetch(ALIBABA, 0, service.address)) < 2 * MAX_BYTES
