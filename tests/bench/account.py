"""What benches of the AWS path stand on: an account of the emulated EC2, and files enough to open."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator

from tests.clouds.aws.account import Account, ec2_client
from tests.clouds.aws.emulator import AwsEmulator

# A service and its proxy hold a caller's connection, a listener and two links for each sandbox.
FILES_FOR_EACH, FILES_FOR_ALL = 8, 256


@contextlib.contextmanager
def emulated_account() -> Iterator[Account]:
    """A new emulator with a seeded account on a running clock."""
    with AwsEmulator() as emulator:
        ec2 = ec2_client(emulator.url)
        try:
            emulator.run_clock()
            yield Account(emulator, ec2, emulator.seed())
        finally:
            ec2.close()


def allow_files(count: int) -> None:
    """Raise this process's limit of open files, which its children inherit, to what `count` sandboxes take."""
    wanted = FILES_FOR_ALL + FILES_FOR_EACH * count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.exit(f"{count} sandboxes need {wanted} open files; the hard limit here is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
