"""User data -> files under /run/peerpod. Reads the cloud-config that the worker sends, and nothing more of cloud-init.

The shape is the one guests of this kind have always read, strictly:

    #cloud-config

    write_files:
      - path: /run/peerpod/apf.json
        content: |
          ...

Only `write_files` with `path` and `content`; any other key is an error, for a key that is silently ignored
(`permissions`, `runcmd`) would leave a VM that is not what its sender asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from caa.guest.log import log

_parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Debian's package has the C parser, ten times quicker

SOURCE = Path("/media/cidata/user-data")
"""Where the ISO labelled `cidata` is mounted."""

# Twice the largest user data of any cloud (64 KiB, and a third more for base64).
MAX_BYTES = 256 << 10

# Path -> mode. Everything else is skipped. The two that hold a private key or registry passwords are for root alone.
ALLOWED = {
    "/run/peerpod/aa.toml": 0o644,
    "/run/peerpod/cdh.toml": 0o644,
    "/run/peerpod/apf.json": 0o600,
    "/run/peerpod/auth.json": 0o600,
    "/run/peerpod/initdata": 0o644,
    "/run/peerpod/scratch-space.marker": 0o644,
}


class UserDataError(Exception):
    """The user data is not what a pod VM accepts. Names the place, never the content."""


class File(NamedTuple):
    """One entry of `write_files`."""

    path: str
    content: str


def parse(text: bytes) -> list[File]:
    """The entries of `write_files` in order, allowed or not. Raises UserDataError naming line and key."""
    if len(text) > MAX_BYTES:
        raise UserDataError(f"the user data has {len(text)} bytes; at most {MAX_BYTES} are allowed")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserDataError(f"the user data is not UTF-8 at byte {error.start}") from None
    try:
        return _Reader(yaml.parse(decoded, Loader=_parser)).read()
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserDataError(f"{place}not YAML: {error.problem}") from None
    except yaml.YAMLError:  # its text quotes the input
        raise UserDataError("not YAML: a character that is not allowed") from None


class _Reader:
    """Walks the parser's events. Events rather than a tree: no depth an attacker could choose, and no aliases."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events

    def read(self) -> list[File]:
        self._expect(yaml.StreamStartEvent, "a document")
        if isinstance(self._next(), yaml.StreamEndEvent):
            return []
        files: list[File] = []
        event = self._next()
        if not self._is_null(event):
            self._check(event, yaml.MappingStartEvent, "a mapping with the key write_files")
            for _ in self._keys("the user data", ("write_files",)):
                files = self._files()
        self._expect(yaml.DocumentEndEvent, "the end")
        self._expect(yaml.StreamEndEvent, "one document only")
        return files

    def _files(self) -> list[File]:
        event = self._next()
        if self._is_null(event):
            return []
        self._check(event, yaml.SequenceStartEvent, "a list in write_files")
        files = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._check(event, yaml.MappingStartEvent, "a mapping with path and content in write_files")
            entry = {"path": "", "content": ""}
            for key in self._keys("an entry of write_files", ("path", "content")):
                entry[key] = self._text(key)
            if not entry["path"]:
                raise UserDataError(f"line {_line(event)}: an entry of write_files has no path")
            files.append(File(entry["path"], entry["content"]))
        return files

    def _keys(self, where: str, allowed: tuple[str, ...]) -> Iterator[str]:
        seen: set[str] = set()
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            self._check(event, yaml.ScalarEvent, f"a key in {where}")
            if event.value not in allowed:
                # Content that lost its indentation reads as keys, so only a plain lower-case word is shown.
                word = event.value if event.value.isidentifier() and event.value.islower() else "not shown"
                raise UserDataError(f"line {_line(event)}: key ({word[:20]}) in {where}; allowed: {', '.join(allowed)}")
            if event.value in seen:
                raise UserDataError(f"line {_line(event)}: key {event.value} twice in {where}")
            seen.add(event.value)
            yield event.value

    def _text(self, key: str) -> str:
        event = self._next()
        if self._is_null(event):
            return ""
        self._check(event, yaml.ScalarEvent, f"text as {key}")
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise UserDataError(f"line {_line(event)}: {key} must be text without a type tag")
        return str(event.value)

    @staticmethod
    def _is_null(event: Any) -> bool:
        return isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value in ("", "~", "null")

    def _next(self) -> Any:
        return next(self._events)

    def _expect(self, kind: type[Any], wanted: str) -> None:
        self._check(self._next(), kind, wanted)

    @staticmethod
    def _check(event: Any, kind: type[Any], wanted: str) -> None:
        if not isinstance(event, kind) or getattr(event, "anchor", None) is not None:
            raise UserDataError(f"line {_line(event)}: expected {wanted}")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def write_files(files: list[File], root: Path = Path("/")) -> list[str]:
    """Write the allowed files below `root`, each by rename so that a reader never sees half; returns their paths.

    Paths are compared as text: no spelling other than those in ALLOWED is ever opened.
    """
    written = []
    for path, content in files:
        mode = ALLOWED.get(path)
        if mode is None:
            log(f"user data: skipped {path[:200]!r}; allowed are {', '.join(ALLOWED)}")
            continue
        target = root / path.removeprefix("/")
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as out:
            os.fchmod(descriptor, mode)  # whatever the umask
            out.write(content)
        new.replace(target)
        written.append(path)
    return written


def provision(source: Path = SOURCE, root: Path = Path("/")) -> list[str]:
    """Read the user data and write its files. Raises UserDataError; nothing is written from user data in error."""
    try:
        with source.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserDataError(f"cannot read {source}: {error.strerror}") from None
    written = write_files(parse(text), root)
    log(f"user data: wrote {', '.join(written) or 'nothing'}")
    return written
