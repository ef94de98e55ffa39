"""The webhook's certificates: made, shared, renewed and served, against an API server over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig

from caa.webhook.certificates import CA_VALIDITY, VALIDITY, Certificates, Pki, renewed
from caa.webhook.server import Tls
from tests.lab.ports import held_port
from tests.webhook.apiserver import CONFIGURATION, SECRET, SECRETS, ApiServer, api_server

NAME = "caa-webhook.peerpods.svc"
START = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE_S = 60.0


class At:
    """A clock that stands where it is put."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def current(server: ApiServer, now: datetime) -> Pki:
    """What one replica gets at that time."""
    config = KubeConfig.from_dict(server.kubeconfig())
    names = {"secret": "caa-webhook-tls", "service": "caa-webhook", "configuration": "caa-webhook"}

    async def run() -> Pki:
        client = AsyncClient(config=config.get(), timeout=httpx2.Timeout(PATIENCE_S))
        try:
            return await Certificates(client, At(now), namespace="peerpods", **names).current()
        finally:
            await client.aclose()

    return asyncio.run(run())


def trusted(server: ApiServer) -> str:
    webhook: Any = server.objects[CONFIGURATION]["webhooks"][0]
    return base64.b64decode(webhook["clientConfig"]["caBundle"]).decode()


def test_the_first_replica_makes_them_and_the_second_uses_them() -> None:
    with api_server() as server:
        first, second = current(server, START), current(server, START)
        assert first == second
        assert trusted(server) == first.ca_bundle
        assert [call for call in server.calls if call[0] != "get"] == [("create", SECRETS), ("update", CONFIGURATION)]
        assert server.calls[0] == ("get", SECRET)
    assert first.key not in repr(first)


def test_a_certificate_is_renewed_with_a_third_of_its_time_left_and_a_ca_overlaps_with_the_next() -> None:
    with api_server() as server:
        first = current(server, START)
        assert current(server, START + VALIDITY * 0.6) == first
        second = current(server, START + VALIDITY * 0.7)
        assert second.certificate != first.certificate
        assert second.ca_bundle == first.ca_bundle
        third = current(server, START + CA_VALIDITY * 0.7)
        assert third.ca_bundle.endswith(first.ca_bundle)
        assert trusted(server) == third.ca_bundle
        for served in (second, third):
            leaf = x509.load_pem_x509_certificate(served.certificate.encode())
            authorities = x509.load_pem_x509_certificates(third.ca_bundle.encode())
            issuer = next(one for one in authorities if one.subject == leaf.issuer)
            leaf.verify_directly_issued_by(issuer)


def test_conflicts_are_read_again_and_a_damaged_secret_is_made_anew() -> None:
    with api_server() as server:
        first = current(server, START)
        server.conflicts = 2
        server.objects[SECRET]["data"]["tls.key"] = base64.b64encode(b"nonsense").decode()
        server.objects[SECRET]["data"].pop("ca.key")
        second = current(server, START)
        assert second.certificate != first.certificate
        assert trusted(server) == second.ca_bundle


def test_the_context_that_serves_takes_a_renewed_certificate() -> None:
    first = renewed(None, NAME, START)
    second = renewed(first, NAME, START + VALIDITY * 0.9)
    tls = Tls()
    tls.take(first)
    before = presented(tls.context, first.ca_bundle)
    tls.take(second)
    assert presented(tls.context, first.ca_bundle) != before


def presented(context: ssl.SSLContext, bundle: str) -> bytes:
    """The certificate that a client which trusts `bundle` is shown."""
    client = ssl.create_default_context(cadata=bundle)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE  # the times are those of the test's clock
    to_server, to_client, from_server, from_client = (ssl.MemoryBIO() for _ in range(4))
    here = client.wrap_bio(from_server, to_server)
    there = context.wrap_bio(from_client, to_client, server_side=True)
    for _ in range(4):
        for side, out, into in ((here, to_server, from_client), (there, to_client, from_server)):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            into.write(out.read())
    shown = here.getpeercert(binary_form=True)
    assert shown
    return shown


def test_the_process_answers_over_the_certificate_the_api_server_trusts(tmp_path: Path) -> None:
    with api_server() as server:
        port = held_port()
        kubeconfig = tmp_path / "config"
        kubeconfig.write_text(json.dumps(server.kubeconfig()))
        command = [sys.executable, "-m", "caa.cli.main", "webhook", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], "KUBECONFIG": str(kubeconfig)})
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "caBundle" not in server.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            verify = ssl.create_default_context(cadata=trusted(server))
            while True:
                try:
                    raw = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            with verify.wrap_socket(raw, server_hostname=NAME) as stream:
                spec = {"runtimeClassName": "kata-remote", "containers": [{"name": "c"}]}
                pod = {"metadata": {"name": "p"}, "spec": spec}
                review = {"apiVersion": "admission.k8s.io/v1", "request": {"uid": "u", "object": pod}}
                body = json.dumps(review).encode()
                head = f"POST /mutate-v1-pod?timeout=10s HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n"
                stream.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                answer = b""
                while chunk := stream.recv(65536):
                    answer += chunk
            assert answer.startswith(b"HTTP/1.1 200")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["response"]["patchType"] == "JSONPatch"
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
