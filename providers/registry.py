"""The clouds there are. A new cloud is one package and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from providers.base import ConfigError, Problem, Provider

# Name in CLOUD_PROVIDER -> module whose `create(environ)` builds the provider. The extra to install has the same name.
_MODULES = {"aws": "providers.aws.provider", "libvirt": "providers.libvirt.provider"}


def names() -> tuple[str, ...]:
    """Every value CLOUD_PROVIDER may have."""
    return tuple(sorted(_MODULES))


def load(name: str, environ: Mapping[str, str]) -> Provider:
    """Build a provider from its keys, importing only that cloud's SDK. Raises ConfigError."""
    module = _MODULES.get(name)
    if module is None:
        allowed = ", ".join(names())
        raise ConfigError([Problem("CLOUD_PROVIDER", f"{name!r} is not allowed: must be one of {allowed}")])
    try:
        create: Callable[[Mapping[str, str]], Provider] = import_module(module).create
    except ImportError as error:
        needed = f"pip install peerpod-cloud-adaptor[{name}]"
        raise ConfigError(
            [Problem("CLOUD_PROVIDER", f"{name!r} needs a library that is not installed ({error}): {needed}")]
        ) from error
    return create(environ)
