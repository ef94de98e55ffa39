"""What a bench says: one JSON object a line, each with its bound where there is one, and the exit code they make."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

# As asyncio's debug mode writes it: every callback that kept the event loop busy for 100 ms or more.
_SLOW = re.compile(r"\basyncio\b.*\bExecuting (.*) took (\d+\.\d+) seconds")


class Report:
    """Prints as it goes. `exit_code` is 1 once a bound was broken."""

    def __init__(self) -> None:
        self.exit_code = 0

    def line(self, measure: str, value: float, unit: str = "", *, at_most: float | None = None, **more: object) -> None:
        """One figure. Above `at_most` it is also named on stderr."""
        kept = at_most is None or value <= at_most
        bound = {} if at_most is None else {"at_most": round(at_most, 3), "kept": kept}
        print(json.dumps({"measure": measure, "value": round(value, 3), "unit": unit, **bound, **more}), flush=True)
        if not kept:
            self.exit_code = 1
            print(
                f"broken bound: {measure} is {value:.3f} {unit}, more than {at_most:.3f}", file=sys.stderr, flush=True
            )


def peak_rss(pid: int) -> int:
    """The most memory a running process ever held, in bytes."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found, f"process {pid} has ended"
    return int(found[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Processor time a running process has had, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """How long a process's main thread was ready to run and had no processor: what others on the machine cost it."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9


def slow_callbacks(log_file: Path, start: int = 0) -> list[tuple[float, str]]:
    """(seconds, callback) of each callback over 100 ms that a service run with PYTHONASYNCIODEBUG=1 logged, the worst
    first, in what it wrote from byte `start` on.
    """
    found = _SLOW.findall(log_file.read_bytes()[start:].decode(errors="replace"))
    return sorted(((float(seconds), callback[:200]) for callback, seconds in found), reverse=True)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
