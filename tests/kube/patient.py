"""`caa serve` that gives the API server more time to answer than a pod would be kept waiting for.

On a busy machine the times that the service keeps may pass for no reason of its own. What it does when they have passed
is the subject of other tests, which have them as they are.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.clouds.aws.account import Account
from tests.clouds.podworld import service_directory, service_environ
from tests.lab.service import ServiceProcess, running

SECONDS = 60.0
_ROOT = Path(__file__).parents[2]


class PatientService(ServiceProcess):
    """See `ServiceProcess`."""

    def start(self) -> None:
        with self.log_file.open("ab") as log:
            command = [sys.executable, "-m", "tests.kube.patient", "serve"]
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, cwd=_ROOT)


@contextlib.contextmanager
def patient_service(account: Account, url: str, **keys: str) -> Iterator[ServiceProcess]:
    """As `tests.clouds.podworld.pod_service`."""
    environ = account.emulator.environ(url) | service_environ(account, **keys)
    with service_directory() as directory, running(PatientService(directory, environ)) as service:
        yield service


def main() -> None:
    """In the process."""
    from caa.cli.main import main as caa
    from caa.kubernetes import answers, pullsecrets, reports

    answers.TIMEOUT_SECONDS = reports.BEFORE_LAUNCH_SECONDS = pullsecrets.SECONDS = SECONDS
    sys.exit(caa(sys.argv[1:]))


if __name__ == "__main__":
    main()
