"""Entry of the pod VM's services: `python3 -m caa.guest.main forward|standin-agent`.

`forward` writes the files of the user data, touches WRITTEN, which the agent's unit waits for, and is the forwarder
from then on. One process, for starting Python takes longer than both tasks.

Each command imports its own part only. Exit codes: 0 done, 1 an error, told in one line, 2 wrong command.
"""

from __future__ import annotations

import sys
from pathlib import Path

from caa.guest.log import log

WRITTEN = Path("/run/peerpod/.written")


def _forward() -> None:
    from caa.guest.userdata import provision

    provision(_user_data())
    WRITTEN.touch()
    from caa.guest.forwarder import Forwarder

    Forwarder().run()


def _user_data() -> bytes:
    """From the ISO, if there is one; else from the metadata service of the cloud that the firmware names."""
    from caa.guest.imds import detect, fetch
    from caa.guest.seed import PATIENCE_SECONDS, mount_seed
    from caa.guest.userdata import SOURCE, read_source

    cloud = detect()
    # On a cloud an ISO is there with the VM or never.
    if mount_seed(SOURCE.parent, 0.0 if cloud else PATIENCE_SECONDS) or cloud is None:
        return read_source()
    return fetch(cloud)


def _standin_agent() -> None:
    from caa.guest.standin_agent import StandinAgent

    StandinAgent().run()


COMMANDS = {"forward": _forward, "standin-agent": _standin_agent}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    command = COMMANDS.get(arguments[0]) if len(arguments) == 1 else None
    if command is None:
        log(f"usage: python3 -m caa.guest.main {'|'.join(COMMANDS)}")
        return 2
    try:
        command()
    except Exception as error:  # the guest's last resort: systemd starts the service again
        log(f"{arguments[0]}: {error if _is_ours(error) else repr(error)}")
        return 1
    return 0


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.startswith("caa.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
