"""The one command, `caa`. Only the module of the subcommand that was asked for is loaded.

Exit codes: 0 done; 1 refused or failed, with the reason on stderr; 2 wrong use; 3 the service cannot be reached.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol, cast

FAILED, USAGE, UNREACHABLE = 1, 2, 3
INTERRUPTED = 130  # what shells report for an end by SIGINT


class Command(Protocol):
    """A module with subcommands of its own."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare subcommands and options."""
        ...

    def run(self, args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        """Do it; returns the exit code."""
        ...


# Commands that are modules of this package: name -> (module, what it is for).
MODULES = {
    "sandbox": ("caa.cli.sandbox", "list, show, create, start and stop sandboxes"),
    "explain": ("caa.cli.explain", "which instance a pod would get, and why not another one"),
    "audit": ("caa.cli.audit", "what differs between ledger and cloud, and the trail of events"),
    "image": ("caa.cli.image", "the image that pod VMs boot"),
    "health": ("caa.cli.health", "whether the service or the agent proxy of this node is well, for probes"),
    "db": ("caa.cli.db", "prepare and inspect the ledger's database"),
    "webhook": ("caa.cli.webhook", "size peer pods as they are admitted (on Kubernetes)"),
    "controller": ("caa.cli.controller", "install on the nodes that a KataConfig chooses (on Kubernetes)"),
    "config": ("caa.cli.config", "check, show and describe the configuration"),
}
# They ask the service of this node, and of the configuration need its socket at most.
CLIENTS = frozenset({"sandbox", "explain", "audit"})
COMMANDS = {
    "serve": "run the service of this worker node",
    "proxy": "run the agent proxy of this worker node (started by `caa serve` where none runs)",
    **{name: summary for name, (_, summary) in MODULES.items()},
    "version": "show the version",
}


class Parser(argparse.ArgumentParser):
    """argparse that guesses what was meant, and takes no abbreviations: they break when options are added."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"there is no {str(value)!r}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: reads the command line, returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has enough. Nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    match args.command:
        case "serve":
            from caa.service import run

            return run(os.environ)
        case "proxy":
            from caa.agentproxy.main import run as run_proxy

            environ = _environment(watched=False)  # it must start without the API server
            run_dir = _directory(environ, "CAA_RUN_DIR", "/run/peerpod")
            return run_proxy(run_dir, _directory(environ, "CAA_STATE_DIR", "/var/lib/caa"))
        case "version":
            import caa

            print(caa.__version__)
            return 0
        case name:
            # The command that tells what is wrong with the configuration must not end because of it.
            return _module(name).run(args, os.environ if name == "config" else _environment(needed=name not in CLIENTS))


def _parser(command: str) -> argparse.ArgumentParser:
    parser = Parser(prog="caa", description="Cloud API adaptor for Kata Containers peer pods.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command and name in MODULES:
            _module(name).add_arguments(subparser)
    return parser


def _module(name: str) -> Command:
    return cast(Command, importlib.import_module(MODULES[name][0]))


def _environment(*, watched: bool = True, needed: bool = True) -> dict[str, str]:
    """The process's environment with the ConfigMap and the Secret over it, mounted or `watched`.

    Where the latter are not `needed`, it does without while the API server is away.
    """
    from caa.configplaces import environment
    from caa.sources import Sources
    from providers.base import ConfigError

    try:
        if watched:
            with contextlib.nullcontext() if needed else contextlib.suppress(ConfigError):
                return environment(os.environ)
        return Sources(os.environ).read().over(os.environ)
    except ConfigError as error:
        fail(str(error))


def _directory(environ: Mapping[str, str], key: str, default: str) -> str:
    """Read without `caa.settings`, whose libraries the proxy does not carry; by the same rules."""
    value = environ.get(key, "").strip() or default
    if not value.startswith("/"):
        fail(f"{key}: {value!r} is not allowed: must be an absolute path")
    return value


def clear_up_on_sigterm() -> None:
    """From now on SIGTERM ends the command like an error does, so that it removes what is half done."""

    def end(_signal: int, _frame: object) -> NoReturn:
        raise SystemExit(FAILED)

    signal.signal(signal.SIGTERM, end)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say what is wrong and end."""
    print(f"caa: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
