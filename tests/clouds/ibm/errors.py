"""Refusals as the VPC API words them."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer that is no success; `field` is what of the request is to blame."""

    def __init__(self, status: int, code: str, message: str, field: str = "", value: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers: dict[str, str] = {}
        self._error: dict[str, Any] = {"code": code, "message": message, "more_info": "https://cloud.ibm.com/docs/vpc"}
        if field:
            self._error["target"] = {"name": field, "type": "field", "value": value}

    def body(self, trace: str) -> dict[str, Any]:
        """With the name of the call."""
        return {"errors": [self._error], "trace": trace}


def not_found(kind: str, one: str) -> ApiError:
    """`kind` is the API's word for it, such as "subnet"."""
    return ApiError(404, f"{kind}_not_found" if kind else "not_found", f"The {kind} {one} was not found", "id", one)


def bad_field(field: str, message: str) -> ApiError:
    return ApiError(400, "bad_field", message, field)


def not_unique(name: str) -> ApiError:
    return ApiError(400, "validation_unique_failed", f"Provided Name ({name}) is not unique", "name", name)
