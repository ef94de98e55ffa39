"""Who may call over TCP: holders of the token. (Client certificates are checked by TLS before any of this.)"""

from __future__ import annotations

import hmac
import logging
import os
import stat
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from caa.api.rest.problems import http_problem
from providers.base import ConfigError, Problem

log = logging.getLogger(__name__)

KEY = "CAA_API_TOKEN_FILE"
# What 128 random bits take as base64; a shorter one can be guessed or is a mistake.
SHORTEST_TOKEN = 22
# Longer than any token; a file beyond it is some other file.
LONGEST_TOKEN = 4096
# An orchestrator's probes can hold no secret.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/startupz"})


class TokenFile:
    """The token in a file, read again when the file changes. Raises ConfigError when it cannot serve at first."""

    def __init__(self, path: Path, key: str = KEY) -> None:
        """`key` of the configuration is named in errors."""
        self._path, self._key = path, key
        self._seen: tuple[int, int, int] | None = None
        self._token = b""
        self._refresh()

    def fits(self, given: bytes) -> bool:
        """Whether this is the token, compared in constant time. A bad file lets nobody in."""
        try:
            self._refresh()
        except ConfigError as error:
            if self._token:
                log.error("no caller is let in over TCP: %s", error)
            self._token, self._seen = b"", None
        return bool(self._token) and hmac.compare_digest(given, self._token)

    def page_cookie(self) -> str:
        """What a browser that has shown the token is given: it opens the page, and says nothing of the token."""
        return hmac.new(self._token, b"the page's cookie", "sha256").hexdigest()

    def opens_page(self, cookie: str) -> bool:
        """Whether it is the cookie of the token that holds now."""
        # `fits` reads the file again, and forgets a token that no longer serves.
        self.fits(b"")
        return bool(self._token) and hmac.compare_digest(cookie.encode(), self.page_cookie().encode())

    def form_proof(self) -> str:
        """What a form of the page brings along, so that no other site's form passes for one."""
        return hmac.new(self._token, b"the page's forms", "sha256").hexdigest()

    def _refresh(self) -> None:
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                # Also the inode: a mounted Secret changes by swapping a symbolic link.
                seen = (found.st_ino, found.st_mtime_ns, found.st_size)
                if found.st_mode & stat.S_IRWXO:
                    raise self._error(
                        f"has mode {stat.S_IMODE(found.st_mode):04o}: must give others no rights, such as 0600"
                    )
                if seen == self._seen:
                    return
                token = stream.read(LONGEST_TOKEN + 1).strip()
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from None
        if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or any(not 0x21 <= byte <= 0x7E for byte in token):
            raise self._error(
                f"must hold one token of {SHORTEST_TOKEN} to {LONGEST_TOKEN} printable ASCII characters and no spaces"
            )
        self._token, self._seen = token, seen

    def _error(self, what: str) -> ConfigError:
        return ConfigError([Problem(self._key, f"{str(self._path)!r} {what}.")])


class BearerAuth:
    """Lets through what carries `Authorization: Bearer <token>` (RFC 6750), and health checks."""

    def __init__(self, app: ASGIApp, token: TokenFile) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass on."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._known(scope):
            await self._app(scope, receive, send)
            return
        detail = "The call needs the header `Authorization: Bearer <token>` with the token of this service."
        await http_problem(401, detail).response({"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and self._token.fits(token.strip())
