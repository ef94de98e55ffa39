"""Every error as problem details (RFC 9457): one table from what the use cases raise to what callers are told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from caa.errors import (
    CallError,
    ConflictError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    StartFailedError,
    UnavailableError,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:caa:problem:"
# Enough of a wrong value to recognise it.
_SHOWN = 200


class Problem(BaseModel):
    """An error, after RFC 9457. `type` and `reason` are stable; `title` and `detail` are for people."""

    type: str = Field(description="A URN that names the kind of problem.", examples=[TYPE_PREFIX + "sandbox-not-found"])
    title: str = Field(description="The kind of problem in a few words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What went wrong this time, in a sentence.")
    reason: str = Field(description="A stable CamelCase word; for a failed start, the cloud's.")
    field: str | None = Field(default=None, description="The part of the request to change, where one is wrong.")
    value: str | None = Field(default=None, description="What was given there, cut short if long.")
    allowed: str | None = Field(default=None, description="What is allowed there.")
    reasons: list[str] | None = Field(default=None, description="Why the service is not ready.")

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The HTTP response."""
        content = self.model_dump_json(exclude_none=True)
        return Response(content, self.status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


# (error, status, type, title). The first that fits, so subclasses first.
_CALL_ERRORS: Sequence[tuple[type[CallError], HTTPStatus, str, str]] = (
    (InvalidInputError, HTTPStatus.BAD_REQUEST, "invalid-input", "The request is wrong"),
    (NotFoundError, HTTPStatus.NOT_FOUND, "sandbox-not-found", "No such sandbox"),
    (ConflictError, HTTPStatus.CONFLICT, "wrong-state", "The sandbox's state does not allow this"),
    (StartFailedError, HTTPStatus.BAD_GATEWAY, "start-failed", "The pod VM could not be had"),
    (DeadlineError, HTTPStatus.GATEWAY_TIMEOUT, "deadline-exceeded", "The time is up"),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "The service cannot take calls now"),
    # Any other refusal a caller can act on, such as a pod that no allowed instance type fits.
    (CallError, HTTPStatus.UNPROCESSABLE_ENTITY, "refused", "The request cannot be fulfilled"),
)

_HTTP_ERRORS: Mapping[int, tuple[str, str, str]] = {
    401: ("unauthorized", "The caller is not known", "Unauthorized"),
    404: ("not-found", "No such resource", "NotFound"),
    405: ("method-not-allowed", "The method is not allowed here", "MethodNotAllowed"),
}


def call_problem(error: CallError) -> Problem:
    """What callers are told of a refusal."""
    status, slug, title = next((s, t, n) for kind, s, t, n in _CALL_ERRORS if isinstance(error, kind))
    field = error.field if isinstance(error, InvalidInputError) else None
    return Problem(
        type=TYPE_PREFIX + slug, title=title, status=status, detail=str(error), reason=error.reason, field=field
    )


def http_problem(status: int, detail: str) -> Problem:
    """What callers are told of an error of HTTP itself."""
    phrase = HTTPStatus(status).phrase
    slug, title, reason = _HTTP_ERRORS.get(
        status, (phrase.lower().replace(" ", "-"), phrase, phrase.title().replace(" ", ""))
    )
    return Problem(type=TYPE_PREFIX + slug, title=title, status=status, detail=detail, reason=reason)


def validation_problem(error: RequestValidationError) -> Problem:
    """What callers are told of a request that does not fit its schema. Further mistakes are listed in the detail."""
    details = error.errors()
    if details[0]["type"] == "json_invalid":
        why = details[0].get("ctx", {}).get("error", "")
        return Problem(
            type=TYPE_PREFIX + "malformed-json",
            title="The body is not JSON",
            status=HTTPStatus.BAD_REQUEST,
            detail=f"The body is not valid JSON: {why}.",
            reason="MalformedJson",
        )
    mistakes = [_mistake(detail) for detail in details]
    field, value, allowed = mistakes[0]
    return Problem(
        type=TYPE_PREFIX + "invalid-request",
        title="The request does not fit its schema",
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        detail="; ".join(_sentence(*mistake) for mistake in mistakes),
        reason="InvalidRequest",
        field=field,
        value=value,
        allowed=allowed,
    )


def _mistake(detail: Mapping[str, Any]) -> tuple[str, str | None, str]:
    """Field, value and what is allowed. The first part of the place is "body", "query" or "path"."""
    place = [str(part) for part in detail["loc"]]
    field = ".".join(place[1:]) or place[0]
    allowed = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        return field, None, "no such field"
    if detail["type"] == "missing":
        return field, None, "required"
    if place == ["body"]:
        return field, None, "must be a JSON object, sent with `Content-Type: application/json`"
    given = detail["input"]
    value = given if isinstance(given, str) else json.dumps(given, default=str, ensure_ascii=False)
    return field, value if len(value) <= _SHOWN else value[:_SHOWN] + "…", allowed


def _sentence(field: str, value: str | None, allowed: str) -> str:
    return f"{field}: {allowed}" if value is None else f"{field}: {value!r} is not allowed: {allowed}"


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""

    async def on_call_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, CallError)
        if isinstance(error, UnavailableError):
            # Soon, for what passes by itself passes soon: a start of the service, a locked database.
            return call_problem(error).response({"Retry-After": "1"})
        return call_problem(error).response()

    async def on_validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_problem(error).response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {
            404: f"There is nothing at {request.url.path}.",
            405: f"{request.method} is not allowed on {request.url.path}.",
        }.get(error.status_code, f"{error.detail}.")
        return http_problem(error.status_code, detail).response(error.headers)

    async def on_defect(_: Request, error: Exception) -> Response:
        # The server logs the traceback. Its text may hold anything, so none of it goes to the caller.
        return Problem(
            type=TYPE_PREFIX + "internal",
            title="The service failed",
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            detail="The service failed because of a defect; its log says more.",
            reason="Internal",
        ).response()

    app.add_exception_handler(CallError, on_call_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)
