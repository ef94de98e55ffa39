"""Label and field selectors, as the API server reads them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from tests.kube.refusal import Refusal

Selector = Callable[[dict[str, Any]], bool]
"""Whether an object is one of those."""

_SET = re.compile(r"(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^)]*)\)")
_EQUAL = re.compile(r"(?P<key>[^=!\s]+)\s*(?P<word>==|=|!=)\s*(?P<value>\S*)")
_ABSENT = re.compile(r"!\s*(?P<key>\S+)")
# Commas, but not those between parentheses.
_COMMA = re.compile(r",(?![^(]*\))")


def selector(labels: str, fields: str, allowed: Iterable[str]) -> Selector:
    """Both, as they stand in a query. Raises Refusal for what cannot be read, and for a field that is not allowed."""
    parts = [_label(part.strip()) for part in _COMMA.split(labels) if part.strip()]
    parts += [_field(part.strip(), frozenset(allowed)) for part in fields.split(",") if part.strip()]
    return lambda body: all(part(body) for part in parts)


def _label(text: str) -> Selector:
    def of(body: dict[str, Any]) -> dict[str, str]:
        return dict(body["metadata"].get("labels") or {})

    if found := _SET.fullmatch(text):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["word"] == "in":
            return lambda body: of(body).get(key) in values
        return lambda body: of(body).get(key) not in values
    if found := _EQUAL.fullmatch(text):
        key, value = found["key"], found["value"]
        if found["word"] == "!=":
            return lambda body: of(body).get(key) != value
        return lambda body: of(body).get(key) == value
    if found := _ABSENT.fullmatch(text):
        key = found["key"]
        return lambda body: key not in of(body)
    if re.fullmatch(r"[-A-Za-z0-9_./]+", text):
        return lambda body: text in of(body)
    raise Refusal(400, f"unable to parse requirement: {text!r}")


def _field(text: str, allowed: frozenset[str]) -> Selector:
    found = _EQUAL.fullmatch(text)
    if found is None:
        raise Refusal(400, f"invalid field selector: {text!r}")
    key, value = found["key"], found["value"]
    if key not in allowed:
        raise Refusal(400, f'field label not supported: "{key}"')

    def holds(body: dict[str, Any]) -> bool:
        here: Any = body
        for part in key.split("."):
            here = here.get(part, "") if isinstance(here, dict) else ""
        return (str(here) == value) == (found["word"] != "!=")

    return holds
