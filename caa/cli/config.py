"""`caa config`: what is configured, whether it can work, and every key there is."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caa.cli.main import FAILED

if TYPE_CHECKING:
    from providers.base import Problem, Provider


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check`, `show` and `docs`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("check", help="load everything, ask the cloud, and tell every problem at once")
    show = verbs.add_parser("show", help="every key with its value and where it came from; secrets are masked")
    show.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("docs", help="every key there is, as Markdown")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    from providers.base import ConfigError

    try:
        match args.verb:
            case "check":
                return _check(environ)
            case "show":
                return _show(environ, as_json=args.json)
            case _:
                from caa.configdocs import markdown

                print(markdown(), end="")
                return 0
    except ConfigError as error:
        return _told(str(error))


def _told(problems: str) -> int:
    for line in problems.splitlines():
        print(f"caa: {line}", file=sys.stderr)
    return FAILED


def _check(environ: Mapping[str, str]) -> int:
    # Imported here, so that `caa config --help` stays quick.
    from caa import configuring
    from caa.configplaces import open_sources
    from caa.knownkeys import suspects
    from providers.base import ConfigError, ProviderError

    merged = open_sources(environ).read()
    for suspect in suspects(merged.sources, configuring.known_names()):
        print(f"caa: warning: {suspect}", file=sys.stderr)
    configuring.hand_to_sdk(merged, os.environ)
    try:
        configured = configuring.build(merged.values)
    except ConfigError as error:
        raise ConfigError(merged.hidden(error.problems)) from None
    try:
        problems = [*_price_problems(configured.settings.prices_file), *configured.provider.check()]
        problems += [] if problems else _shortages(configured.provider)
    except ProviderError as error:
        return _told(f"CLOUD_PROVIDER: {configured.settings.cloud_provider!r}: {error}")
    finally:
        configured.provider.close()
    if problems:
        return _told(str(ConfigError(merged.hidden(problems))))
    print(f"the configuration of {configured.settings.cloud_provider} is right")
    return 0


def _shortages(provider: Provider) -> Sequence[Problem]:
    """What is used up. Not to be allowed to look is no problem of the configuration: pods start without."""
    from providers.base import DeniedError

    try:
        return provider.shortages()
    except DeniedError as error:
        print(f"caa: warning: what is left of the account's quotas is not known: {error}", file=sys.stderr)
        return ()


def _price_problems(path: Path | None) -> Sequence[Problem]:
    from caa.prices import read_prices
    from providers.base import ConfigError

    try:
        read_prices(path)
    except ConfigError as error:
        return error.problems
    return ()


def _show(environ: Mapping[str, str], *, as_json: bool) -> int:
    from caa import configuring
    from caa.cli.tables import table
    from caa.configplaces import open_sources
    from caa.knownkeys import WITHOUT_USE, keys_of, suspects
    from caa.settings import derived
    from caa.sources import MASK, Source

    merged = open_sources(environ).read()
    found = derived(merged.values) | {"NODE_NAME": socket.gethostname()}
    rows: dict[str, tuple[str, str]] = {}
    for key in keys_of(merged.values.get("CLOUD_PROVIDER", "").strip()):
        value, source = merged.values.get(key.name), merged.sources.get(key.name)
        if value is None:
            rows.setdefault(key.name, (found.get(key.name, key.default or ""), "default"))
        else:
            # What was put into a Secret was meant to be one, whichever key it is.
            hidden = key.secret or source is Source.SECRET
            rows[key.name] = (MASK if hidden else value, str(source))
    warnings = [str(suspect) for suspect in suspects(merged.sources, configuring.known_names())]
    warnings += [f"{key} has no effect: {why}" for key, why in WITHOUT_USE.items() if key in merged.values]
    if as_json:
        keys = [{"key": key, "value": value, "source": source} for key, (value, source) in rows.items()]
        print(json.dumps({"keys": keys, "warnings": warnings}, indent=2))
        return 0
    table(("KEY", "VALUE", "FROM"), [(key, value, source) for key, (value, source) in rows.items()])
    for warning in warnings:
        print(f"caa: warning: {warning}", file=sys.stderr)
    return 0
