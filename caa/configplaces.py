"""Opens the places that the configuration is in, the API server among them if the environment says so."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from caa.sources import NAMESPACE, Sources
from providers.base import ConfigError, Problem

if TYPE_CHECKING:
    from caa.kubernetes.configobjects import ConfigObjects

log = logging.getLogger(__name__)


def open_objects(environ: Mapping[str, str]) -> ConfigObjects | None:
    """The ConfigMap and the Secret, asked for once; None where they are not to be watched. Raises ConfigError.

    An API server that does not answer now is no error yet: directories may be mounted, too.
    """
    namespace = environ.get(NAMESPACE, "").strip()
    if not namespace:
        return None
    from caa.kubernetes.keys import NAMESPACE as ALLOWED  # not before: the command line has to start quickly

    if not re.fullmatch(ALLOWED, namespace):
        return None  # told with all else that is wrong
    try:
        from caa.kubernetes.answers import AwayError, RefusedError
        from caa.kubernetes.configobjects import ConfigObjects
    except ImportError as error:
        text = f"{namespace!r} is not allowed: {error.name} is not installed, which the extra `kubernetes` brings"
        raise ConfigError([Problem(NAMESPACE, text)]) from error
    objects = ConfigObjects(namespace)
    try:
        objects.fetch()
    except (AwayError, RefusedError) as error:
        objects.why = str(error)
        log.warning("%s cannot be read now: %s", " and ".join(objects.places), error)
    return objects


def open_sources(environ: Mapping[str, str]) -> Sources:
    """All there is. Raises ConfigError."""
    return Sources(environ, open_objects(environ))


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with what the other places say over it. Raises ConfigError."""
    return open_sources(environ).read().over(environ)
