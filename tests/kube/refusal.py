"""A Status that is no success."""

from __future__ import annotations

from typing import Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Refusal(Exception):
    """What the API answers, with the HTTP code. `retry_after` in seconds becomes the header, too."""

    def __init__(self, code: int, message: str, reason: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason or REASONS.get(code, "Unknown"),
            "code": code,
        }
        if retry_after is not None:
            self.status["details"] = {"retryAfterSeconds": retry_after}


def conflict(resource: str, name: str) -> Refusal:
    """The object is not at the version that the writer has seen."""
    text = f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified'
    return Refusal(409, f"{text}; please apply your changes to the latest version and try again")


def gone(version: str) -> Refusal:
    """The history does not reach back to that version any more."""
    return Refusal(410, f"too old resource version: {version}")
