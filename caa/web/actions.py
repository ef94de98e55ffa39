"""What an operator may do on the page. Each is a form, which says what it does before its button can be pressed."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Path, Request
from fastapi.responses import RedirectResponse, Response

from caa.api.rest.problems import http_problem
from caa.callers import called_by

# Where the guard puts the proof that forms of this operator's page bring along.
OPERATOR = "operator"
# A proof and its name.
_LONGEST_FORM = 200
_ACTION = re.compile(r"/sandboxes/[^/]{1,64}/stop|/audit/fix|/image/retry")


@dataclass(frozen=True, slots=True)
class OperatorActions:
    """The use cases behind them."""

    stop: Callable[[str], Awaitable[object]]
    """Begin a sandbox's end."""
    fix: Callable[[], Awaitable[object]]
    """Put right what the audit finds and is ours."""
    retry: Callable[[], Awaitable[object]]
    """Build the image that failed once more."""


def is_action(path: str) -> bool:
    """Whether a path is one of those below."""
    return _ACTION.fullmatch(path) is not None


def proof_of(request: Request) -> str:
    """What this caller's forms bring along; "" for whoever is no operator, and gets none."""
    return str(getattr(request.state, OPERATOR, ""))


def action_router(actions: OperatorActions) -> APIRouter:
    """The routes. Without an operator's cookie, as over the unix socket, each is refused."""
    router = APIRouter(include_in_schema=False)

    async def act(request: Request, action: Callable[[], Awaitable[object]], back: str) -> Response:
        proof = proof_of(request)
        if not proof or not hmac.compare_digest((await _given(request)).encode(), proof.encode()):
            return http_problem(403, "This needs the page of an operator: see CAA_OPERATOR_TOKEN_FILE.").response()
        host = request.client.host if request.client else ""
        with called_by(f"operator at the page, {host}"):
            await action()
        return RedirectResponse(back, status_code=303)

    @router.post("/sandboxes/{id}/stop")
    async def stop(request: Request, sandbox_id: Annotated[str, Path(alias="id", max_length=64)]) -> Response:
        return await act(request, lambda: actions.stop(sandbox_id), f"/sandboxes/{quote(sandbox_id, safe='')}")

    @router.post("/audit/fix")
    async def fix(request: Request) -> Response:
        return await act(request, actions.fix, "/")

    @router.post("/image/retry")
    async def retry(request: Request) -> Response:
        return await act(request, actions.retry, "/")

    return router


async def _given(request: Request) -> str:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_FORM:
            return ""
    return parse_qs(body.decode("ascii", "replace")).get("proof", [""])[0]
