"""How configuration keys are read: one pydantic model per subject, one alias per key, every error at once.

Keys arrive as one mapping, whether they were environment variables or files of a mounted ConfigMap or Secret.
An empty value counts as unset, as the incumbent has it, for ConfigMaps list keys with empty values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, ValidationError

from providers.base import ConfigError, Market, Problem

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def _duration(value: Any) -> Any:
    """Seconds from Go's duration syntax ("5m", "1h30m", "250ms"), which the ConfigMap's users write."""
    if not isinstance(value, str):
        return value
    seconds, at = 0.0, 0
    for part in _DURATION_PART.finditer(value):
        if part.start() != at:
            break
        seconds, at = seconds + float(part[1]) * _UNITS[part[2]], part.end()
    if at == 0 or at != len(value):
        raise ValueError('must be a duration such as "30s", "5m" or "1h30m"')
    return seconds


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word not in ("true", "1", "false", "0"):
            raise ValueError("must be true or false")
        return word in ("true", "1")
    return value


def _csv(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = []
    for part in value.split(","):
        key, equals, text = (word.strip() for word in part.partition("="))
        if not equals or not key:
            raise ValueError(f'must be a list such as "team=blue,stage=test"; {part!r} has no key or no "="')
        pairs.append((key, text))
    return tuple(pairs)


# What PODVM_MARKET may say: the markets to ask for, the preferred one first.
MARKETS = {
    "on-demand": (Market.ON_DEMAND,),
    "spot": (Market.SPOT,),
    "spot-then-on-demand": (Market.SPOT, Market.ON_DEMAND),
}
Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds."""
Flag = Annotated[bool, BeforeValidator(_flag)]
CsvList = Annotated[tuple[str, ...], BeforeValidator(_csv)]
Pairs = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)]
"""key=value, separated by commas."""
Secret = SecretStr


class Keys(BaseModel):
    """Base of every set of keys. Each field's alias is its key; its description is its documentation."""

    needs_restart: ClassVar[frozenset[str]] = frozenset()
    """Keys that are read once, when the service starts. A change of any other applies from the next sandbox on."""
    secret: ClassVar[frozenset[str]] = frozenset()
    """Keys whose values may hold a secret, though their fields are plain text."""
    of_sdk: ClassVar[Mapping[str, str]] = {}
    """Keys that the cloud's SDK reads by itself from the process's environment, once: name -> description."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, validate_default=True)


K = TypeVar("K", bound=Keys)


def read_keys(model: type[K], environ: Mapping[str, str]) -> K:
    """Read a set of keys. Raises ConfigError naming each bad key, its value and what is allowed."""
    given = {key: value for key, value in environ.items() if value.strip()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ConfigError([_problem(model, detail) for detail in error.errors()]) from None


def _problem(model: type[Keys], detail: Any) -> Problem:
    # Only field errors can come here: a check of the whole model would have every key, secrets included, as its input.
    key = str(detail["loc"][0])
    field = next((f for name, f in model.model_fields.items() if key in (f.alias, name)), None)
    if detail["type"] == "missing":
        return Problem(key, f"is required. {field.description if field and field.description else ''}".strip())
    # A URL without a user has no password either.
    secret = (
        field is None or "SecretStr" in str(field.annotation) or (key in model.secret and "@" in str(detail["input"]))
    )
    shown = "" if secret else f"{detail['input']!r} is not allowed: "
    return Problem(key, shown + str(detail["msg"]).removeprefix("Value error, "))
