"""What a second process does in these tests: `python -m tests.ledger.child VERB`, with the URL on standard input."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count

from caa.ledger import StaleWriteError, open_ledger, upgrade
from tests.ledger.samples import attempt, event, sandbox, starting


def write_for_ever(url: str) -> None:
    """Record sandboxes with an attempt each; print each id once its commits were acknowledged."""
    ledger = open_ledger(url)
    for number in count():
        sandbox_id = f"sb-{number}"
        row = starting(ledger, sandbox_id)
        ledger.add_attempt(attempt(sandbox_id), sandbox_version=row.version, event=event(sandbox_id))
        print(sandbox_id, flush=True)


def count_up(url: str, rounds: int = 60) -> None:
    """Write the one shared sandbox `rounds` times, by reading again whenever another was first."""
    ledger = open_ledger(url)
    won = lost = 0
    while won < rounds:
        row = ledger.sandbox("shared")
        assert row is not None
        try:
            ledger.save_sandbox(replace(row, failure=str(won)), event=event("shared"))
            won += 1
        except StaleWriteError:
            lost += 1
    print(won, lost, flush=True)


def main() -> None:
    """Run one verb."""
    url = sys.stdin.readline().strip()
    verb = sys.argv[1]
    if verb == "write":
        write_for_ever(url)
    elif verb == "count":
        count_up(url)
    elif verb == "upgrade":
        print(upgrade(url), flush=True)
    else:
        open_ledger(url).add_sandbox(sandbox(verb))


if __name__ == "__main__":
    main()
