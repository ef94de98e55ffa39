"""What a service left on the libvirt host and on disk, looked for without asking the service."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from xml.etree import ElementTree

import libvirt

from providers.libvirt.domain import METADATA_URI, mac_address
from tests.lab.image import NETWORK, POOL, URI
from tests.lab.service import ServiceProcess


def domains(cluster: str) -> list[str]:
    """Names of all domains, running or not, that say they belong to this cluster."""
    return [name for name, _ in _owned(cluster)]


def owners(cluster: str) -> list[str]:
    """The sandbox ids that those domains say they belong to, one for each domain."""
    return [sandbox for _, sandbox in _owned(cluster)]


def volumes(prefixes: Iterable[str] = ("podvm-demo-", "podvm-test-")) -> list[str]:
    """Root disks and ISOs of pod VMs in the pool directory, from the file system itself."""
    connection = libvirt.open(URI)
    try:
        pool = connection.storagePoolLookupByName(POOL)
        pool.refresh()
        return sorted(v.name() for v in pool.listAllVolumes() if v.name().startswith(tuple(prefixes)))
    finally:
        connection.close()


def wait_for_lease(instance_id: str) -> str:
    """The address that the lab's network gave to an instance; waits for it, at most two minutes."""
    mac = mac_address(instance_id)
    connection = libvirt.open(URI)
    try:
        network = connection.networkLookupByName(NETWORK)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for lease in network.DHCPLeases(mac):
                return str(lease["ipaddr"])
            time.sleep(0.02)
    finally:
        connection.close()
    raise AssertionError(f"instance {instance_id} got no address within two minutes")


def leftovers(service: ServiceProcess) -> list[str]:
    """Domains, volumes and agent sockets that are still there."""
    pods = service.run_dir / "pods"
    sockets = [str(path) for path in pods.rglob("*")] if pods.exists() else []
    return domains(service.environ["CAA_CLUSTER_ID"]) + volumes() + sockets


def _owned(cluster: str) -> list[tuple[str, str]]:
    """Name and sandbox id of each domain of the cluster, read from the XML alone."""
    connection = libvirt.open(URI)
    found = []
    try:
        for domain in connection.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):  # gone since the listing
                record = next(
                    (
                        e.attrib
                        for e in ElementTree.fromstring(domain.XMLDesc()).iter()
                        if e.tag == f"{{{METADATA_URI}}}instance"
                    ),
                    None,
                )
                if record and record.get("cluster") == cluster:
                    found.append((domain.name(), record.get("sandbox-id", "")))
    finally:
        connection.close()
    return found
