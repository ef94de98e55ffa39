"""The four kinds of patch of the API. Pure: none of them changes what it is given.

Weaker than the real server's: a strategic merge patch is taken for a merge patch, so a list in it replaces the list
instead of being merged by its elements' names. Server-side apply knows who applied what, and removes what the same
manager does not name any more, but lists count as one value, and a field of another manager is no conflict.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import yaml

from tests.kube.refusal import Refusal

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def operated(old: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    """RFC 6902. Raises Refusal: 422 when a test fails or a path is not there."""
    try:
        return dict(jsonpatch.apply_patch(copy.deepcopy(old), patch))
    except jsonpatch.JsonPatchException as error:
        raise Refusal(422, f"the server rejected our request due to an error in our request: {error}") from error
    except jsonpatch.JsonPointerException as error:
        raise Refusal(422, f"the server rejected our request: {error}") from error


def applied(old: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Server-side apply: `before` is what the same manager applied last."""
    return dict(merged(_without(copy.deepcopy(old), before, now), now))


def read(content_type: str, data: bytes) -> Any:
    """A patch's body. Raises Refusal for bytes that are none."""
    try:
        return yaml.safe_load(data) if content_type == APPLY else json.loads(data)
    except (yaml.YAMLError, ValueError) as error:
        raise Refusal(400, f"the body is no {content_type}: {error}") from error


def _without(old: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    for key, value in before.items():
        if key not in now:
            old.pop(key, None)
        elif isinstance(value, dict) and isinstance(old.get(key), dict) and isinstance(now[key], dict):
            old[key] = _without(old[key], value, now[key])
    return old
