"""Puts the parts of image building together from a configuration, for the command line and the service alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from caa.images.holder import holder
from caa.images.image import PodVmImage
from caa.images.imaging import Imaging
from caa.images.source import ImageSource
from caa.images.writeback import ConfigMapPatch, write_back
from caa.ledger import open_ledger, upgrade
from caa.ledger.images import ImageStore
from caa.settings import Settings
from imagebuilder.publish import registry
from imagebuilder.publish.base import Publisher
from providers.base import ConfigError


class SystemTime:
    """The machine's clock."""

    def now(self) -> datetime:
        """Timezone-aware UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def supported(settings: Settings) -> bool:
    """Whether images can be built for the configured cloud."""
    return registry.supported(settings.cloud_provider)


@contextmanager
def publisher(settings: Settings, environ: Mapping[str, str]) -> Iterator[Publisher]:
    """The configured cloud's. Raises ConfigError."""
    made = registry.load(settings.cloud_provider, environ)
    try:
        yield made
    finally:
        made.close()


def lacking(cloud: str, environ: Mapping[str, str]) -> str:
    """What the configuration lacks to build an image, for people; "" if nothing."""
    try:
        made = registry.load(cloud, environ)
    except ConfigError as error:
        return str(error)
    try:
        made.check()
    except ConfigError as error:
        return str(error)
    finally:
        made.close()
    return ""


def make(
    settings: Settings,
    environ: Mapping[str, str],
    publisher: Publisher,
    store: ImageStore,
    tell: Callable[[PodVmImage], None] = lambda _image: None,
) -> Imaging:
    """Image building by this process."""
    return Imaging(
        store=store,
        publisher=publisher,
        source=ImageSource(settings),
        cluster=settings.cluster_id,
        holder=holder(settings.node_name),
        time=SystemTime(),
        write_back=write_back(environ, publisher.key, publisher.latest_key, _config_map(settings)),
        tell=tell,
    )


def _config_map(settings: Settings) -> ConfigMapPatch | None:
    """The ConfigMap itself, where it is watched."""
    if not settings.config_namespace:
        return None
    from caa.kubernetes.configpatch import WatchedConfigMap  # without Kubernetes it is not installed

    return WatchedConfigMap(settings.config_namespace)


@contextmanager
def opened(settings: Settings) -> Iterator[ImageStore]:
    """The configured ledger's images. Raises LedgerError."""
    if settings.ledger_url.startswith("sqlite"):
        upgrade(settings.ledger_url)  # a file of our own; a shared database is upgraded by `caa db upgrade`
    ledger = open_ledger(settings.ledger_url)
    try:
        yield ledger.images
    finally:
        ledger.close()
