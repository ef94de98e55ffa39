"""What a service of one cloud loads and holds: that cloud's SDK and no other's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.azure_lab import AzureLab
from tests.clouds.ibm_lab import IbmLab
from tests.clouds.podworld import CLUSTER, NODE, service_directory, service_environ
from tests.lab.service import running_service

# Top-level modules of the SDKs, by provider.
SDKS = {
    "aws": {"boto3", "botocore"},
    "azure": {"azure", "msal"},
    "ibmcloud": {"ibm_vpc", "ibm_cloud_sdk_core", "ibm_boto3", "ibm_botocore"},
    "libvirt": {"libvirt", "pycdlib"},
}
# Resident memory of a service that is ready and idle.
MOST_MIB = {"aws": 150, "azure": 180, "ibmcloud": 165}
_IMPORT = re.compile(r"^import time:\s*\d+ \|\s*\d+ \|\s*([\w.]+)$", re.MULTILINE)


def aws(request: pytest.FixtureRequest) -> dict[str, str]:
    account: Account = request.getfixturevalue("account")
    return account.emulator.environ() | service_environ(account)


def ibmcloud(request: pytest.FixtureRequest) -> dict[str, str]:
    ibm: IbmLab = request.getfixturevalue("ibm")
    return ibm.environ() | {"CLOUD_PROVIDER": "ibmcloud", "CAA_CLUSTER_ID": CLUSTER, "NODE_NAME": NODE}


def azure(request: pytest.FixtureRequest) -> dict[str, str]:
    lab: AzureLab = request.getfixturevalue("azure")
    return lab.environ() | {"CLOUD_PROVIDER": "azure", "CAA_CLUSTER_ID": CLUSTER, "NODE_NAME": NODE}


@pytest.mark.parametrize("environ", [aws, azure, ibmcloud])
def test_a_service_loads_its_own_clouds_sdk_only_and_stays_small(
    request: pytest.FixtureRequest, environ: Callable[[pytest.FixtureRequest], dict[str, str]]
) -> None:
    name = environ.__name__
    # Python then writes each module it loads to standard error, which is the service's log.
    keys = environ(request) | {"PYTHONPROFILEIMPORTTIME": "1"}
    with service_directory() as directory, running_service(directory, keys) as service:
        modules = set(_IMPORT.findall(service.log_file.read_text()))
        assert service.process is not None
        resident = resident_mib(service.process.pid)
    loaded = {module.partition(".")[0] for module in modules}
    assert loaded & SDKS[name]
    others = set().union(*(modules for cloud, modules in SDKS.items() if cloud != name))
    assert not loaded & others
    assert not loaded & {"lightkube", "kopf"}
    assert not modules & {"opentelemetry.sdk", "opentelemetry.exporter"}  # FastAPI loads a part of the API itself
    assert resident <= MOST_MIB[name], f"{resident:.1f} MiB"
    print(f"{name}: {resident:.1f} MiB")


def resident_mib(pid: int) -> float:
    """Of a process, now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
