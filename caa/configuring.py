"""Keys -> what the service runs by: settings and provider, checked together, every problem told at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field

from caa import settings as configuration
from caa.knownkeys import every_key, keys_of
from caa.settings import Settings
from caa.sources import Merged
from providers import registry
from providers.base import ConfigError, Problem, Provider
from providers.keys import read_keys


@dataclass(frozen=True, slots=True)
class Configured:
    """One whole configuration. The provider has connected to nothing yet."""

    settings: Settings = field(repr=False)
    provider: Provider = field(repr=False)


def read(values: Mapping[str, str]) -> Settings:
    """Check the service's keys and those of its cloud, without the cloud's SDK. Raises ConfigError with every problem.

    A key that the service shares with the cloud is told once.
    """
    problems: dict[Problem, None] = {}
    settings = None
    try:
        settings = configuration.load(values)
    except ConfigError as error:
        problems |= dict.fromkeys(error.problems)
    cloud = values.get("CLOUD_PROVIDER", "").strip()
    if cloud and not any(problem.key == "CLOUD_PROVIDER" for problem in problems):
        try:
            read_keys(registry.keys(cloud), values)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems or settings is None:
        raise ConfigError(list(problems))
    return settings


def build(values: Mapping[str, str]) -> Configured:
    """Settings and provider of one set of keys. Raises ConfigError. Asks the cloud nothing."""
    settings = read(values)
    return Configured(settings, registry.load(settings.cloud_provider, values))


def restart_keys(cloud: str) -> tuple[str, ...]:
    """Keys of the service and of this cloud whose changes need a restart."""
    return tuple(dict.fromkeys(key.name for key in keys_of(cloud) if not key.live))


def keep(
    running: Mapping[str, str], wanted: Mapping[str, str], keys: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """What can apply without a restart: `wanted`, but `keys` as they are running. And which of those differ. Pure."""
    effective, waiting = dict(wanted), []
    for key in keys:
        before, after = (values.get(key, "").strip() for values in (running, wanted))
        if before != after:
            waiting.append(key)
        effective.pop(key, None)
        if key in running:
            effective[key] = running[key]
    return effective, sorted(waiting)


def hand_to_sdk(merged: Merged, environ: MutableMapping[str, str]) -> None:
    """Put the mounted keys that only the cloud's SDK reads into the environment, where it looks for them."""
    cloud = merged.values.get("CLOUD_PROVIDER", "").strip()
    if cloud in registry.names():
        for key in registry.keys(cloud).of_sdk:
            if key in merged.values:
                environ[key] = merged.values[key]


def known_names() -> frozenset[str]:
    """The names of all keys, of every cloud."""
    return frozenset(key.name for key in every_key())


def differing(before: Mapping[str, str], after: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Known keys whose values are not the same. Pure."""
    return sorted(key for key in known if before.get(key, "").strip() != after.get(key, "").strip())


def lines(problems: Iterable[Problem]) -> Iterator[str]:
    """Problems as people read them, one a line."""
    yield from str(ConfigError(list(problems))).splitlines()
