"""What tests share that hold an emulated cloud and its provider against what the cloud publishes."""

from __future__ import annotations

import contextlib
import copy
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

Ask = Callable[..., httpx.Response]
"""Method, path, body (JSON, none unless given), token (that of `asking` unless given, "" for none)."""
Place = tuple[Any, ...]
"""The keys and numbers that lead to something in a document."""


@contextlib.contextmanager
def asking(url: str, ca_file: Path, bearer: str, params: Mapping[str, str]) -> Iterator[Ask]:
    """Plain requests below `url`, with what each of that cloud needs."""
    trust = ssl.create_default_context(cafile=str(ca_file))
    with httpx.Client(base_url=url, verify=trust, trust_env=False, timeout=60) as http:

        def ask(method: str, path: str, body: Any = None, token: str = f"Bearer {bearer}") -> httpx.Response:
            headers = {"Authorization": token} if token else {}
            return http.request(method, path, json=body, params=params, headers=headers)

        yield ask


def keys_in(document: Any, *above: Any) -> Iterator[Place]:
    """Places of all keys but those of tags, which anybody may choose."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield (*above, key)
            if key != "tags":
                yield from keys_in(value, *above, key)
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from keys_in(value, *above, number)


def at(document: Any, place: Place) -> Any:
    """What is there."""
    for key in place:
        document = document[key]
    return document


def misspelt(document: Any) -> Iterator[tuple[Place, Any]]:
    """It with one key misspelt, once for each key."""
    for place in keys_in(document):
        changed = copy.deepcopy(document)
        holder = at(changed, place[:-1])
        holder[f"{place[-1]}z"] = holder.pop(place[-1])
        yield place, changed
