"""The libvirt keys, with the incumbent's names and defaults."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from providers.keys import Flag, Keys

_CPUSET = re.compile(r"(\d+(-\d+)?)(,\d+(-\d+)?)*")
_URI = re.compile(r"qemu(\+[a-z0-9]+)?://[^\s]+")


def _cpuset(value: str) -> str:
    if value and not _CPUSET.fullmatch(value):
        raise ValueError('must be a list of host CPUs such as "0-3" or "0,2,4-7"')
    return value


def _uri(value: str) -> str:
    if not _URI.fullmatch(value):
        raise ValueError('must be a QEMU URI such as "qemu:///system" or "qemu+ssh://root@host/system"')
    return value


def _object_name(value: str) -> str:
    # A name with a slash is a path to libvirt's tools and is refused by libvirt itself, but only at first use.
    if "/" in value or not value.isprintable():
        raise ValueError('must be a name without "/"')
    return value


ObjectName = Annotated[str, AfterValidator(_object_name)]


class LibvirtKeys(Keys):
    """Everything the libvirt provider reads."""

    # Where running VMs are, where the left-overs of launches are looked for, and whose leases give addresses.
    needs_restart: ClassVar[frozenset[str]] = frozenset({"LIBVIRT_URI", "LIBVIRT_POOL", "LIBVIRT_NET"})
    secret: ClassVar[frozenset[str]] = frozenset({"LIBVIRT_URI"})

    uri: Annotated[str, AfterValidator(_uri)] = Field(
        "qemu+ssh://root@192.168.122.1/system?no_verify=1",
        alias="LIBVIRT_URI",
        description="Where libvirt runs.",
    )
    pool: ObjectName = Field(
        "default", alias="LIBVIRT_POOL", description="Storage pool for the disks: a directory or a mounted file system."
    )
    net: ObjectName = Field(
        "default",
        alias="LIBVIRT_NET",
        description="Network of the pod VMs. libvirt must hand out its addresses: they are read from its leases.",
    )
    vol_name: ObjectName = Field(
        "podvm-base.qcow2", alias="LIBVIRT_VOL_NAME", description="Volume in the pool that pod VMs boot from, qcow2."
    )
    launch_security: Literal["", "s390-pv"] = Field(
        "",
        alias="LIBVIRT_LAUNCH_SECURITY",
        description='Confidential computing type; "" chooses by the host. Used only with DISABLECVM=false.',
    )
    efi_firmware: str = Field(
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        alias="LIBVIRT_EFI_FIRMWARE",
        description="UEFI code image on the libvirt host (x86_64).",
    )
    cpu: int = Field(2, alias="LIBVIRT_CPU", ge=1, le=1024, description="Default vCPUs.")
    # Below 256 MiB no kernel with a UEFI firmware starts; 16 TiB is more than QEMU's machine types take.
    memory: int = Field(8192, alias="LIBVIRT_MEMORY", ge=256, le=16 * 1024 * 1024, description="Default memory, MiB.")
    cpuset: Annotated[str, AfterValidator(_cpuset)] = Field(
        "", alias="LIBVIRT_CPUSET", description='Host CPUs that pod VMs may run on; "" is all.'
    )
    root_disk_size: int = Field(
        10,
        alias="LIBVIRT_ROOT_DISK_SIZE",
        ge=1,
        le=65536,
        description="Size of the root disk in GiB; never smaller than the base volume.",
    )
    disable_cvm: Flag = Field(True, alias="DISABLECVM", description="false asks for confidential VMs.")
    domain_type: Literal["auto", "kvm", "qemu"] = Field(
        "auto",
        alias="LIBVIRT_DOMAIN_TYPE",
        description='"auto" takes KVM where the host\'s CPU really offers it, else emulation ("qemu", slow).',
    )


def shown_uri(uri: str) -> str:
    """The URI as it may appear in messages: without a password."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=user.partition(":")[0] + at + host).geturl() if at else uri


def is_local(uri: str) -> bool:
    """Whether libvirt runs where this process runs (so that its file system can be looked at)."""
    return not urlsplit(uri).netloc


KEYS = LibvirtKeys
