"""Where configuration keys come from: a ConfigMap and a Secret, mounted or watched, and the environment.

Kubernetes mounts each key as a file. It writes a changed object into a new directory, and then moves the link `..data`
over to it: read through that link, resolved once, all files are of one state. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Protocol

from providers.base import ConfigError, Problem

CONFIG_DIR, SECRET_DIR, NAMESPACE = "CAA_CONFIG_DIR", "CAA_SECRET_DIR", "CAA_CONFIG_NAMESPACE"
# Kubernetes' limit for all of a ConfigMap or Secret.
LARGEST_BYTES = 1 << 20
# How often a directory that changes while it is read is read again. Kubernetes changes one once a minute at most.
_TRIES = 100
# A password or key is longer; a flag, a region or a size may stand in any sentence, and is not worth hiding there.
SHORTEST_SECRET = 8
MASK = "********"
_DATA = "..data"
# What Kubernetes allows as a key of either object.
_KEY = re.compile(r"[-._a-zA-Z0-9]+")

Identity = tuple[object, ...]
"""Compares equal as long as a directory holds the same files with the same contents."""


class Source(StrEnum):
    """Where a key's value was found."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # noqa: S105  # the name of a place
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Layer:
    """One source with all that it holds."""

    source: Source
    values: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Merged:
    """What holds of several layers. Keys without a value are absent."""

    values: Mapping[str, str] = field(repr=False)
    sources: Mapping[str, Source]

    def over(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The whole as one environment, for readers that know of no other source."""
        return {**environ, **self.values}

    def hidden(self, problems: Iterable[Problem]) -> list[Problem]:
        """What is wrong, without what is in the Secret: more people read logs and events."""
        secrets = {key: text for key, value in self.values.items() if (text := value.strip()) and self._secret(key)}
        everywhere = {text for text in secrets.values() if len(text) >= SHORTEST_SECRET}
        found = []
        for problem in problems:
            message, own = problem.message, {secrets[problem.key]} if problem.key in secrets else set()
            # The longest first, for one may be part of another.
            for text in sorted(everywhere | own, key=len, reverse=True):
                message = message.replace(text, MASK)
            found.append(replace(problem, message=message))
        return found

    def _secret(self, key: str) -> bool:
        return self.sources.get(key) is Source.SECRET


class _ChangedError(Exception):
    """The directory changed while it was read."""


def merge(layers: Sequence[Layer]) -> Merged:
    """The first layer that has a value decides. An empty value counts as unset, as everywhere in configuration."""
    values: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for layer in layers:
        for key, value in layer.values.items():
            if key in values or not value.strip() or _only_environment(key, layer.source):
                continue
            values[key], sources[key] = value, layer.source
    return Merged(values, sources)


def _only_environment(key: str, source: Source) -> bool:
    """What says where the two are cannot be in them."""
    return key in (CONFIG_DIR, SECRET_DIR, NAMESPACE) and source is not Source.ENVIRONMENT


class Objects(Protocol):
    """The ConfigMap and the Secret as the API server has them. Called from any thread."""

    places: tuple[str, ...]
    """What they are, for people."""
    why: str
    """Why they are not known; "" when they are."""

    def identity(self) -> Identity | None:
        """Changes when one of them does. None until the API server has told both."""
        ...

    def layers(self) -> list[Layer]:
        """The ConfigMap's before the Secret's. Raises ConfigError."""
        ...


class Sources:
    """The environment of this process, and the directories that it names, or `objects` in their place."""

    def __init__(self, environ: Mapping[str, str], objects: Objects | None = None) -> None:
        self._environ = dict(environ)
        self._objects = objects
        self._directories = [
            (source, key, Path(path))
            for source, key in ((Source.CONFIG_MAP, CONFIG_DIR), (Source.SECRET, SECRET_DIR))
            if (path := environ.get(key, "").strip())
        ]

    @property
    def places(self) -> tuple[str, ...]:
        """What can change while the process runs, for people."""
        return (*(self._objects.places if self._objects else ()), *(str(path) for _, _, path in self._directories))

    def identity(self) -> Identity:
        """Changes when what is there does. Cheap; never raises."""
        told = self._objects.identity() if self._objects else None
        return told if told is not None else tuple(_identity(path) for _, _, path in self._directories)

    def read(self) -> Merged:
        """Everything as it is now: ConfigMap over Secret over environment. Raises ConfigError with every problem."""
        environment = Layer(Source.ENVIRONMENT, self._environ)
        if self._objects is not None and self._objects.identity() is not None:
            return merge([*self._objects.layers(), environment])
        if self._objects is not None and not self._directories:
            # Some of the keys would be worse than none: a cluster without its name takes another's VMs for its own.
            places = " and ".join(self._objects.places)
            raise ConfigError([Problem(NAMESPACE, f"{places} cannot be read: {self._objects.why}")])
        layers: list[Layer] = []
        problems: list[Problem] = []
        for source, key, path in self._directories:
            try:
                layers.append(Layer(source, _directory(key, path)))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)
        return merge([*layers, environment])


def _directory(key: str, path: Path) -> dict[str, str]:
    if not path.is_absolute():
        raise ConfigError([Problem(key, f"{str(path)!r} is not allowed: must be an absolute path")])
    try:
        return read_directory(path)
    except OSError as error:
        text = f"{str(path)!r} cannot be read: {error.strerror or error}; must be a mounted ConfigMap or Secret"
        raise ConfigError([Problem(key, text)]) from error


def read_directory(path: Path) -> dict[str, str]:
    """The files of one state of a directory: name -> content without a line break at its end.

    Raises OSError, and ConfigError for contents that are no text or too large.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(_ChangedError):
            return _read_once(path)
    raise OSError(0, "it changes all the time")


def _read_once(path: Path) -> dict[str, str]:
    """One state of the directory, or _ChangedError."""
    found = _open(path)
    try:
        before = _listing(found)
        values = {name: _text(found, name) for name in sorted(before)}
        # Behind `..data` nothing is ever changed, but all is removed when the link was moved on.
        if _listing(found) != before or not _still_there(path, found):
            raise _ChangedError
        return values
    finally:
        os.close(found)


def _open(path: Path) -> int:
    """A descriptor of the directory that holds the files: the target of `..data`, or else the directory itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path / _DATA, flags)
    except FileNotFoundError:
        if os.path.lexists(path / _DATA):
            raise _ChangedError from None  # moved on between reading the link and following it
        return os.open(path, flags)


def _still_there(path: Path, found: int) -> bool:
    """Whether the files are to be read in that directory still."""
    try:
        now = os.stat(path / _DATA)
    except FileNotFoundError:
        now = os.stat(path)
    return os.path.samestat(now, os.fstat(found))


def _listing(directory: int) -> dict[str, Identity]:
    """The key files of an open directory and what tells their states apart."""
    found: dict[str, Identity] = {}
    for name in os.listdir(directory):
        if name.startswith("..") or not _KEY.fullmatch(name):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=directory)
            if S_ISREG(status.st_mode):
                found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _text(directory: int, name: str) -> str:
    # Not blocking: a pipe put there would hold up the service.
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        raise _ChangedError from None
    with os.fdopen(descriptor, "rb") as file:
        return text_of(name, file.read(LARGEST_BYTES + 1))


def text_of(name: str, content: bytes) -> str:
    """A key's value without the line break at its end. Raises ConfigError for what is no text, or too large."""
    if len(content) > LARGEST_BYTES:
        raise ConfigError([Problem(name, f"is not allowed: must be at most {LARGEST_BYTES} bytes long")])
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError([Problem(name, "is not allowed: must be UTF-8 text")]) from None
    if "\0" in text:
        raise ConfigError([Problem(name, "is not allowed: must be text without NUL characters")])
    return text.rstrip("\r\n")


def _identity(path: Path) -> Identity:
    try:
        with contextlib.suppress(OSError):
            target = os.readlink(path / _DATA)
            return (target, os.stat(path / _DATA).st_ino)
        if not S_ISDIR(os.stat(path).st_mode):
            return ("no directory",)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return tuple(sorted(_listing(descriptor).items()))
        finally:
            os.close(descriptor)
    except OSError as error:
        return ("unreadable", error.errno)
