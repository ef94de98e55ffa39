"""Between a row and the domain's dataclass. Column names are field names; the rest is told here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Row

from caa.sandbox import Attempt, AttemptState, Door, Event, Launched, Sandbox, SandboxState
from providers.base import Market, Offering

# What a write may change after the row was added. The rest says who the row is, or (token, offering, image,
# user data) what the cloud was asked for, which must be repeated byte for byte after a crash.
SANDBOX_MUTABLE = (
    "annotations",
    "netns_path",
    "socket_path",
    "state",
    "changed_at",
    "failure_reason",
    "failure",
    "agent_seen",
)
ATTEMPT_MUTABLE = ("state", "instance_id", "addresses", "error_reason", "error", "launched")


def sandbox_values(sandbox: Sandbox) -> dict[str, Any]:
    """The columns of `sandbox`."""
    return _values(sandbox) | {"door": sandbox.door.value, "state": sandbox.state.value}


def attempt_values(attempt: Attempt) -> dict[str, Any]:
    """The columns of `attempt`. User data is kept only while the attempt may have to be repeated."""
    return _values(attempt) | {
        "offering": asdict(attempt.offering),
        "state": attempt.state.value,
        "addresses": list(attempt.addresses),
        "user_data": attempt.user_data if attempt.unsettled else b"",
        "launched": asdict(attempt.launched) if attempt.launched else None,
    }


def event_values(event: Event) -> dict[str, Any]:
    """The columns of `event`, without its id, which the database gives."""
    values = _values(event)
    del values["id"]
    return values


def to_sandbox(row: Row[Any]) -> Sandbox:
    """The sandbox a row holds."""
    values = dict(row._mapping)
    values["door"] = Door(values["door"])
    values["state"] = SandboxState(values["state"])
    return Sandbox(**values)


def to_attempt(row: Row[Any]) -> Attempt:
    """The attempt a row holds."""
    values = dict(row._mapping)
    values["offering"] = _offering(values["offering"])
    values["state"] = AttemptState(values["state"])
    values["addresses"] = tuple(values["addresses"])
    values["user_data"] = bytes(values["user_data"])
    values["launched"] = _launched(values["launched"])
    return Attempt(**values)


def to_event(row: Row[Any]) -> Event:
    """The event a row holds."""
    values = dict(row._mapping)
    for name in ("cluster", "node"):  # added later than the table
        values[name] = values[name] or ""
    return Event(**values)


def changed(old: Any, new: Any, mutable: tuple[str, ...]) -> list[str]:
    """The fields in which `new` differs from `old` though they may not change (`version` aside)."""
    fixed = (f.name for f in fields(old) if f.name not in mutable and f.name != "version")
    return [name for name in fixed if getattr(old, name) != getattr(new, name)]


def _values(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in fields(item)}


def _launched(values: Mapping[str, Any] | None) -> Launched | None:
    if values is None:
        return None
    public = values["public_addresses"]
    return Launched(
        values["instance_type"], values["image"], tuple(values["groups"]), None if public is None else tuple(public)
    )


def _offering(values: Mapping[str, Any]) -> Offering:
    return Offering(**{**values, "market": Market(values["market"])})
