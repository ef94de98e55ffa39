"""Serves the REST application inside the event loop that is there: on a unix socket, and over TCP if asked to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from caa.api.rest.auth import OPEN_PATHS, BearerAuth, TokenFile
from caa.api.rest.problems import http_problem
from caa.callers import called_by
from caa.settings import Settings
from caa.settingtypes import HostPort
from providers.base import ConfigError, Problem

log = logging.getLogger(__name__)

# Answers under way are given this long when the service stops; a start under way is longer, and is told so.
CLOSE_SECONDS = 1
_BACKLOG = 128


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the service's, which stops more than this server."""
        yield


class Named:
    """The application, with who called it for events: an address, or the unix socket."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        host = (scope.get("client") or ("",))[0]
        with called_by(f"REST {host}" if host else "REST unix socket"):
            await self._app(scope, receive, send)


class OnlyMetrics:
    """What anybody may know: metrics and health. Everything else is not there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 404."""
        if scope["type"] != "http" or scope["path"] in {"/metrics", *OPEN_PATHS}:
            await self._app(scope, receive, send)
            return
        await http_problem(404, "Only metrics and health are served here.").response()(scope, receive, send)


class RestServer:
    """The REST interface's sockets. The unix socket is for root; TCP wants what the settings say."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        browsers: Callable[[ASGIApp, ASGIApp, TokenFile], ASGIApp] = lambda app, guarded, token: guarded,
    ) -> None:
        """`browsers` makes what stands in front of the application and its guard where TCP callers need a token."""
        self._app = Named(app)
        self._browsers = browsers
        self._settings = settings
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self._socket_inode: tuple[int, int] | None = None
        self.tcp_address: HostPort | None = None
        """Where TCP callers reach it, once started."""
        self.metrics_address: HostPort | None = None
        """Where metrics are, once started."""

    async def start(self) -> None:
        """Bind and begin to serve. Raises ConfigError, with nothing left open, naming the key that must change."""
        listen, metrics = self._settings.api_listen, self._settings.metrics_listen
        tcp = self._tcp_config() if listen else None
        with contextlib.ExitStack() as undo:
            unix = _unix_listener(self._settings.api_socket)
            undo.callback(unix.close)
            bound = self._settings.api_socket.stat()
            self._socket_inode = (bound.st_dev, bound.st_ino)
            undo.callback(self._unlink)
            if listen and tcp:
                connection = _tcp_listener("CAA_API_LISTEN", listen)
                undo.callback(connection.close)
                self.tcp_address = HostPort(*connection.getsockname()[:2])
                self._serve(tcp, connection)
            if metrics:
                connection = _tcp_listener("CAA_METRICS_LISTEN", metrics)
                undo.callback(connection.close)
                self.metrics_address = HostPort(*connection.getsockname()[:2])
                self._serve(_config(OnlyMetrics(self._app)), connection)
            self._serve(_config(self._app), unix)
            undo.pop_all()
        log.info("REST interface on %s%s", self._settings.api_socket, f" and {self.tcp_address}" if listen else "")

    async def stop(self) -> None:
        """Stop listening, let short answers finish, and return. Safe without a start before."""
        self._unlink()
        for server, _ in self._servers:
            server.should_exit = True
        results = await asyncio.gather(*(task for _, task in self._servers), return_exceptions=True)
        self._servers.clear()
        for result in results:
            if isinstance(result, BaseException):
                log.error("the REST interface ended badly", exc_info=result)

    def _serve(self, config: uvicorn.Config, listener: socket.socket) -> None:
        server = _Server(config)
        self._servers.append((server, asyncio.create_task(server.serve(sockets=[listener]))))

    def _tcp_config(self) -> uvicorn.Config:
        settings = self._settings
        token = settings.api_token_file
        app: ASGIApp = self._app
        if token:
            known = TokenFile(token)
            app = self._browsers(self._app, BearerAuth(self._app, known), known)
        config = _config(app)
        config.load()
        if settings.api_cert_file and settings.api_key_file:
            config.ssl = _tls(settings.api_cert_file, settings.api_key_file, settings.api_client_ca_file)
        return config

    def _unlink(self) -> None:
        """Remove the socket file, unless a later service has put its own there."""
        path = self._settings.api_socket
        with contextlib.suppress(OSError):
            found = path.lstat()
            if self._socket_inode == (found.st_dev, found.st_ino):
                path.unlink()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


def _tls(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _blaming("CAA_API_KEY_FILE", key_file, ""):
        key_file.open("rb").close()
    wanted = "must be a certificate chain in PEM, and the key in CAA_API_KEY_FILE its own, in PEM without a password"
    with _blaming("CAA_API_CERT_FILE", cert_file, wanted):
        # Without a password from here OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    if client_ca_file is not None:
        with _blaming("CAA_API_CLIENT_CA_FILE", client_ca_file, "must be certificates in PEM"):
            context.load_verify_locations(client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _blaming(key: str, path: Path, wanted: str) -> Generator[None, None, None]:
    """What goes wrong with the file inside becomes a ConfigError that names its key."""
    try:
        yield
    except ssl.SSLError as error:
        raise ConfigError([Problem(key, f"{str(path)!r} {wanted} ({error.reason or 'not PEM'}).")]) from None
    except OSError as error:
        raise ConfigError([Problem(key, f"{str(path)!r} cannot be read: {error.strerror}.")]) from None


def _unix_listener(path: Path) -> socket.socket:
    def error(what: str) -> ConfigError:
        return ConfigError([Problem("CAA_API_SOCKET", f"{str(path)!r} {what}")])

    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            answer = probe.connect_ex(str(path))
        if answer in (0, errno.EAGAIN):  # EAGAIN: somebody listens, and is busy
            raise error("is in use: another process listens there.")
        if answer == errno.ECONNREFUSED:
            if not path.is_socket():
                raise error("is there already and is no socket.")
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
            # Before anybody can connect, which takes listen().
            os.chmod(path, 0o600)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as failure:
        raise error(f"cannot be listened on: {failure.strerror}.") from None
    return listener


def _tcp_listener(key: str, listen: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        return socket.create_server((listen.host, listen.port), family=family, backlog=_BACKLOG)
    except OSError as failure:
        if failure.errno == errno.EADDRINUSE:
            what = f"port {listen.port} is in use by another process."
        else:
            what = f"cannot be listened on: {failure.strerror}."
        raise ConfigError([Problem(key, f"'{listen}': {what}")]) from None
