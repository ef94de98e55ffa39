"""What the host can do, read from libvirt's own capabilities, so that it is as true for a remote host."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import libvirt

from providers.base import InvalidRequestError
from providers.libvirt.settings import LibvirtKeys

log = logging.getLogger(__name__)

# The machine type of pod VMs, by architecture.
MACHINES = {"x86_64": "q35", "aarch64": "virt", "s390x": "s390-ccw-virtio"}
SUPPORTED_ARCHES = tuple(MACHINES)

# An x86 guest can only run on hardware virtualization when the CPU shows one of these. Some nested hosts have a
# /dev/kvm (so libvirt lists kvm) but a CPU without the flag; there every guest hangs in its firmware.
_X86_VIRTUALIZATION = frozenset({"vmx", "svm"})


@dataclass(frozen=True, slots=True)
class Host:
    """A libvirt host, as far as the domain's shape depends on it."""

    arch: str
    domain_type: str  # "kvm" or "qemu"
    kvm: bool  # whether hardware virtualization really works there


def parse(xml: str) -> ET.Element:
    """Parse XML that libvirt wrote. libvirt drops entities and document types, so expansion attacks have no way in."""
    return ET.fromstring(xml)  # noqa: S314


def probe(conn: libvirt.virConnect, keys: LibvirtKeys) -> Host:
    """Read the host. Raises libvirtError, and InvalidRequestError for an architecture without a known shape."""
    capabilities = parse(conn.getCapabilities())
    arch = capabilities.findtext("host/cpu/arch", "")
    if arch not in SUPPORTED_ARCHES:
        raise InvalidRequestError(
            "HostUnsupported", f"the libvirt host is {arch or 'of no known architecture'}; allowed: {SUPPORTED_ARCHES}"
        )
    types = {d.get("type") for g in capabilities.findall("guest") for d in g.findall(f"arch[@name='{arch}']/domain")}
    kvm = "kvm" in types and (arch != "x86_64" or _virtualization_flag(conn, capabilities))
    chosen = ("kvm" if kvm else "qemu") if keys.domain_type == "auto" else keys.domain_type
    if chosen == "qemu":
        log.warning("pod VMs are emulated (LIBVIRT_DOMAIN_TYPE=%s, KVM usable: %s): slow", keys.domain_type, kvm)
    return Host(arch, chosen, kvm)


def _virtualization_flag(conn: libvirt.virConnect, capabilities: ET.Element) -> bool:
    """The host CPU is described as a model plus features, and some models (AMD's) contain the flag: expand it."""
    cpu = capabilities.find("host/cpu")
    if cpu is None:
        return False
    if named_features(cpu) & _X86_VIRTUALIZATION:
        return True
    try:
        expanded = conn.baselineCPU(
            [ET.tostring(cpu, encoding="unicode")], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
        )
    except libvirt.libvirtError:
        return False  # a CPU that libvirt cannot name: its explicit features were all there is to go by
    return bool(named_features(parse(expanded)) & _X86_VIRTUALIZATION)


def protects(described: ET.Element) -> bool:
    """Whether a host runs IBM Secure Execution guests, as its domain capabilities have it."""
    feature = described.find("features/s390-pv")
    return feature is not None and feature.get("supported") == "yes"


def domain_capabilities(conn: libvirt.virConnect, host: Host) -> ET.Element:
    """What the host gives a domain of the shape that pod VMs have. Raises libvirtError."""
    return parse(conn.getDomainCapabilities(None, host.arch, MACHINES[host.arch], host.domain_type))


def named_features(cpu: ET.Element) -> frozenset[str]:
    """The CPU features that a <cpu> element requires."""
    return frozenset(
        f.get("name", "") for f in cpu.findall("feature") if f.get("policy", "require") not in ("disable", "forbid")
    )
