"""`caa health`: one question to the service or the agent proxy of this node, for an orchestrator's probes.

Both are asked over their unix sockets, which no probe over the network reaches. Probes run often, so this loads the
standard library alone. Exit codes: 0 it is; 1 it is not, and why; 3 nobody answers.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path

from caa.cli.main import UNREACHABLE, fail

# What is asked -> route of the REST interface.
ROUTES = {"ready": "/readyz", "live": "/livez", "started": "/startupz"}
# The answer needs neither ledger nor cloud. A probe's own limit is to be longer.
ANSWER_SECONDS = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its only argument."""
    parser.add_argument(
        "question",
        nargs="?",
        default="ready",
        choices=[*ROUTES, "proxy"],
        help="ready (the default): the service takes calls; live: it answers at all; started: it has finished "
        "starting; proxy: the agent proxy answers",
    )


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Ask."""
    run_dir = Path(environ.get("CAA_RUN_DIR", "").strip() or "/run/peerpod")
    if args.question == "proxy":
        return _ask_proxy(run_dir)
    api_socket = environ.get("CAA_API_SOCKET", "").strip() or str(run_dir / "caa.sock")
    try:
        status, body = _get(api_socket, ROUTES[args.question])
    except (OSError, http.client.HTTPException) as error:
        fail(f"no service answers on {api_socket} (CAA_API_SOCKET): {error}", UNREACHABLE)
    if status != 200:
        fail(_detail(body) or f"the service answers {status}")
    return 0


def _ask_proxy(run_dir: Path) -> int:
    from caa.agentproxy.control import ProxyControl
    from caa.ttrpc.frames import StatusError

    try:
        asyncio.run(asyncio.wait_for(ProxyControl(run_dir).version(), ANSWER_SECONDS))
    except (OSError, TimeoutError, StatusError) as error:
        fail(f"no agent proxy answers in {run_dir} (CAA_RUN_DIR): {error or 'it hangs'}", UNREACHABLE)
    return 0


def _get(path: str, route: str) -> tuple[int, bytes]:
    """Status and body. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("caa", timeout=ANSWER_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(ANSWER_SECONDS)
        connection.sock.connect(path)
        connection.request("GET", route)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _detail(body: bytes) -> str:
    """The sentence of an error's body, RFC 9457; "" if it is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    return str(found.get("detail", "")) if isinstance(found, dict) else ""
