"""The command line's side of the REST interface."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from caa import settings
from caa.cli.main import USAGE, fail

# Every answer but that of a start comes from the ledger, so this is long.
ANSWER_SECONDS = 30.0
CONNECT_SECONDS = 5.0
PAGE = 1000


class RefusedError(Exception):
    """The service said no. str() is its sentence; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(Exception):
    """No service answers where it was looked for. str() says where and which key moves it."""


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the service is. Without these: the unix socket of this machine."""
    group = parser.add_argument_group("service", "By default the unix socket in CAA_API_SOCKET, or in CAA_RUN_DIR.")
    group.add_argument("--server", metavar="URL", help="https://host:port of a service that listens on TCP")
    for option, what in (
        ("--token-file", "file with the token of the service"),
        ("--ca-file", "CA certificates that the service's certificate is checked with, PEM"),
        ("--cert-file", "client certificate, PEM"),
        ("--key-file", "private key of the client certificate, PEM"),
    ):
        group.add_argument(option, type=Path, metavar="FILE", help=what)


class Client:
    """One service. A context manager."""

    def __init__(self, args: argparse.Namespace, environ: Mapping[str, str]) -> None:
        if args.server is None:
            for option in ("token_file", "ca_file", "cert_file", "key_file"):
                if getattr(args, option) is not None:
                    fail(f"--{option.replace('_', '-')} needs --server", USAGE)
            path = settings.api_socket(environ)
            self._where = f"on unix socket {path} (CAA_API_SOCKET)"
            # No TLS on a unix socket; without this httpx reads all CA certificates first, which takes 30 ms.
            transport = httpx.HTTPTransport(uds=path, verify=False)
            self._http = httpx.Client(transport=transport, base_url="http://caa", trust_env=False)
            return
        try:
            url = httpx.URL(args.server)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            fail(f"--server {args.server!r} is not allowed: must be http://host:port or https://host:port", USAGE)
        self._where = f"at {args.server}"
        headers = {}
        if args.token_file:
            if url.scheme == "http" and url.host not in ("localhost", "127.0.0.1", "::1"):
                fail(
                    f"--server {args.server!r} is not allowed with a token: https keeps it secret, http does not", USAGE
                )
            headers["Authorization"] = f"Bearer {_token(args.token_file)}"
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            trust_env=False,
            verify=_tls(args) if url.scheme == "https" else False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Any:
        """The answer's JSON. Raises RefusedError, UnreachableError. `timeout` in seconds."""
        try:
            response = self._http.request(
                method, path, params=query, json=body, timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS)
            )
        except httpx.TimeoutException:
            raise UnreachableError(f"the service {self._where} does not answer") from None
        except httpx.TransportError as error:
            raise UnreachableError(f"no service answers {self._where}: {error}") from None
        try:
            answer = response.json()
            if response.is_success:
                return answer
            message = str(answer["detail"])
        except (ValueError, KeyError, TypeError):
            raise UnreachableError(f"what answers {self._where} is not this service") from None
        raise RefusedError(response.status_code, message)

    def lines(self, path: str, query: Mapping[str, Any]) -> Iterator[str]:
        """The lines of a stream as they come, of any number. Raises as `call` does, and in the middle, too."""
        timeout = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            with self._http.stream("GET", path, params=query, timeout=timeout) as response:
                if response.is_success:
                    yield from response.iter_lines()
                    return
                response.read()
            message = str(response.json()["detail"])
        except httpx.TransportError as error:
            raise UnreachableError(f"no service answers {self._where}, or no longer: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise UnreachableError(f"what answers {self._where} is not this service") from None
        raise RefusedError(response.status_code, message)

    def sandboxes(self, filters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every sandbox that matches, page by page."""
        cursor = None
        while True:
            query = {key: value for key, value in filters.items() if value} | {"limit": PAGE}
            page = self.call("GET", "/v1/sandboxes", query=query | ({"cursor": cursor} if cursor else {}))
            yield from page["sandboxes"]
            cursor = page["next_cursor"]
            if cursor is None:
                return


def _token(path: Path) -> str:
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--token-file {str(path)!r} cannot be read: {getattr(error, 'strerror', 'not ASCII')}", USAGE)
    if not token.isprintable() or not token:
        fail(f"--token-file {str(path)!r} must hold one line, the token", USAGE)
    return token


def _tls(args: argparse.Namespace) -> ssl.SSLContext:
    if (args.cert_file is None) != (args.key_file is None):
        fail("--cert-file and --key-file go together", USAGE)
    try:
        context = ssl.create_default_context(cafile=args.ca_file)
        if args.cert_file:
            context.load_cert_chain(args.cert_file, args.key_file)
    except OSError as error:  # ssl.SSLError too
        fail(f"--ca-file, --cert-file or --key-file cannot be used: {error.strerror or error}", USAGE)
    return context
