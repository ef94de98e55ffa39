"""How a browser shows a token over TCP: once, in a form; then a cookie opens the page and nothing else.

With the service's token the page is read-only; with an operator's it has forms, each with a proof that it is its own.

The cookie is derived from the token, so it is worth nothing at the REST interface and ends with the token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from caa.api.rest.auth import LONGEST_TOKEN, TokenFile
from caa.web.actions import OPERATOR, is_action
from caa.web.page import HEADERS, login_form

COOKIE = "caa_page"
_PAGES = ("/sandboxes/", "/events")
# The token, percent-encoded, and the field's name.
_LONGEST_FORM = 3 * LONGEST_TOKEN + 100


class BrowserLogin:
    """In front of the application and of the guard that programs meet."""

    def __init__(self, app: ASGIApp, guarded: ASGIApp, token: TokenFile, *, operator: TokenFile | None = None) -> None:
        self._app = app
        self._guarded = guarded
        self._token = token
        self._operator = operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the form, or pass on."""
        await (await self._choose(scope, receive))(scope, receive, send)

    async def _choose(self, scope: Scope, receive: Receive) -> ASGIApp:
        if scope["type"] != "http":
            return self._guarded
        path, request = scope["path"], Request(scope, receive)
        if path == "/login" and scope["method"] == "POST":
            return await self._log_in(request)
        cookie = _cookie(request)
        operator = self._operator is not None and self._operator.opens_page(cookie)
        if operator and self._operator is not None:
            scope.setdefault("state", {})[OPERATOR] = self._operator.form_proof()
        if scope["method"] not in ("GET", "HEAD"):
            return self._app if operator and is_action(path) else self._guarded
        if path.startswith("/static/"):  # the form's own looks
            return self._app
        if path != "/" and not path.startswith(_PAGES):
            return self._guarded
        if operator or self._token.opens_page(cookie):
            return self._app
        if "authorization" in request.headers or path == "/events":
            return self._guarded
        return login_form(wrong=False)

    async def _log_in(self, request: Request) -> ASGIApp:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _LONGEST_FORM:
                return login_form(wrong=True)
        given = parse_qs(body.decode("ascii", "replace")).get("token", [""])[0].strip()
        token = next((one for one in (self._operator, self._token) if one and one.fits(given.encode())), None)
        if token is None:
            return login_form(wrong=True)
        answer = RedirectResponse("/", status_code=303, headers=dict(HEADERS))
        secure = request.scope["scheme"] == "https"
        answer.set_cookie(COOKIE, token.page_cookie(), httponly=True, samesite="strict", secure=secure)
        return answer


def browser_login(operator: Path | None) -> Callable[[ASGIApp, ASGIApp, TokenFile], BrowserLogin]:
    """What stands in front of the application, with the file of an operator's token. Raises ConfigError."""
    token = TokenFile(operator, "CAA_OPERATOR_TOKEN_FILE") if operator else None
    return functools.partial(BrowserLogin, operator=token)


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
