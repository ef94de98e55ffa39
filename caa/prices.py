"""What offerings cost, from a file that CAA_PRICES_FILE names.

YAML, of which JSON is a part: a mapping of instance type, or type@market, to a price for an hour in any one currency.

    m6a.large: 0.0864
    m6a.large@spot: 0.0351

A type without market is the price of every market that has none of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from providers.base import ConfigError, Market, Problem

KEY = "CAA_PRICES_FILE"
# All types of a region in all markets are some 200 KB; more is another file.
LARGEST = 4 << 20

Prices = dict[tuple[str, str], float]
"""By instance type and market; a market of "" is every one that has no price of its own."""


def read_prices(path: Path | None) -> Prices:
    """Read the file; none without one. Raises ConfigError with every wrong entry."""
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ConfigError([Problem(KEY, f"{str(path)!r} is larger than {LARGEST >> 20} MiB")])
        # The C reader where there is one: 0.05 s for 1,500 types, and 0.6 s in Python.
        entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # a safe one
    except OSError as error:
        raise ConfigError([Problem(KEY, f"{str(path)!r} cannot be read: {error.strerror}")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError([Problem(KEY, f"{str(path)!r} is neither YAML nor JSON: {said[:200]}")]) from None
    return prices_of(entries, str(path))


def prices_of(entries: Any, where: str) -> Prices:
    """From what such a file holds. Raises ConfigError with every wrong entry."""
    if not isinstance(entries, dict):
        text = f"{where!r} must hold lines such as `m6a.large: 0.0864` or `m6a.large@spot: 0.0351`"
        raise ConfigError([Problem(KEY, text)])
    prices: Prices = {}
    problems = []
    for name, price in entries.items():
        wrong = _wrong(name, price)
        if wrong:
            problems.append(Problem(KEY, f"{where!r}: {wrong}"))
        else:
            instance_type, _, market = name.partition("@")
            prices[instance_type, market] = float(price)
    if problems:
        raise ConfigError(problems)
    return prices


def _wrong(name: Any, price: Any) -> str:
    markets = [market.value for market in Market]
    if not isinstance(name, str) or not name.partition("@")[0]:
        return f"{name!r} is not allowed: must be an instance type, or type@market"
    _, at, market = name.partition("@")
    if at and market not in markets:
        return f"{name!r} is not allowed: the market must be one of {', '.join(markets)}"
    number = isinstance(price, int | float) and not isinstance(price, bool)
    if not (number and math.isfinite(price) and price >= 0):
        return f"{name!r}: {price!r} is not allowed: must be a price for an hour such as 0.0864"
    return ""
