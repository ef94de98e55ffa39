"""Who may reach the REST interface, and what happens when its addresses cannot be had."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from caa.api.rest.server import RestServer
from providers.base import ConfigError
from tests.lab.ports import held_port
from tests.wire.rest_service import Service, serving, settings_in


def token_file(directory: Path, mode: int = 0o600) -> Path:
    path = directory / "token"
    path.write_text(secrets.token_urlsafe(32) + "\n")
    path.chmod(mode)
    return path


def bearer(path: Path) -> dict[str, str]:
    return {"Authorization": f"Bearer {path.read_text().strip()}"}


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.crt"
        self.file.write_bytes(self._sign(self._name, self._key, is_ca=True))

    def issue(self, name: str, password: bytes | None = None) -> tuple[str, str]:
        """Certificate and key files for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, key_file = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        certificate.write_bytes(self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key))
        hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
        return str(certificate), str(key_file)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_ca: bool = False) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def refused(directory: Path, **keys: str) -> str:
    """What a service that cannot start says."""

    async def start() -> None:
        await RestServer(_nothing, settings_in(directory, **keys)).start()

    with pytest.raises(ConfigError) as error:
        asyncio.run(start())
    return str(error.value)


async def _nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody is to be served")


# The unix socket


def test_the_socket_is_for_root_only(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as service:
        assert stat.S_IMODE(os.stat(service.socket).st_mode) == 0o600


def test_a_socket_left_by_a_killed_service_is_replaced(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    settings.api_socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(settings.api_socket))
        left_over.listen()
    with serving(settings) as service, service.client() as http:
        assert http.get("/livez").status_code == 200


def test_a_socket_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with serving(settings) as service, service.client() as http:
        said = refused(tmp_path)
        assert said == f"CAA_API_SOCKET: {str(settings.api_socket)!r} is in use: another process listens there."
        assert http.get("/livez").status_code == 200


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("mine")
    assert "is no socket" in refused(tmp_path, CAA_API_SOCKET=str(path))
    assert path.read_text() == "mine"


def test_the_socket_file_goes_when_the_service_does_unless_it_is_anothers(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path)) as service:
        path = Path(service.socket)
    assert not path.exists()
    with serving(settings_in(tmp_path)):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_signals_stay_the_services_own(tmp_path: Path) -> None:
    async def run() -> None:
        server = RestServer(_nothing, settings_in(tmp_path))
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        await server.start()
        await asyncio.sleep(0)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        await server.stop()

    asyncio.run(run())


# TCP with a token


@pytest.fixture
def with_token(tmp_path: Path) -> Iterator[tuple[Service, Path]]:
    token = token_file(tmp_path)
    settings = settings_in(tmp_path, CAA_API_LISTEN=f"127.0.0.1:{held_port()}", CAA_API_TOKEN_FILE=str(token))
    with serving(settings) as service:
        yield service, token


def test_only_the_token_lets_in(with_token: tuple[Service, Path]) -> None:
    service, token = with_token
    url = f"{service.tcp_url}/v1/sandboxes"
    assert httpx.get(url, headers=bearer(token)).status_code == 200
    right = token.read_text().strip()
    for wrong in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {right[:-1]}"},
        {"Authorization": f"Bearer {right}x"},
        {"Authorization": f"Basic {right}"},
        {"Authorization": right},
    ):
        answer = httpx.get(url, headers=wrong)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:caa:problem:unauthorized"
        assert right not in answer.text


def test_two_authorization_headers_let_nobody_in(with_token: tuple[Service, Path]) -> None:
    service, token = with_token
    headers = [("Authorization", "Bearer no"), *bearer(token).items()]
    assert httpx.get(f"{service.tcp_url}/v1/version", headers=headers).status_code == 401


def test_health_and_the_unix_socket_need_no_token(with_token: tuple[Service, Path]) -> None:
    service, _ = with_token
    for path in ("/livez", "/readyz", "/startupz"):
        assert httpx.get(service.tcp_url + path).status_code == 200
    with service.client() as http:
        assert http.get("/v1/sandboxes").status_code == 200


def test_a_changed_token_counts_at_once(with_token: tuple[Service, Path]) -> None:
    service, token = with_token
    url, old = f"{service.tcp_url}/v1/version", bearer(token)
    assert httpx.get(url, headers=old).status_code == 200
    # As a mounted Secret changes: another file under the same name.
    (fresh := token.with_name("fresh")).write_text(secrets.token_urlsafe(32))
    fresh.chmod(0o600)
    fresh.replace(token)
    assert httpx.get(url, headers=old).status_code == 401
    assert httpx.get(url, headers=bearer(token)).status_code == 200


def test_a_token_file_that_became_readable_by_others_or_vanished_lets_nobody_in(
    with_token: tuple[Service, Path],
) -> None:
    service, token = with_token
    url, headers = f"{service.tcp_url}/v1/version", bearer(token)
    token.chmod(0o644)
    assert httpx.get(url, headers=headers).status_code == 401
    token.chmod(0o600)
    assert httpx.get(url, headers=headers).status_code == 200
    token.unlink()
    assert httpx.get(url, headers=headers).status_code == 401


@pytest.mark.parametrize(("content", "mode"), [("x" * 40, 0o604), ("short", 0o600), ("", 0o600), ("a b" * 20, 0o600)])
def test_a_bad_token_file_is_refused_at_the_start_and_never_shown(tmp_path: Path, content: str, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    said = refused(tmp_path, CAA_API_LISTEN=f"127.0.0.1:{held_port()}", CAA_API_TOKEN_FILE=str(path))
    assert said.startswith(f"CAA_API_TOKEN_FILE: {str(path)!r} ")
    assert not content or content not in said.replace(str(path), "")


def test_a_port_in_use_names_the_key_and_the_value_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        said = refused(tmp_path, CAA_API_LISTEN=listen, CAA_API_TOKEN_FILE=str(token_file(tmp_path)))
    assert said == f"CAA_API_LISTEN: '{listen}': port {listen.split(':')[1]} is in use by another process."
    assert not (tmp_path / "run" / "caa.sock").exists()


def test_an_address_of_another_machine_names_the_key(tmp_path: Path) -> None:
    keys = {"CAA_API_CERT_FILE": "", "CAA_API_TOKEN_FILE": str(token_file(tmp_path))}
    certificate, key = Authority(tmp_path, "ca").issue("server")
    keys |= {"CAA_API_CERT_FILE": certificate, "CAA_API_KEY_FILE": key}
    said = refused(tmp_path, CAA_API_LISTEN="192.0.2.1:8443", **keys)
    assert said.startswith("CAA_API_LISTEN: '192.0.2.1:8443': cannot be listened on: ")


# TCP with client certificates


def test_only_a_client_certificate_of_the_right_authority_lets_in(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    certificate, key = ours.issue("server")
    settings = settings_in(
        tmp_path,
        CAA_API_LISTEN=f"127.0.0.1:{held_port()}",
        CAA_API_CERT_FILE=certificate,
        CAA_API_KEY_FILE=key,
        CAA_API_CLIENT_CA_FILE=str(ours.file),
    )

    def ask(service: Service, identity: tuple[str, str] | None) -> int:
        context = ssl.create_default_context(cafile=ours.file)
        if identity:
            context.load_cert_chain(*identity)
        with httpx.Client(verify=context) as http:
            return http.get(service.tcp_url.replace("127.0.0.1", "localhost") + "/v1/version").status_code

    with serving(settings) as service:
        assert ask(service, ours.issue("operator")) == 200
        for identity in (None, theirs.issue("stranger")):
            with pytest.raises(httpx.TransportError):
                ask(service, identity)


def test_files_tls_cannot_use_are_refused_by_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    certificate, key = authority.issue("server")
    _, other_key = authority.issue("other")
    _, locked_key = authority.issue("locked", password=b"secret")
    (noise := tmp_path / "noise").write_text("noise")
    base = {
        "CAA_API_LISTEN": f"127.0.0.1:{held_port()}",
        "CAA_API_CERT_FILE": certificate,
        "CAA_API_KEY_FILE": key,
        "CAA_API_CLIENT_CA_FILE": str(authority.file),
    }
    for changed, value, blamed in (
        ("CAA_API_CERT_FILE", str(noise), "CAA_API_CERT_FILE"),
        ("CAA_API_CERT_FILE", "/nowhere/tls.crt", "CAA_API_CERT_FILE"),
        ("CAA_API_KEY_FILE", other_key, "CAA_API_CERT_FILE"),
        ("CAA_API_KEY_FILE", locked_key, "CAA_API_CERT_FILE"),
        ("CAA_API_KEY_FILE", "/nowhere/tls.key", "CAA_API_KEY_FILE"),
        ("CAA_API_CLIENT_CA_FILE", str(noise), "CAA_API_CLIENT_CA_FILE"),
    ):
        said = refused(tmp_path, **(base | {changed: value}))
        assert said.startswith(f"{blamed}: "), said


# Metrics for anybody


def test_metrics_and_health_may_be_served_to_anybody_and_nothing_else_with_them(tmp_path: Path) -> None:
    with serving(settings_in(tmp_path, CAA_METRICS_LISTEN=f"127.0.0.1:{held_port()}")) as service:
        with httpx.Client(base_url=f"http://{service.rest.metrics_address}") as http:
            answers = {
                path: http.get(path).status_code for path in ("/metrics", "/readyz", "/v1/sandboxes", "/", "/page")
            }
            assert http.post("/v1/sandboxes", json={}).status_code == 404
        assert answers == {"/metrics": 200, "/readyz": 200, "/v1/sandboxes": 404, "/": 404, "/page": 404}
        taken = str(service.rest.metrics_address)
        said = refused(tmp_path / "other", CAA_METRICS_LISTEN=taken)
    assert said == f"CAA_METRICS_LISTEN: '{taken}': port {taken.split(':')[1]} is in use by another process."
