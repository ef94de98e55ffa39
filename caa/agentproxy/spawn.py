"""How the control plane makes sure that `caa proxy` runs: in a process that outlives it, or kept by somebody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from caa.agentproxy.control import ProxyControl
from caa.ttrpc.frames import StatusError

# A Python process with few imports listens after about 0.2 s. A node that boots, with all its pods at once, may need
# many times that; and giving up sooner wins nothing, for a process that has ended is not waited for.
START_SECONDS = 30.0
POLL_SECONDS = 0.02
# One that somebody else starts comes from the same image on the same machine, so about when this process does.
OTHER_START_SECONDS = 60.0
OTHER_POLL_SECONDS = 0.25
LOG_NAME = "proxy.log"
PASSED_ON = frozenset({"PATH", "PYTHONPATH", "LANG", "TZ"})


async def ensure_proxy(run_dir: Path, state_dir: Path) -> None:
    """Return when a proxy answers; start one, detached, if none does. Raises OSError if it will not start.

    The new process has a session of its own and no pipe to this one, so nothing that happens here reaches it.
    """
    if await _answers(run_dir):
        return
    process = await asyncio.to_thread(_spawn, run_dir, state_dir)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if await _answers(run_dir):
            return
        if process.poll() not in (None, 0):  # 0: another one was quicker, which answers soon
            break
        await asyncio.sleep(POLL_SECONDS)
    raise OSError(f"the agent proxy did not start within {START_SECONDS:g} s; its log is {run_dir / LOG_NAME}")


async def await_proxy(run_dir: Path) -> None:
    """Return when a proxy answers that somebody else starts. Raises OSError if none does for OTHER_START_SECONDS."""
    deadline = time.monotonic() + OTHER_START_SECONDS
    while time.monotonic() < deadline:
        if await _answers(run_dir):
            return
        await asyncio.sleep(OTHER_POLL_SECONDS)
    raise OSError(
        f"no agent proxy answers in {run_dir} for {OTHER_START_SECONDS:g} s; with CAA_START_PROXY=false `caa proxy` "
        "must be run beside this service, with the same CAA_RUN_DIR"
    )


async def _answers(run_dir: Path) -> bool:
    try:
        await ProxyControl(str(run_dir)).version()
    except (OSError, TimeoutError, StatusError):
        return False
    return True


def _spawn(run_dir: Path, state_dir: Path) -> subprocess.Popen[bytes]:
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Not the whole environment: the cloud's credentials are in it, and the proxy needs none.
    environment = {key: value for key, value in os.environ.items() if key in PASSED_ON}
    with os.fdopen(os.open(run_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)) as output:
        return subprocess.Popen(
            [sys.executable, "-m", "caa.cli.main", "proxy"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment | {"CAA_RUN_DIR": str(run_dir), "CAA_STATE_DIR": str(state_dir)},
        )
