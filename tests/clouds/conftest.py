"""Emulated clouds and a database server that tests share. One process for all; each test gets it as new."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clouds.aws.account import Account, ec2_client
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.aws_lab import Lab
from tests.clouds.azure.emulator import AzureEmulator
from tests.clouds.azure_lab import AzureLab
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.ibm.emulator import IbmEmulator
from tests.clouds.ibm_lab import IbmLab
from tests.lab.forkserver import ForkServer
from tests.ledger.postgresql import Server


@pytest.fixture(scope="session")
def aws_emulator() -> Iterator[AwsEmulator]:
    with AwsEmulator() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def ec2(aws_emulator: AwsEmulator) -> Iterator[Any]:
    client = ec2_client(aws_emulator.url)
    yield client
    client.close()


@pytest.fixture
def account(aws_emulator: AwsEmulator, ec2: Any) -> Account:
    """An empty account with three zones, on a clock that stands still."""
    aws_emulator.reset()
    aws_emulator.stop_clock()
    return Account(aws_emulator, ec2, aws_emulator.seed())


@pytest.fixture
def lab(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(account, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def proxy(account: Account) -> Iterator[FaultProxy]:
    """The way to the emulated EC2, whose clock runs and whose guests answer."""
    account.emulator.run_clock()
    with FakeGuests(account.emulator.url), FaultProxy(account.emulator.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def ibm_emulator() -> Iterator[IbmEmulator]:
    with IbmEmulator() as emulator:
        yield emulator


@pytest.fixture
def ibm(ibm_emulator: IbmEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[IbmLab]:
    """An empty account with three zones, on a clock that stands still."""
    ibm_emulator.reset()
    ibm_emulator.stop_clock()
    made = IbmLab(ibm_emulator, ibm_emulator.seed(), monkeypatch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def azure_emulator() -> Iterator[AzureEmulator]:
    with AzureEmulator() as emulator:
        yield emulator


@pytest.fixture
def azure(azure_emulator: AzureEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureLab]:
    """An empty resource group, on a clock that stands still."""
    azure_emulator.reset()
    azure_emulator.stop_clock()
    made = AzureLab(azure_emulator, azure_emulator.seed(), monkeypatch)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server for the whole run."""
    server = Server()
    yield server
    server.remove()


@pytest.fixture
def postgresql_ledger(postgresql: Server) -> str:
    """The URL of a ledger that nodes can share, with the schema in it, as an administrator makes it."""
    url = postgresql.url(postgresql.new_database())
    command = [sys.executable, "-m", "caa.cli.main", "db", "upgrade"]
    done = subprocess.run(command, env={**os.environ, "CAA_LEDGER_URL": url}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return url


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    """Starts services quickly."""
    with ForkServer() as forks:
        yield forks
