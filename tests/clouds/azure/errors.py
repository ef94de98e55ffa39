"""Refusals as Azure Resource Manager words them."""

from __future__ import annotations

from typing import Any


class ArmError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        """The whole answer."""
        return {"error": {"code": self.code, "message": str(self)}}


def not_found(path: str) -> ArmError:
    """Of a resource."""
    return ArmError(404, "ResourceNotFound", f"The Resource '{path}' was not found.")
