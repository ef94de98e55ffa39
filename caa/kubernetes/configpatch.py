"""The ConfigMap `peer-pods-cm` for who writes an image's id into it. Synchronous, as image building is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightkube import Client
from lightkube.resources.core_v1 import ConfigMap
from lightkube.types import PatchType

from caa.images.imaging import WriteBackError
from caa.kubernetes.answers import ABSENT, CONFLICT, AwayError, RefusedError, connected, fine, translated
from caa.kubernetes.configobjects import CONFIG_MAP
from caa.sources import NAMESPACE
from providers.base import ConfigError


class WatchedConfigMap:
    """That of a namespace. See `caa.images.writeback.ConfigMapPatch`."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def read(self) -> tuple[Mapping[str, str], str]:
        """Its data and its resourceVersion. Raises WriteBackError."""
        found = self._asked(lambda client: client.get(ConfigMap, CONFIG_MAP, namespace=self._namespace), ABSENT)
        if found is None:
            raise WriteBackError(f"there is no ConfigMap {self._namespace}/{CONFIG_MAP}")
        return found.data or {}, str(found.metadata.resourceVersion)

    def patch(self, data: Mapping[str, str], annotations: Mapping[str, str | None], resource_version: str) -> bool:
        """See `caa.images.writeback.ConfigMapPatch`. Raises WriteBackError."""
        change = {
            "metadata": {"resourceVersion": resource_version, "annotations": dict(annotations)},
            "data": dict(data),
        }
        done = self._asked(
            lambda client: client.patch(
                ConfigMap, CONFIG_MAP, change, namespace=self._namespace, patch_type=PatchType.MERGE
            ),
            CONFLICT,
        )
        return done is not None

    def _asked(self, call: Any, without: int) -> Any:
        """The answer; None for one with the status `without`. A connection each: this happens a few times a year."""
        try:
            with connected(Client, NAMESPACE, self._namespace) as client, translated(), fine(without):
                return call(client)
        except (AwayError, RefusedError, ConfigError) as error:
            raise WriteBackError(f"ConfigMap {self._namespace}/{CONFIG_MAP}: {error}") from error
        return None
