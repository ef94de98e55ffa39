"""The pod VM has Python and nothing of ours beside the guest's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2]


def test_the_pod_vms_side_stands_on_the_standard_library() -> None:
    # Without site-packages, so an import from there fails.
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import caa.podnetwork.podvm\n"
        "print(*sorted(name for name in sys.modules if name.startswith('caa.')))"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "caa.podnetwork",
        "caa.podnetwork.config",
        "caa.podnetwork.discovery",
        "caa.podnetwork.errors",
        "caa.podnetwork.iproute",
        "caa.podnetwork.notrack",
        "caa.podnetwork.podplan",
        "caa.podnetwork.podvm",
    ]
