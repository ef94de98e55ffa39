"""User data of any shape that YAML allows. Imported only for text that the quick reader in `userdata` does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from caa.guest.writefiles import File, UserDataError

_parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Debian's package has the C parser, ten times quicker


def read_events(text: str) -> list[File]:
    """The entries of `write_files` in order. Raises UserDataError naming line and key."""
    try:
        return _Reader(yaml.parse(text, Loader=_parser)).read()
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
