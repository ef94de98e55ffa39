"""Names of processes, such that another process on the machine can tell when one is gone for certain. Linux only."""

from __future__ import annotations

import os
from pathlib import Path


def holder(node: str) -> str:
    """This process's name. Two processes never have the same, on whatever machines and in whatever containers."""
    return f"{node}/{_world()}/{os.getpid()}-{_started(os.getpid())}"


def is_dead(name: str) -> bool:
    """Whether that process has ended. False when it is in another world, for then nothing is known of it."""
    _, world, process = name.rsplit("/", 2) if name.count("/") >= 2 else ("", "", "")
    pid, _, started = process.partition("-")
    return world == _world() and pid.isdigit() and _started(int(pid)) != started


def _world() -> str:
    """Within one boot of one kernel and one PID namespace a process id and its start time mean one process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """In clock ticks since the boot; "" when there is no such process, or none that still runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
