"""`caa audit`: what differs between the ledger and the cloud, for people and for scripts, over the REST interface.

Exit codes: 0 nothing differs; 4 something does; 1 it could not be found out; 2 wrong use; 3 no service answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from caa.cli.main import FAILED, UNREACHABLE, fail

if TYPE_CHECKING:
    from caa.cli.client import Client

DIFFERENT = 4
# A look lists the cloud's instances twice, each in its turn, and an end may be throttled.
_AUDIT_SECONDS = 180.0
_EXIT_CODES = "exit codes: 0 nothing differs, 4 something does, 1 it could not be found out, 2 wrong use, 3 no service"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options, and the verb `export`."""
    # Only here, for `caa --help` and every other command do without its HTTP library.
    from caa.cli.client import add_server_arguments

    parser.epilog = _EXIT_CODES
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--all", action="store_true", help="show what matches, too")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="end instances that no sandbox accounts for and sandboxes whose instance is gone; only of this node. "
        "What drifted is left alone. The exit code is that of the audit afterwards",
    )
    add_server_arguments(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    summary = "print the trail of events as JSON Lines, oldest first"
    export = verbs.add_parser("export", help=summary, description=summary[0].upper() + summary[1:] + ".")
    export.add_argument("--after", type=int, default=0, metavar="ID", help="only later than the event with this id")
    export.add_argument("--sandbox", metavar="ID", help="only of this sandbox, by its whole id")
    export.add_argument("--node", help="only written by this worker node")
    export.add_argument("--kind", action="append", help="only of this kind, such as LaunchAccepted; may be repeated")
    export.add_argument("--since", type=_moment, metavar="TIME", help="only from then on, such as 2026-01-31T12:00:00Z")
    export.add_argument("--until", type=_moment, metavar="TIME", help="only before then")
    add_server_arguments(export)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    from caa.cli.client import Client, RefusedError, UnreachableError

    try:
        with Client(args, environ) as client:
            return _export(client, args) if args.verb == "export" else _audit(client, args)
    except RefusedError as error:
        fail(str(error), FAILED)
    except UnreachableError as error:
        fail(str(error), UNREACHABLE)


def _audit(client: Client, args: argparse.Namespace) -> int:
    from caa.cli.tables import audit_table

    if args.fix:
        answer = client.call("POST", "/v1/audit/fix", timeout=_AUDIT_SECONDS)
        audit = answer["audit"]
    else:
        answer = audit = client.call("GET", "/v1/audit", timeout=_AUDIT_SECONDS)
    if args.json:
        json.dump(answer, sys.stdout, indent=2)
        print()
    else:
        for one in answer.get("fixed", ()):
            finding = one["finding"]
            print(f"{finding['verdict']} {finding['name'] or finding['sandbox_id']}: {one['done'] or one['error']}")
        audit_table(audit, everything=args.all)
    return 0 if audit["clean"] else DIFFERENT


def _export(client: Client, args: argparse.Namespace) -> int:
    query: dict[str, Any] = {
        "after": args.after,
        "sandbox": args.sandbox,
        "node": args.node,
        "kind": args.kind,
        "since": args.since,
        "until": args.until,
    }
    for line in client.lines("/v1/events", {name: value for name, value in query.items() if value}):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return 0


def _moment(text: str) -> str:
    """Checked here, for the sentence; a time without zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be like 2026-01-31T12:00:00Z") from None
    return text if moment.tzinfo else text + "Z"
