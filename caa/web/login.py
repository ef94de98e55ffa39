"""How a browser shows the token over TCP: once, in a form; then a cookie opens the page and nothing else.

The cookie is derived from the token, so it is worth nothing at the REST interface and ends with the token.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from fastapi.responses import RedirectResponse
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from caa.api.rest.auth import LONGEST_TOKEN, TokenFile
from caa.web.page import HEADERS, login_form

COOKIE = "caa_page"
_PAGES = ("/sandboxes/", "/events")
# The token, percent-encoded, and the field's name.
_LONGEST_FORM = 3 * LONGEST_TOKEN + 100


class BrowserLogin:
    """In front of the application and of the guard that programs meet."""

    def __init__(self, app: ASGIApp, guarded: ASGIApp, token: TokenFile) -> None:
        self._app = app
        self._guarded = guarded
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the form, or pass on."""
        await (await self._choose(scope, receive))(scope, receive, send)

    async def _choose(self, scope: Scope, receive: Receive) -> ASGIApp:
        if scope["type"] != "http":
            return self._guarded
        path, request = scope["path"], Request(scope, receive)
        if path == "/login" and scope["method"] == "POST":
            return await self._log_in(request)
        if scope["method"] not in ("GET", "HEAD"):
            return self._guarded
        if path.startswith("/static/"):  # the form's own looks
            return self._app
        if path != "/" and not path.startswith(_PAGES):
            return self._guarded
        if self._token.opens_page(_cookie(request)):
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
        if not self._token.fits(given.encode()):
            return login_form(wrong=True)
        answer = RedirectResponse("/", status_code=303, headers=dict(HEADERS))
        secure = request.scope["scheme"] == "https"
        answer.set_cookie(COOKIE, self._token.page_cookie(), httponly=True, samesite="strict", secure=secure)
        return answer


def _cookie(request: Request) -> str:
    try:
        found = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
