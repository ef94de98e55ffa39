"""`caa db`: the ledger's database. Needs CAA_LEDGER_URL (or CAA_STATE_DIR) and no other key."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from caa.cli.main import fail


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`upgrade` and `revision`."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("upgrade", help="bring the database to the schema of this version; safe to repeat")
    verbs.add_parser("revision", help="show the schema revision the database has")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    from caa import ledger, settings
    from providers.base import ConfigError

    try:
        url = settings.ledger_url(environ)
        if args.verb == "upgrade":
            print(f"The ledger has revision {ledger.upgrade(url)}.")
        else:
            print(ledger.revision(url) or "none: run `caa db upgrade`")
    except (ConfigError, ledger.LedgerError) as error:
        fail(str(error))
    return 0
