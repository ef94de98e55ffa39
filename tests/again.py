"""A second try, alone on the machine, for the few tests that failed: `pytest || python -m tests.again $?`.

Hundreds of tests here drive real processes against real time-outs, three at once on two cores. One that loses such a
race says nothing about a change. What fails again alone does, and so do failures by the dozen: they get no second try.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAILED = Path(".pytest_cache/v/cache/lastfailed")
MOST = 3  # of about 3,000: a fault of the code breaks more, or breaks again


def main(status: int) -> int:
    """The status of the second try, or the first one's where there is none."""
    failed = sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []
    if status != pytest.ExitCode.TESTS_FAILED or not 1 <= len(failed) <= MOST:
        return status
    print(f"failed, and tried again alone: {', '.join(failed)}", flush=True)
    again = subprocess.run([sys.executable, "-m", "pytest", *failed], check=False).returncode
    if again == pytest.ExitCode.OK:
        print(f"unsteady, to be mended: {', '.join(failed)}", flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
