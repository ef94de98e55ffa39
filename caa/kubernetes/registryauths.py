"""Image pull secrets -> what a guest needs to log in to registries. Pure. Nothing that a Secret holds is told."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# Type of Secret -> key of its data, and whether the registries are one level down.
_TYPES = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson", True),
    "kubernetes.io/dockercfg": (".dockercfg", False),
}


class PullSecret(NamedTuple):
    """A Secret as the API server gives it: `data` in base64."""

    name: str
    type: str
    data: Mapping[str, str]


def registry_auths(secrets: Iterable[PullSecret]) -> tuple[dict[str, str], list[str]]:
    """Registry -> base64 of "user:password", and a sentence for each Secret that is of no use.

    A later Secret decides over an earlier one.
    """
    auths: dict[str, str] = {}
    problems: list[str] = []
    for secret in secrets:
        try:
            auths |= dict(_auths(secret))
        except (ValueError, KeyError, AttributeError, TypeError):
            problems.append(f"Secret {secret.name} cannot be read as image pull secret (its type is {secret.type})")
    return auths, problems


def _auths(secret: PullSecret) -> Iterator[tuple[str, str]]:
    key, nested = _TYPES[secret.type]
    document = json.loads(base64.b64decode(secret.data[key], validate=True))
    for registry, entry in (document["auths"] if nested else document).items():
        auth = _auth(entry)
        if auth:
            yield registry, auth


def _auth(entry: Mapping[str, Any]) -> str:
    """ "" for one that has no password, but some token that guests do not know."""
    if entry.get("auth"):
        text = str(entry["auth"])
        if b":" not in base64.b64decode(text, validate=True):
            raise binascii.Error
        return text
    if entry.get("username"):
        return base64.b64encode(f"{entry['username']}:{entry.get('password', '')}".encode()).decode()
    return ""
