"""The emulator as a process: it starts on a port of its own, forgets on demand, and never outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.process import ServerProcess

PATIENCE = 90.0
PARENT = """
import os, signal
from tests.clouds.aws.emulator import AwsEmulator
with AwsEmulator() as emulator:
    print(emulator.server.process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid: int) -> bool:
    """Whether that process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_emulators_know_nothing_of_each_other(account: Account) -> None:
    account.launch()
    with AwsEmulator() as other:
        assert other.port != account.emulator.port
        assert other.counters()["states"] == {}
        pid = other.server.process.pid
    assert not runs(pid)


def test_an_emulator_ends_with_a_test_that_was_killed() -> None:
    parent = subprocess.run([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    deadline = time.monotonic() + PATIENCE
    while runs(pid):
        assert time.monotonic() < deadline, f"emulator {pid} still runs"
        time.sleep(0.02)


def test_a_server_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(AssertionError, match="unrecognized arguments: --nonsense"),
        ServerProcess("tests.clouds.aws", ["--nonsense"]),
    ):
        pass


def test_reset_forgets_instances_tokens_conditions_and_counters(account: Account) -> None:
    emulator = account.emulator
    account.launch(ClientToken="a")
    emulator.capacity({})
    emulator.quota(on_demand=1)
    emulator.limits({"RunInstances": (1, 0)})
    emulator.delays(pending=5)
    emulator.staleness(seconds=5)
    emulator.page_size(3)
    emulator.reset()
    counters = emulator.counters()
    assert counters == {"calls": {}, "errors": {}, "states": {}, "tokens": {}, "interfaces": 0, "volumes": 0}
    account.seed = emulator.seed()
    ids = [account.launch(ClientToken="a"), *(account.launch() for _ in range(5))]
    assert [(one["InstanceId"], one["State"]["Name"]) for one in account.instances()] == [(x, "running") for x in ids]


def test_a_control_verb_that_is_wrong_fails_the_test(account: Account) -> None:
    with pytest.raises(AssertionError, match="no instance i-0"):
        account.emulator.end("i-0", "Server.InternalError")


def test_an_sdk_led_to_the_emulator_goes_nowhere_else(account: Account) -> None:
    code = "import boto3; print(boto3.client('ec2').describe_vpcs()['Vpcs'][-1]['VpcId'])"
    environ = {"PATH": os.environ["PATH"]} | account.emulator.environ()
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, timeout=PATIENCE, check=True
    )
    assert answer.stdout.decode().strip() == account.seed.vpc
