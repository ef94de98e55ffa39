"""The domain: its identity, its XML, and the owner record inside it. Pure.

Everything is derived from the launch request, so that any later process finds the same domain, volumes and
MAC address without having recorded them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from xml.etree import ElementTree as ET

from providers.base import LaunchRequest, Owner
from providers.libvirt.probe import MACHINES, Host, parse
from providers.libvirt.settings import LibvirtKeys

METADATA_URI = "urn:peerpod-cloud-adaptor:instance:1"
METADATA_PREFIX = "peerpod"

# Fixed for ever: another value would give every recorded token another domain.
_UUID_SPACE = uuid.UUID("4c6f1d0e-8a3b-5e57-9b1c-2f6d0a7e9d41")

ET.register_namespace(METADATA_PREFIX, METADATA_URI)


@dataclass(frozen=True, slots=True)
class Record:
    """What the domain says of itself in its metadata.

    `started` is written while the guest is still paused, before its first instruction. So a stopped domain without the
    mark never ran and may be started, and one with the mark may have run and must not run again.
    """

    owner: Owner
    pool: str  # where its volumes are, whatever LIBVIRT_POOL says later
    created_at: datetime
    started: bool = False

    def marked(self) -> Record:
        """The same, started."""
        return replace(self, started=True)


@dataclass(frozen=True, slots=True)
class Disks:
    """Paths on the libvirt host. The domain names files, not volumes, because AppArmor's helper knows only files."""

    root: str
    seed: str


def domain_uuid(token: str) -> str:
    """The domain's UUID, and so the instance id, of a launch token."""
    return str(uuid.uuid5(_UUID_SPACE, token))


def root_volume(name: str) -> str:
    """The incumbent's name for the root overlay."""
    return f"{name}-root.qcow2"


def seed_volume(name: str) -> str:
    """The incumbent's name for the seed."""
    return f"{name}-cloudinit.iso"


def mac_address(instance_id: str) -> str:
    """QEMU's prefix and 24 bits of the UUID. Known before the VM exists, so leases need no look at the domain."""
    tail = uuid.UUID(instance_id).bytes[-3:]
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + tail)


def record_element(record: Record) -> ET.Element:
    """The metadata element."""
    owner = record.owner
    attributes = {
        "cluster": owner.cluster,
        "node": owner.node,
        "sandbox-id": owner.sandbox_id,
        "pod-namespace": owner.pod_namespace,
        "pod-name": owner.pod_name,
        "attempt": str(owner.attempt),
        "pool": record.pool,
        "created-at": record.created_at.isoformat(),
        "started": "yes" if record.started else "no",
    }
    return ET.Element(f"{{{METADATA_URI}}}instance", attributes)


def plain_record(record: Record) -> str:
    """The metadata element without namespace, as libvirt's setMetadata wants it (it adds prefix and URI itself)."""
    element = record_element(record)
    element.tag = "instance"
    return ET.tostring(element, encoding="unicode")


def read_record(xml: str) -> Record:
    """Read the metadata element back. Raises ValueError when it is not one of ours."""
    element = parse(xml)

    def text(key: str) -> str:
        value = element.get(key)
        if value is None:
            raise ValueError(f"the metadata has no {key}")
        return value

    owner = Owner(
        cluster=text("cluster"),
        node=text("node"),
        sandbox_id=text("sandbox-id"),
        pod_namespace=text("pod-namespace"),
        pod_name=text("pod-name"),
        attempt=int(text("attempt")),
    )
    return Record(owner, text("pool"), datetime.fromisoformat(text("created-at")), text("started") == "yes")


def domain_xml(request: LaunchRequest, keys: LibvirtKeys, host: Host, disks: Disks, record: Record) -> str:
    """The whole domain. The shape follows the host's architecture; sizes come from the request's offering."""
    instance_id = domain_uuid(request.token)
    domain = ET.Element("domain", {"type": host.domain_type})
    _add(domain, "name", text=request.name)
    _add(domain, "uuid", text=instance_id)
    _add(domain, "metadata").append(record_element(record))
    _add(domain, "memory", text=str(request.offering.memory_mib), unit="MiB")
    vcpu = _add(domain, "vcpu", text=str(request.offering.vcpus), placement="static")
    if keys.cpuset:
        vcpu.set("cpuset", keys.cpuset)
    _machine(domain, keys, host)
    _add(domain, "clock", offset="utc")
    # A pod VM that powers itself off is over. The definition stays, so that `instances` can say so.
    _add(domain, "on_poweroff", text="destroy")
    _add(domain, "on_reboot", text="restart")
    _add(domain, "on_crash", text="destroy")
    _devices(_add(domain, "devices"), keys, host, disks, mac_address(instance_id))
    if wants_protected_virtualization(keys, host):
        _add(domain, "launchSecurity", type="s390-pv")
    return ET.tostring(domain, encoding="unicode")


def wants_protected_virtualization(keys: LibvirtKeys, host: Host) -> bool:
    """Secure Execution is the one confidential type this provider knows. Any other wish is refused before."""
    return not keys.disable_cvm and host.arch == "s390x"


def _machine(domain: ET.Element, keys: LibvirtKeys, host: Host) -> None:
    system = _add(domain, "os")
    _add(system, "type", text="hvm", arch=host.arch, machine=MACHINES[host.arch])
    if host.arch == "aarch64":
        system.set("firmware", "efi")  # libvirt picks the host's image; LIBVIRT_EFI_FIRMWARE names an x86 one
    elif host.arch == "x86_64" and keys.efi_firmware:
        # Stateless: UEFI variables live in memory. Nothing in a pod VM outlives it, and no NVRAM file can be left over.
        _add(system, "loader", text=keys.efi_firmware, readonly="yes", type="pflash", stateless="yes")
    _add(system, "boot", dev="hd")
    if host.arch != "s390x":
        _add(_add(domain, "features"), "acpi")
    if (host.domain_type, host.arch) == ("qemu", "x86_64"):
        # x86-64-v2, which some distributions need. Measured on the lab's image, one boot each, until the agent answers:
        # 11.6 s, with Nehalem (v2 too) 12.0, with "maximum" 12.5.
        cpu = _add(domain, "cpu", mode="custom", match="exact")
        _add(cpu, "model", text="qemu64")
        for feature in ("ssse3", "sse4.1", "sse4.2", "popcnt"):
            _add(cpu, "feature", policy="require", name=feature)
    elif host.domain_type == "qemu":
        _add(domain, "cpu", mode="maximum")
    else:
        _add(domain, "cpu", mode="host-passthrough" if host.arch == "aarch64" else "host-model")


def _devices(devices: ET.Element, keys: LibvirtKeys, host: Host, disks: Disks, mac: str) -> None:
    mainframe = host.arch == "s390x"
    # Secure Execution guests can only share what goes through the IOMMU; harmless without it.
    iommu = {"iommu": "on"} if mainframe else {}

    root = _add(devices, "disk", type="file", device="disk")
    # Nothing of a pod VM survives its host, so no flush is worth waiting for.
    _add(root, "driver", name="qemu", type="qcow2", cache="unsafe", discard="unmap", **iommu)
    _add(root, "source", file=disks.root)
    # virtio, where the incumbent has sata: one exit a request instead of many, and every image has the driver.
    _add(root, "target", dev="vda", bus="virtio")

    seed = _add(devices, "disk", type="file", device="cdrom" if host.arch == "aarch64" else "disk")
    _add(seed, "driver", name="qemu", type="raw", **iommu)
    _add(seed, "source", file=disks.seed)
    # On x86_64 not the usual SATA CD: its controller and reader need drivers that cloud kernels leave out, and time.
    # A guest that mounts /dev/disk/by-label/cidata finds it all the same.
    seed_targets = {"x86_64": ("vdb", "virtio"), "aarch64": ("sda", "scsi"), "s390x": ("vdb", "virtio")}
    device, bus = seed_targets[host.arch]
    _add(seed, "target", dev=device, bus=bus)
    _add(seed, "readonly")
    if bus == "scsi":
        _add(devices, "controller", type="scsi", model="virtio-scsi")

    nic = _add(devices, "interface", type="network")
    _add(nic, "mac", address=mac)
    _add(nic, "source", network=keys.net)
    _add(nic, "model", type="virtio")
    _add(nic, "rom", enabled="no")  # it is never booted from
    if iommu:
        _add(nic, "driver", **iommu)

    # A pty only: a log file would stay on the host after the VM, and guests write secrets to consoles.
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="sclp" if mainframe else "serial")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", model="random", text="/dev/urandom")
    if iommu:
        _add(rng, "driver", **iommu)
    # Devices that libvirt adds by itself, and that a pod VM only loses boot time with.
    _add(devices, "memballoon", model="none")
    if not mainframe:
        _add(devices, "controller", type="usb", model="none")


def _add(parent: ET.Element, tag: str, /, *, text: str = "", **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    if text:
        element.text = text
    return element
