"""What a definition's schema does to a custom resource: unknown fields go, defaults come, the rest is checked. Pure.

Not there: rules in CEL (`x-kubernetes-validations`), list types, and conversion between versions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema

_ROOT = ("apiVersion", "kind", "metadata")


def admitted(body: dict[str, Any], schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The object as it is stored, and what is wrong with it."""
    head = {key: body[key] for key in _ROOT if key in body}
    rest = {key: value for key, value in body.items() if key not in _ROOT}
    schema = {**schema, "properties": {k: v for k, v in schema.get("properties", {}).items() if k not in _ROOT}}
    schema["required"] = [key for key in schema.get("required", []) if key not in _ROOT]
    rest = _defaulted(_pruned(rest, schema), schema)
    return head | rest, list(_problems(rest, schema))


def _pruned(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_pruned(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    result = {}
    for key, inner in value.items():
        if key in known:
            result[key] = _pruned(inner, known[key])
        elif others:
            result[key] = _pruned(inner, others if isinstance(others, dict) else {})
        elif schema.get("x-kubernetes-preserve-unknown-fields"):
            result[key] = inner
    return result


def _defaulted(value: Any, schema: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_defaulted(one, schema.get("items", {})) for one in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    result = {key: _defaulted(inner, known.get(key, {})) for key, inner in value.items()}
    for key, inner in known.items():
        if "default" in inner and result.get(key) is None:
            result[key] = _defaulted(copy.deepcopy(inner["default"]), inner)
    return result


def _problems(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft7Validator(_plain(schema)).iter_errors(value):
        yield f"{'.'.join(map(str, error.absolute_path)) or '<root>'}: {error.message}"


def _plain(schema: Any) -> Any:
    """The same in JSON Schema's words."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _plain(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        result["type"] = ["integer", "string"]
    if schema.get("nullable") is True and isinstance(result.get("type"), str):
        result["type"] = [result["type"], "null"]
    return result
