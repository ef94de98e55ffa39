"""What requests are called, by the emulator's counters and the fault proxy, e.g. CreateInstance, ListInstances."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

_VERBS = {"POST": "Create", "DELETE": "Delete", "PUT": "Put", "HEAD": "Head", "PATCH": "Update"}
_OTHERS = {"/identity/token": "Token", "/v3/tags/attach": "Tag"}


def name_of(method: str, url: str, body: bytes = b"") -> str:
    """A list by name is not a list of all: it is FindInstances."""
    parts = urlsplit(url)
    if parts.path in _OTHERS:
        return _OTHERS[parts.path]
    segments = [segment for segment in parts.path.removeprefix("/v1").split("/") if segment]
    if not segments:
        return method
    if segments[0] == "instance" and len(segments) > 1:  # /instance/profiles
        segments = ["instance_" + segments[1], *segments[2:]]
    word = "".join(part.capitalize() for part in segments[0].split("_"))
    if len(segments) > 1 or method == "POST":
        word = word.removesuffix("s")
    if method == "GET":
        if len(segments) > 1:
            return f"Get{word}"
        return f"Find{word}" if "name" in parse_qs(parts.query) else f"List{word}"
    return _VERBS.get(method, method) + word
