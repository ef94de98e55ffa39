"""Rules that keep the tunnel out of connection tracking. Standard library only: worker and pod VM use them.

The chains, their names and the comment that marks a tunnel's rules are the incumbent's. iptables is run through its
save and restore tools: one run reads all, one run changes all of it at once or nothing.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from caa.podnetwork.errors import PodNetworkError

TABLE = "raw"  # the only one that is passed before connection tracking
OUTPUT_CHAIN, PREROUTING_CHAIN = "peerpod-OUTPUT", "peerpod-PREROUTING"
_JUMPS = {OUTPUT_CHAIN: "OUTPUT", PREROUTING_CHAIN: "PREROUTING"}
# Another process may change the table between reading and writing; then all is read again.
_TRIES = 5
# Seconds to wait for another holder of the lock of iptables' older back end, and for the tools themselves.
_LOCK_SECONDS = 10
_RUN_SECONDS = 60

_lock = threading.Lock()


class _Rule(NamedTuple):
    """What one rule does, whichever back end wrote it and in whatever order."""

    chain: str
    source: str
    destination: str
    port: str
    comment: str
    no_track: bool


class _Table(NamedTuple):
    chains: frozenset[str]
    lines: tuple[str, ...]
    """Every rule, as `-A chain ...`."""

    def has(self, line: str) -> bool:
        return line in self.lines

    def rules_of(self, chain: str) -> list[str]:
        return [line for line in self.lines if line.split()[1] == chain]


def ensure_notrack(tunnel_id: int, remote: str, port: int) -> None:
    """Have exactly the two rules of this tunnel; what is right stays untouched. Raises PodNetworkError."""

    def changes(table: _Table) -> list[str]:
        lines: list[str] = []
        for chain, jump_from in _JUMPS.items():
            if chain not in table.chains:
                lines.append(f"-N {chain}")
            if not table.has(f"-A {jump_from} -j {chain}"):
                lines.append(f"-I {jump_from} 1 -j {chain}")
        missing = {
            _Rule(OUTPUT_CHAIN, "", remote, str(port), _comment(tunnel_id), True),
            _Rule(PREROUTING_CHAIN, remote, "", str(port), _comment(tunnel_id), True),
        }
        for line in _marked(table, tunnel_id):
            rule = _parse(line)
            if rule in missing:
                missing.discard(rule)
            else:
                lines.append(_delete(line))
        return lines + [_write(rule) for rule in sorted(missing)]

    _change(changes)


def remove_notrack(tunnel_id: int) -> None:
    """Have no rule of this tunnel, and no chain without rules. Raises PodNetworkError."""
    _change(lambda table: [_delete(line) for line in _marked(table, tunnel_id)])
    # Refused when somebody adds a rule to a chain that was empty a moment ago; it stays then.
    with suppress(_Refused):
        _change(_without_empty_chains, tries=1)


def _without_empty_chains(table: _Table) -> list[str]:
    lines = []
    for chain, jump_from in _JUMPS.items():
        if chain in table.chains and not table.rules_of(chain):
            jump = f"-A {jump_from} -j {chain}"
            lines += [_delete(jump)] * table.lines.count(jump)
            lines.append(f"-X {chain}")
    return lines


def _comment(tunnel_id: int) -> str:
    return f"peerpod [vni:{tunnel_id}]"


def _marked(table: _Table, tunnel_id: int) -> list[str]:
    comment = _comment(tunnel_id)
    return [line for chain in _JUMPS for line in table.rules_of(chain) if _parse(line).comment == comment]


def _delete(line: str) -> str:
    return "-D" + line.removeprefix("-A")


def _write(rule: _Rule) -> str:
    match = f"-d {rule.destination}/32" if rule.destination else f"-s {rule.source}/32"
    return f'-A {rule.chain} {match} -p udp -m comment --comment "{rule.comment}" -m udp --dport {rule.port} -j NOTRACK'


def _parse(line: str) -> _Rule:
    words = shlex.split(line)
    after = dict(pairwise(words))
    return _Rule(
        chain=words[1],
        source=after.get("-s", "").removesuffix("/32"),
        destination=after.get("-d", "").removesuffix("/32"),
        port=after.get("--dport", "") if after.get("-p") == "udp" else "",
        comment=after.get("--comment", ""),
        # The older back end writes the target as it implements it.
        no_track=after.get("-j") == "NOTRACK" or (after.get("-j") == "CT" and "--notrack" in words),
    )


class _Refused(PodNetworkError):
    """iptables did not take a change, of which nothing was done then."""


def _change(changes: Callable[[_Table], list[str]], tries: int = _TRIES) -> None:
    """Write what `changes` asks for, given the table as it is."""
    with _lock:
        while True:
            tries -= 1
            lines = changes(_read())
            if not lines:
                return
            try:
                _run("iptables-restore", f"*{TABLE}\n" + "\n".join(lines) + "\nCOMMIT\n")
                return
            except _Refused:
                if tries <= 0:
                    raise


def _read() -> _Table:
    lines = _run("iptables-save").splitlines()
    chains = frozenset(line[1:].split()[0] for line in lines if line.startswith(":"))
    return _Table(chains, tuple(line for line in lines if line.startswith("-A ")))


_COMMANDS = {
    "iptables-save": ["iptables-save", "-t", TABLE],
    # Without --noflush it would replace the whole table.
    "iptables-restore": ["iptables-restore", "--noflush", "--wait", str(_LOCK_SECONDS)],
}


def _run(tool: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(
            _COMMANDS[tool],
            input=text,
            capture_output=True,
            # Comments of other programs' rules may be in any encoding.
            encoding="utf-8",
            errors="surrogateescape",
            timeout=_RUN_SECONDS,
        )
    except FileNotFoundError:
        raise PodNetworkError(f"{tool} is not installed; the tunnel's rules need it") from None
    except OSError as error:
        raise PodNetworkError(f"{tool} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise PodNetworkError(f"{tool} did not end within {_RUN_SECONDS} s") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise _Refused(f"{tool}: {reason}")
    return done.stdout
