"""The API server's stand-in beside an emulated EC2, and a service between both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.conftest import account, aws_emulator, ec2
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import NODE
from tests.kube.apiserver import KubeApiServer
from tests.kube.patient import patient_service
from tests.lab.service import ServiceProcess

__all__ = ["account", "aws_emulator", "ec2"]

# Guests of their own, so that these tests may run beside those of clouds.
PORT = 15152


@pytest.fixture(scope="package", autouse=True)
def _port_of_guests() -> Iterator[None]:
    """Each service that is started here takes it from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDER_PORT", str(PORT))
        yield


@pytest.fixture
def proxy(account: Account) -> Iterator[FaultProxy]:
    """The way to the emulated EC2, whose clock runs and whose guests answer."""
    account.emulator.run_clock()
    with FakeGuests(account.emulator.url, PORT), FaultProxy(account.emulator.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def api_server() -> Iterator[KubeApiServer]:
    with KubeApiServer() as server:
        yield server


@pytest.fixture
def kube(api_server: KubeApiServer) -> KubeApiServer:
    """An API server with the node and nothing else."""
    api_server.do("reset")
    capacity = {"cpu": "8", "memory": "32Gi"}
    node = {"metadata": {"name": NODE}, "status": {"capacity": capacity}}
    api_server.do("add", resource="nodes", namespace="", body=node)
    return api_server


@pytest.fixture
def service(account: Account, proxy: FaultProxy, kube: KubeApiServer) -> Iterator[ServiceProcess]:
    with patient_service(account, proxy.url, PEERPODS_LIMIT_PER_NODE="7", **kube.environ()) as service:
        yield service
