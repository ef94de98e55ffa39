"""The clouds there are. A new cloud is one package and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from providers.base import ConfigError, Problem, Provider
from providers.keys import Keys

# Name in CLOUD_PROVIDER -> module whose `create(environ)` builds the provider. The extra to install has the same name.
# Beside it, `settings.KEYS` is the model of its keys, which can be imported without the cloud's SDK.
_MODULES = {
    "aws": "providers.aws.provider",
    "azure": "providers.azure.provider",
    "ibmcloud": "providers.ibmcloud.provider",
    "libvirt": "providers.libvirt.provider",
}


def names() -> tuple[str, ...]:
    """Every value CLOUD_PROVIDER may have."""
    return tuple(sorted(_MODULES))


def keys(name: str) -> type[Keys]:
    """The model of a provider's keys, without importing its SDK. Raises ConfigError for an unknown provider."""
    model: type[Keys] = import_module(f"{_module(name).rpartition('.')[0]}.settings").KEYS
    return model


def load(name: str, environ: Mapping[str, str]) -> Provider:
    """Build a provider from its keys, importing only that cloud's SDK. Raises ConfigError."""
    module = _module(name)
    try:
        create: Callable[[Mapping[str, str]], Provider] = import_module(module).create
    except ImportError as error:
        needed = f"pip install peerpod-cloud-adaptor[{name}]"
        raise ConfigError(
            [Problem("CLOUD_PROVIDER", f"{name!r} needs a library that is not installed ({error}): {needed}")]
        ) from error
    return create(environ)


def _module(name: str) -> str:
    module = _MODULES.get(name)
    if module is None:
        allowed = ", ".join(names())
        raise ConfigError([Problem("CLOUD_PROVIDER", f"{name!r} is not allowed: must be one of {allowed}")])
    return module
