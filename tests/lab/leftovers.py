"""What a service left on the libvirt host and on disk, looked for without asking the service."""

from __future__ import annotations

from collections.abc import Iterable

import libvirt

from tests.lab.image import POOL, URI
from tests.lab.service import ServiceProcess


def domains(cluster: str) -> list[str]:
    """Names of all domains, running or not, that say they belong to this cluster."""
    connection = libvirt.open(URI)
    try:
        return [d.name() for d in connection.listAllDomains() if _owned(d, cluster)]
    finally:
        connection.close()


def volumes(prefixes: Iterable[str] = ("podvm-demo-", "podvm-test-")) -> list[str]:
    """Root disks and ISOs of pod VMs in the pool directory, from the file system itself."""
    connection = libvirt.open(URI)
    try:
        pool = connection.storagePoolLookupByName(POOL)
        pool.refresh()
        return sorted(v.name() for v in pool.listAllVolumes() if v.name().startswith(tuple(prefixes)))
    finally:
        connection.close()


def leftovers(service: ServiceProcess) -> list[str]:
    """Domains, volumes and agent sockets that are still there."""
    pods = service.run_dir / "pods"
    sockets = [str(path) for path in pods.rglob("*")] if pods.exists() else []
    return domains(service.environ["CAA_CLUSTER_ID"]) + volumes() + sockets


def _owned(domain: libvirt.virDomain, cluster: str) -> bool:
    try:
        return (
            f">{cluster}<" in domain.XMLDesc()
            or f'"{cluster}"' in domain.XMLDesc()
            or f"'{cluster}'" in domain.XMLDesc()
        )
    except libvirt.libvirtError:
        return False
