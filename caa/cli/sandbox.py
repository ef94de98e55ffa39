"""`caa sandbox`: what an operator sees and does by hand, over the REST interface."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from caa.cli.main import FAILED, UNREACHABLE, fail
from caa.sandbox import SandboxState

if TYPE_CHECKING:
    from caa.cli.client import Client

# A start is answered by the service itself when its time is up; this much later the service is taken for gone.
_MARGIN_SECONDS = 15.0
_FULL_ID = 64
_START_SECONDS = 600.0
# As Kata's shim names the pod.
_POD_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
_POD_NAME = "io.kubernetes.cri.sandbox-name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verbs and their options."""
    # Only here, for `caa --help` and every other command do without its HTTP library.
    from caa.cli.client import add_server_arguments

    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.add_argument("--json", action="store_true", help="print JSON, for programs")
        add_server_arguments(added)
        return added

    listed = verb("list", "list sandboxes, oldest first")
    listed.add_argument(
        "--state", action="append", choices=[s.value for s in SandboxState], help="only in this state; may be repeated"
    )
    listed.add_argument("--namespace", help="only of pods in this namespace")
    listed.add_argument("--pod", help="only of pods with this name")
    listed.add_argument("--node", help="only of this worker node")
    created = verb("create", "record a sandbox and show the path of its agent socket")
    created.add_argument("--id", default=None, help="its id; without one, a random one")
    created.add_argument("--pod", type=_pod, required=True, metavar="NAMESPACE/NAME", help="the pod it is for")
    created.add_argument(
        "--annotation", type=_pair, action="append", default=[], metavar="KEY=VALUE", help="may be repeated"
    )
    created.add_argument("--netns", default="", metavar="PATH", help="network namespace; without one, the host's")
    for name, summary in (
        ("show", "show a sandbox and what happened to it"),
        ("metadata", "show what a sandbox's pod sees of its VM at 169.254.169.254"),
        ("start", "launch a sandbox's instance and wait for its agent; Ctrl-C gives up and undoes it"),
        ("stop", "begin a sandbox's end; safe to repeat"),
    ):
        one = verb(name, summary)
        one.add_argument("id", metavar="ID", help="its id, or the beginning of it")
        if name == "start":
            one.add_argument("--timeout", type=_seconds, default=_START_SECONDS, metavar="SECONDS")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Do it."""
    from caa.cli.client import Client, RefusedError, UnreachableError

    verbs = {
        "list": _list,
        "show": _show,
        "create": _create,
        "metadata": _metadata,
        "start": _start,
        "stop": _stop,
    }
    try:
        with Client(args, environ) as client:
            verbs[args.verb](client, args)
    except RefusedError as error:
        fail(str(error), FAILED)
    except UnreachableError as error:
        fail(str(error), UNREACHABLE)
    return 0


def _list(client: Client, args: argparse.Namespace) -> None:
    from caa.cli.tables import sandbox_table

    filters = {"state": args.state, "namespace": args.namespace, "pod": args.pod, "node": args.node}
    found = list(client.sandboxes(filters))
    if args.json:
        _print_json(found)
    else:
        sandbox_table(found, datetime.now(UTC))


def _show(client: Client, args: argparse.Namespace) -> None:
    from caa.cli.tables import sandbox_details

    sandbox_id = _whole_id(client, args.id)
    sandbox = client.call("GET", _path(sandbox_id))
    events = _events(client, sandbox_id)
    if args.json:
        _print_json(sandbox | {"events": events})
    else:
        sandbox_details(sandbox, events)


def _metadata(client: Client, args: argparse.Namespace) -> None:
    from caa.cli.tables import metadata_table

    seen = client.call("GET", f"{_path(_whole_id(client, args.id))}/metadata")
    if args.json:
        _print_json(seen)
    else:
        metadata_table(seen)


def _create(client: Client, args: argparse.Namespace) -> None:
    namespace, name = args.pod
    body = {
        # As container runtimes make them.
        "id": args.id or secrets.token_hex(_FULL_ID // 2),
        "annotations": {_POD_NAMESPACE: namespace, _POD_NAME: name} | dict(args.annotation),
        "network_namespace_path": args.netns,
    }
    sandbox = client.call("POST", "/v1/sandboxes", body=body)
    _tell(args, sandbox, f"{sandbox['id']}\nagent socket: {sandbox['agent_socket_path']}")


def _start(client: Client, args: argparse.Namespace) -> None:
    sandbox_id = _whole_id(client, args.id)
    sandbox = client.call(
        "POST",
        f"{_path(sandbox_id)}/start",
        query={"timeout": args.timeout},
        timeout=args.timeout + _MARGIN_SECONDS,
    )
    _tell(args, sandbox, f"{sandbox['id']} is {sandbox['state']}")


def _stop(client: Client, args: argparse.Namespace) -> None:
    stopped = client.call("POST", f"{_path(_whole_id(client, args.id))}/stop")
    _tell(args, stopped, f"{stopped['id']} is {stopped['state']}")


def _events(client: Client, sandbox_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    after = 0
    while True:
        page = client.call("GET", f"{_path(sandbox_id)}/events", query={"after": after, "limit": 1000})
        if not page["events"]:
            return events
        events += page["events"]
        after = page["next_after"]


def _whole_id(client: Client, given: str) -> str:
    """The one id that begins with `given`, which may be an id itself; `given` when there is none."""
    if len(given) >= _FULL_ID:
        return given
    found = [sandbox["id"] for sandbox in client.sandboxes({}) if sandbox["id"].startswith(given)]
    if given in found or not found:
        return given
    if len(found) > 1:
        fail(f"{given!r} is the beginning of {len(found)} sandbox ids; give more of it")
    return str(found[0])


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{quote(sandbox_id, safe='')}"


def _tell(args: argparse.Namespace, answer: dict[str, Any], sentence: str) -> None:
    if args.json:
        _print_json(answer)
    else:
        print(sentence)


def _print_json(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    print()


def _pod(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be NAMESPACE/NAME")
    return namespace, name


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be KEY=VALUE")
    return key, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: must be a number of seconds up to 86400")
    return seconds
