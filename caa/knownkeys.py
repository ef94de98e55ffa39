"""Every key there is, of the service and of each cloud: what it is for, and which misspelt one was meant. Pure.

Needs no cloud's SDK.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caa.settings import Settings
from caa.sources import Source
from providers import registry
from providers.keys import Keys

ALL_CLOUDS = ""
# Nobody else's keys begin so. Other names (AWS_, LIBVIRT_, ...) are shared with SDKs and tools that read their own.
OWN_PREFIXES = ("CAA_", "PODVM_", "PEERPODS_")
# As alike as a name with a letter too many, or two changed in 13: closer than any two of our keys are to a stranger's.
ALIKE = 0.87
# What Kubernetes puts into the environment of each container for each Service, which may well be named "caa".
_OF_A_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_[A-Z]+(_\w+)?)?)$")
# Keys of the incumbent that are of no use here, and why. They may stay where they are.
WITHOUT_USE: Mapping[str, str] = {
    "PAUSE_IMAGE": "the incumbent does not use it either; the pause bundle is in the pod VM image",
    "TLS_SKIP_VERIFY": "pod VMs are always checked by their certificates",
    "CLOUD_CONFIG_VERIFY": "the cloud's configuration is always checked",
    "PODVM_DISTRO": "images that are built here are Debian; any other comes by PODVM_IMAGE_URI",
    "CRI_RUNTIME_ENDPOINT": "the incumbent does not use it either",
    "ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN": "providers are Python packages, and there are no others to load",
    "CLOUD_PROVIDER_EXTERNAL_PLUGIN_PATH": "providers are Python packages, and there are no others to load",
    "CLOUD_PROVIDER_EXTERNAL_PLUGIN_HASH": "providers are Python packages, and there are no others to load",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key as its users see it."""

    name: str
    cloud: str  # "" for all clouds
    default: str | None  # None when the key must be set
    allowed: str
    description: str
    live: bool  # a change applies from the next sandbox on; else when the service starts again
    secret: bool


def every_key() -> tuple[Key, ...]:
    """Of the service first, then of each cloud by its name; a name that several clouds have comes once for each."""
    clouds = ((cloud, registry.keys(cloud)) for cloud in registry.names())
    models: list[tuple[str, type[Keys]]] = [(ALL_CLOUDS, Settings), *clouds]
    return tuple(key for cloud, model in models for key in _keys(cloud, model))


def keys_of(cloud: str) -> tuple[Key, ...]:
    """Of the service and of this cloud."""
    return tuple(key for key in every_key() if key.cloud in (ALL_CLOUDS, cloud))


def _keys(cloud: str, model: type[Keys]) -> Iterator[Key]:
    schemas = model.model_json_schema(by_alias=True)["properties"]
    for field in model.model_fields.values():
        name = str(field.alias)
        yield Key(
            name=name,
            cloud=cloud,
            default=None
            if field.is_required()
            else _default(field.default, computed=field.default_factory is not None),
            allowed=_allowed(schemas[name], field.annotation),
            description=field.description or "",
            live=name not in model.needs_restart,
            secret="SecretStr" in str(field.annotation) or name in model.secret,
        )
    for name, description in model.of_sdk.items():
        yield Key(name, cloud, "", "text", description, live=False, secret=False)


def _default(value: Any, *, computed: bool) -> str:
    """As it would be written in a ConfigMap. "" for what is not set, or found out when the service starts."""
    if computed or value is None or "SecretStr" in type(value).__name__:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):  # durations are the only ones
        return f"{value / 60:g}m" if value % 60 == 0 else f"{value:g}s"
    return str(value)


def _allowed(schema: Mapping[str, Any], annotation: object) -> str:
    """What a key takes, in a few words; its description has units and the rest."""
    variants = schema.get("anyOf", [schema])
    kind: Mapping[str, Any] = next((one for one in variants if one.get("type") != "null"), {})
    if "enum" in kind or "const" in kind:
        return ", ".join(f'"{one}"' for one in kind.get("enum", [kind.get("const")]))
    match kind.get("type"):
        case "boolean":
            return "true, false"
        case "number":
            return "duration"
        case "integer":
            low, high = kind.get("minimum"), kind.get("maximum")
            if low is None and high is None:
                return "integer"
            return f"{low} to {high}" if high is not None else f"at least {low}"
        case "array":
            return "list"
    if kind.get("format") == "path":
        return "path"
    return "host:port" if "HostPort" in str(annotation) else "text"


# Keys that were not meant


@dataclass(frozen=True, slots=True)
class Suspect:
    """A key that has no effect and looks as if it should."""

    name: str
    meant: str  # the key it is most like; "" when none is like it
    source: Source

    def __str__(self) -> str:
        hint = f"; did you mean {self.meant}?" if self.meant else ""
        return f"{self.name} ({self.source.value}) is no key of this service and has no effect{hint}"


def suspects(given: Mapping[str, Source], known: Iterable[str]) -> list[Suspect]:
    """Those of the given keys that are probably misspelt, in order of their names.

    Under a prefix of ours every unknown key is one. Any other is one only when it is much like a key of ours, for the
    environment and the two objects hold keys of others, too.
    """
    names = {*known, *WITHOUT_USE}
    found = []
    for name in sorted(set(given) - names):
        meant = _meant(name, names)
        ours = name.startswith(OWN_PREFIXES) and not (given[name] is Source.ENVIRONMENT and _OF_A_SERVICE.search(name))
        if meant or ours:
            found.append(Suspect(name, meant, given[name]))
    return found


def _meant(name: str, names: Iterable[str]) -> str:
    """The key that this is much like. Names that differ by a number at the end alone are meant to differ."""
    plain = name.upper().replace("-", "_")
    near = difflib.get_close_matches(plain, sorted(names), n=1, cutoff=ALIKE)
    numbered = bool(near) and plain != near[0] and re.sub(r"_?\d+$", "", plain) == near[0]
    return near[0] if near and not numbered else ""
