"""The ConfigMap `peer-pods-cm` and the Secret `peer-pods-secret` as the API server has them, watched.

Each is listed and then watched by its name, so that the right to read it reaches no other. Whatever ends the watch (a
broken link, a version that the server forgot, time), it is listed again: there is no gap that a change could fall into.
While the API server is away, what it told last holds.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from lightkube import AsyncClient
from lightkube.resources.core_v1 import ConfigMap, Secret

from caa.clock import Clock
from caa.kubernetes.answers import AwayError, RefusedError, connected, translated
from caa.kubernetes.objects import reference
from caa.sources import NAMESPACE, Identity, Layer, Source, text_of
from providers.base import ConfigError, Problem

log = logging.getLogger(__name__)

CONFIG_MAP = "peer-pods-cm"
_KINDS: Mapping[Source, tuple[Any, str]] = {
    Source.CONFIG_MAP: (ConfigMap, CONFIG_MAP),
    Source.SECRET: (Secret, "peer-pods-secret"),
}
# A link that died without a word is found by then. The API server itself ends a watch after 30 minutes or more.
WATCH_SECONDS = 240.0
# Between two tries: soon at first, then such that all nodes' tries are no load.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class _Found:
    """One of the two. `values` is None when it is not there."""

    version: str
    uid: str = ""
    values: Mapping[str, bytes] | None = field(default=None, repr=False)


class ConfigObjects:
    """Both of one namespace. See `caa.sources.Objects`."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.places = tuple(f"{kind} {namespace}/{name}" for kind, (_, name) in _KINDS.items())
        self.why = "the API server has not told them yet"
        self._found: dict[Source, _Found] = {}
        self._complained: dict[Source, str] = {}

    def reference(self) -> dict[str, str]:
        """The ConfigMap, for events."""
        found = self._found.get(Source.CONFIG_MAP)
        return reference("ConfigMap", CONFIG_MAP, self.namespace, found.uid if found else "")

    # For the sources

    def identity(self) -> Identity | None:
        """Changes when one of them does. None until the API server has told both."""
        found = dict(self._found)
        return tuple(found[kind].version for kind in _KINDS) if len(found) == len(_KINDS) else None

    def layers(self) -> list[Layer]:
        """The ConfigMap's before the Secret's. Raises ConfigError.

        There must be a ConfigMap, as there must be a directory that is named. Who needs no credentials has no Secret.
        """
        layers: list[Layer] = []
        problems: list[Problem] = []
        for kind, found in sorted(self._found.items()):  # ConfigMap before Secret
            if found.values is None and kind is Source.CONFIG_MAP:
                problems.append(Problem(NAMESPACE, f"{self.namespace!r}: there is no ConfigMap {CONFIG_MAP}"))
            values = {}
            for key, content in (found.values or {}).items():
                try:
                    values[key] = text_of(key, content)
                except ConfigError as error:
                    problems += error.problems
            layers.append(Layer(kind, values))
        if problems:
            raise ConfigError(problems)
        return layers

    # Asking

    def fetch(self) -> None:
        """Read both now. Raises AwayError, RefusedError, and ConfigError when nothing says where the API server is."""
        asyncio.run(self._fetch())

    async def _fetch(self) -> None:
        client = connected(AsyncClient, NAMESPACE, self.namespace)
        try:
            for kind in _KINDS:
                await self._list(client, kind)
        finally:
            await client.aclose()

    async def run(self, clock: Clock) -> None:
        """Watch both, for ever."""
        client = connected(AsyncClient, NAMESPACE, self.namespace)
        try:
            await asyncio.gather(*(self._follow(client, kind, clock) for kind in _KINDS))
        finally:
            await client.aclose()

    async def _follow(self, client: AsyncClient, kind: Source, clock: Clock) -> None:
        wait = FIRST_WAIT
        while True:
            watched_since, asked_for = None, 0.0
            try:
                version = await self._list(client, kind)
                self._recovered(kind)
                watched_since = clock.monotonic()
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._watch(client, kind, version)
            except TimeoutError:
                continue
            except (AwayError, RefusedError) as error:
                self._complain(kind, error)
                asked_for = error.wait if isinstance(error, AwayError) else 0.0
            except Exception:  # a defect here must not end the service, nor go unseen
                log.exception("%s could not be watched", self.places[0])
            if watched_since is not None and clock.monotonic() - watched_since > FIRST_WAIT:
                wait = FIRST_WAIT
            # Not all nodes at once, when the API server comes back.
            await clock.sleep(max(wait * random.uniform(0.5, 1.0), min(asked_for, LONGEST_WAIT)))  # noqa: S311
            wait = min(wait * 2, LONGEST_WAIT)

    async def _watch(self, client: AsyncClient, kind: Source, version: str) -> None:
        """From there on, until something ends it. Raises AwayError and RefusedError."""
        resource, name = _KINDS[kind]
        watched = client.watch(
            resource, namespace=self.namespace, fields={"metadata.name": name}, resource_version=version
        )
        with translated():
            async with aclosing(cast(AsyncGenerator[tuple[str, Any], None], watched)) as events:
                async for event, one in events:
                    self._see(kind, None if event == "DELETED" else one, str(one.metadata.resourceVersion))

    async def _list(self, client: AsyncClient, kind: Source) -> str:
        """See what is there; the version of that. Raises AwayError and RefusedError."""
        resource, name = _KINDS[kind]
        listed = client.list(resource, namespace=self.namespace, fields={"metadata.name": name})
        with translated():
            found = [one async for one in listed]
        version = str(listed.resourceVersion)
        self._see(kind, found[0] if found else None, version)
        return version

    def _see(self, kind: Source, one: Any, version: str) -> None:
        if one is None:
            # The same for as long as it is not there, for a list has a version of its own each time.
            before = self._found.get(kind)
            version = before.version if before is not None and before.values is None else f"none at {version}"
            self._found[kind] = _Found(version)
        else:
            # Who makes it anew may come to the same version in another cluster, restored from a backup.
            identity = f"{one.metadata.uid} {one.metadata.resourceVersion}"
            self._found[kind] = _Found(identity, str(one.metadata.uid), _contents(kind, one))

    def _complain(self, kind: Source, error: Exception) -> None:
        """Once, until it answers again."""
        why = str(error.status) if isinstance(error, RefusedError) else "away"
        if self._complained.get(kind) != why:
            self._complained[kind] = why
            log.warning("the %s is not watched now, what it said last holds: %s", kind, error)

    def _recovered(self, kind: Source) -> None:
        if self._complained.pop(kind, None):
            log.info("the %s is watched again", kind)


def _contents(kind: Source, one: Any) -> dict[str, bytes]:
    """Key -> bytes, as they would be mounted."""
    if kind is Source.SECRET:
        return {key: _decoded(text) for key, text in (one.data or {}).items()}
    plain = {key: text.encode() for key, text in (one.data or {}).items()}
    return plain | {key: _decoded(text) for key, text in (one.binaryData or {}).items()}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b"\0"  # which the API server refuses; so do we, by the key's name
