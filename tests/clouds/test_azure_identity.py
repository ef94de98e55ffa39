"""The worker's managed identity, from a metadata service that has better and worse moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from providers.azure import client
from providers.azure.client import Arm
from providers.azure.settings import AzureKeys
from providers.base import DeniedError, ProviderError, UnavailableError
from providers.keys import read_keys
from tests.clouds.azure_lab import AzureLab

# A test that is right waits for none of these.
PATIENCE = 60.0


@contextmanager
def metadata_service(status: int, body: bytes, *, silent: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Answers all that is asked in one way; where it is, and what was asked."""
    asked: list[str] = []
    end = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if silent:
                end.wait(PATIENCE)
                return
            self.send_response(status)
            for name, value in (("Content-Type", "application/json"), ("Retry-After", "60")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            end.set()
            server.shutdown()


def refused(azure: AzureLab, monkeypatch: pytest.MonkeyPatch, url: str) -> tuple[ProviderError, list[float]]:
    """What a call is refused with that needs a token from there, and for how long it slept."""
    slept: list[float] = []
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", url)
    environ = azure.environ(AZURE_CLIENT_SECRET="", AZURE_TENANT_ID="", AZURE_CLIENT_ID="")
    arm = Arm(read_keys(AzureKeys, environ))
    try:
        with monkeypatch.context() as watched:
            watched.setattr(time, "sleep", slept.append)
            with pytest.raises(ProviderError) as error:
                list(arm.listed("compute", "virtual_machines", "group"))
    finally:
        arm.close()
    return error.value, slept


@pytest.mark.parametrize("status", [404, 410, 429, 500, 503])
def test_a_bad_moment_of_the_metadata_service_is_passing_and_makes_no_thread_sleep(
    azure: AzureLab, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with metadata_service(status, b'{"error": "server_error", "error_description": "later"}') as (url, asked):
        error, slept = refused(azure, monkeypatch, url)
    assert isinstance(error, UnavailableError)
    assert len(asked) == 1
    assert slept == []


def test_a_metadata_service_that_never_answers_is_given_up(azure: AzureLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TOKEN_SECONDS", 1)
    with metadata_service(200, b"", silent=True) as (url, asked):
        begun = time.monotonic()
        error, slept = refused(azure, monkeypatch, url)
        assert time.monotonic() - begun < PATIENCE
        while not asked:  # the caller may have given up before it was heard
            assert time.monotonic() - begun < PATIENCE
            time.sleep(0.01)
        assert len(asked) == 1
    assert isinstance(error, UnavailableError)
    assert slept == []


def test_a_worker_without_the_identity_is_refused_for_good(azure: AzureLab, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"error": "invalid_request", "error_description": "Identity not found"}'
    with metadata_service(400, body) as (url, asked):
        error, _ = refused(azure, monkeypatch, url)
    assert isinstance(error, DeniedError)
    assert error.reason == "NoCredentials"
    assert "Identity not found" in str(error)
    assert len(asked) == 1
