"""What is wrong with the configuration or the host, found without making anything."""

from __future__ import annotations

import os
from xml.etree import ElementTree as ET

import libvirt

from providers.base import InvalidRequestError, Problem
from providers.libvirt import storage
from providers.libvirt.errors import translate
from providers.libvirt.probe import Host, domain_capabilities, parse, probe, protects
from providers.libvirt.settings import LibvirtKeys, is_local


def problems(conn: libvirt.virConnect, keys: LibvirtKeys) -> list[Problem]:
    """All problems at once. Raises libvirtError only where libvirt itself fails."""
    found = [*_storage(conn, keys), *_network(conn, keys)]
    try:
        host = probe(conn, keys)
    except InvalidRequestError as error:
        return [*found, Problem("LIBVIRT_URI", str(error))]
    found += [*confidential(keys, host), *_acceleration(keys, host), *_firmware(conn, keys, host)]
    if host.arch == "s390x" and not keys.disable_cvm:
        found += unprotected(domain_capabilities(conn, host))
    return found


def confidential(keys: LibvirtKeys, host: Host) -> list[Problem]:
    """A pod that asked for a confidential VM must never silently get another."""
    found = []
    if keys.launch_security == "s390-pv" and host.arch != "s390x":
        found.append(Problem("LIBVIRT_LAUNCH_SECURITY", f"'s390-pv' needs an s390x host, and this one is {host.arch}"))
    if not keys.disable_cvm and host.arch != "s390x":
        found.append(
            Problem("DISABLECVM", f"false is not allowed: only s390x hosts run confidential VMs, not {host.arch}")
        )
    return found


def unprotected(described: ET.Element) -> list[Problem]:
    """Of an s390x host that is to run confidential VMs, by its domain capabilities."""
    if protects(described):
        return []
    return [
        Problem(
            "DISABLECVM",
            "false needs IBM Secure Execution, which the libvirt host does not offer (virsh domcapabilities: s390-pv); "
            "it takes the kernel argument prot_virt=1 on IBM z15, LinuxONE III or later",
        )
    ]


def _storage(conn: libvirt.virConnect, keys: LibvirtKeys) -> list[Problem]:
    key = "LIBVIRT_POOL"
    try:
        pool = conn.storagePoolLookupByName(keys.pool)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
            raise
        return [Problem(key, f"{str(translate(error, keys))[:500]}; allowed: {_names(conn.listAllStoragePools())}")]
    if not pool.isActive():
        return [Problem(key, f"the storage pool {keys.pool!r} is not active; `virsh pool-start {keys.pool}`")]
    kind = parse(pool.XMLDesc()).get("type", "")
    if kind not in storage.FILE_POOLS:
        return [Problem(key, f"{keys.pool!r} is of type {kind!r}; allowed: {', '.join(storage.FILE_POOLS)}")]
    try:
        storage.base_volume(pool, keys.vol_name)
    except InvalidRequestError as error:
        return [Problem("LIBVIRT_VOL_NAME", str(error), image_missing=error.reason == "ImageMissing")]
    return []


def _network(conn: libvirt.virConnect, keys: LibvirtKeys) -> list[Problem]:
    key = "LIBVIRT_NET"
    try:
        network = conn.networkLookupByName(keys.net)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        return [Problem(key, f"{str(translate(error, keys))[:500]}; allowed: {_names(conn.listAllNetworks())}")]
    if not network.isActive():
        return [Problem(key, f"the network {keys.net!r} is not active; `virsh net-start {keys.net}`")]
    if parse(network.XMLDesc()).find("ip/dhcp") is None:
        return [Problem(key, f"libvirt hands out no addresses on {keys.net!r}, so a pod VM's address cannot be known")]
    return []


def _acceleration(keys: LibvirtKeys, host: Host) -> list[Problem]:
    if keys.domain_type == "kvm" and not host.kvm:
        return [
            Problem(
                "LIBVIRT_DOMAIN_TYPE",
                "'kvm' cannot work: the libvirt host has no /dev/kvm, or its CPU has no vmx or svm flag; "
                "allowed: auto, qemu",
            )
        ]
    return []


def _firmware(conn: libvirt.virConnect, keys: LibvirtKeys, host: Host) -> list[Problem]:
    """The host lists the images it has descriptors for; any other path can be looked at only on this machine."""
    if host.arch != "x86_64" or not keys.efi_firmware:
        return []
    described = domain_capabilities(conn, host)
    listed = [value.text for value in described.findall("os/loader/value")]
    if keys.efi_firmware in listed or not is_local(keys.uri) or os.path.isfile(keys.efi_firmware):
        return []
    return [
        Problem(
            "LIBVIRT_EFI_FIRMWARE",
            f"{keys.efi_firmware!r} is no file on the libvirt host; it has: {', '.join(filter(None, listed))}",
        )
    ]


def _names(objects: list[libvirt.virNetwork] | list[libvirt.virStoragePool]) -> str:
    return ", ".join(sorted(o.name() for o in objects)) or "none, libvirt has none yet"
