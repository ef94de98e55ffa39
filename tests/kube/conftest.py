"""The API server's stand-in beside an emulated EC2, and a service between both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.conftest import account, aws_emulator, ec2, proxy
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import NODE, pod_service
from tests.kube.apiserver import KubeApiServer
from tests.lab.service import ServiceProcess

__all__ = ["account", "aws_emulator", "ec2", "proxy"]


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
    with pod_service(account, proxy.url, PEERPODS_LIMIT_PER_NODE="7", **kube.environ()) as service:
        yield service
