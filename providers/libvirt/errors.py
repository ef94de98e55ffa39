"""libvirt's error codes as the contract's errors: one table."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import libvirt

from providers.base import (
    CapacityError,
    DeniedError,
    InvalidRequestError,
    ProviderError,
    Scope,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.libvirt.settings import LibvirtKeys, shown_uri

ANY = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row: what a libvirt error means. The sentence may name any key by its field."""

    error: type[ProviderError]
    reason: str
    sentence: str


_DENIED = Meaning(
    DeniedError, "AccessDenied", "libvirt at LIBVIRT_URI={uri} refuses this user; allow it in libvirt's configuration"
)
_REFUSED = Meaning(InvalidRequestError, "HypervisorRefused", "libvirt at LIBVIRT_URI={uri} refused the domain")
_POOL_FULL = Meaning(CapacityError, "PoolFull", "the storage pool LIBVIRT_POOL={pool} has no space left")
_POOL_DENIED = Meaning(
    DeniedError, "PoolDenied", "libvirt may not write to the storage pool LIBVIRT_POOL={pool}; see its file system"
)
_NO_MEMORY = Meaning(CapacityError, "HostMemory", "the libvirt host has not enough memory for the pod VM")

# (libvirt error code, libvirt error domain or ANY) -> meaning. The row with the domain wins.
_TABLE: dict[tuple[int, int | None], Meaning] = {
    (libvirt.VIR_ERR_AUTH_FAILED, ANY): _DENIED,
    (libvirt.VIR_ERR_AUTH_CANCELLED, ANY): _DENIED,
    (libvirt.VIR_ERR_AUTH_UNAVAILABLE, ANY): _DENIED,
    (libvirt.VIR_ERR_ACCESS_DENIED, ANY): _DENIED,
    (libvirt.VIR_ERR_OPERATION_DENIED, ANY): _DENIED,
    (libvirt.VIR_ERR_NO_NETWORK, ANY): Meaning(
        InvalidRequestError, "NetworkMissing", "LIBVIRT_NET={net} is no network of this libvirt; see `virsh net-list`"
    ),
    (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_NETWORK): Meaning(
        UnavailableError, "NetworkInactive", "the network LIBVIRT_NET={net} is not active; `virsh net-start {net}`"
    ),
    (libvirt.VIR_ERR_NO_STORAGE_POOL, ANY): Meaning(
        InvalidRequestError, "PoolMissing", "LIBVIRT_POOL={pool} is no storage pool of this libvirt"
    ),
    (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_STORAGE): Meaning(
        UnavailableError,
        "PoolInactive",
        "the storage pool LIBVIRT_POOL={pool} is not active; `virsh pool-start {pool}`",
    ),
    (libvirt.VIR_ERR_NO_STORAGE_VOL, ANY): Meaning(
        UnknownOutcomeError, "VolumeVanished", "a volume in LIBVIRT_POOL={pool} vanished during the call"
    ),
    (libvirt.VIR_ERR_NO_DOMAIN, ANY): Meaning(
        UnknownOutcomeError, "DomainVanished", "the domain vanished during the call"
    ),
    (libvirt.VIR_ERR_OPERATION_TIMEOUT, ANY): Meaning(
        UnknownOutcomeError, "LibvirtBusy", "libvirt at LIBVIRT_URI={uri} is still busy with the domain"
    ),
    (libvirt.VIR_ERR_NO_MEMORY, ANY): _NO_MEMORY,
    (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, ANY): _REFUSED,
    (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, ANY): _REFUSED,
    (libvirt.VIR_ERR_OPERATION_FAILED, ANY): _REFUSED,
    (libvirt.VIR_ERR_XML_ERROR, ANY): _REFUSED,
    (libvirt.VIR_ERR_XML_DETAIL, ANY): _REFUSED,
    (libvirt.VIR_ERR_INVALID_ARG, ANY): _REFUSED,
    (libvirt.VIR_ERR_INTERNAL_ERROR, ANY): _REFUSED,  # among others: QEMU's own refusal to start
    (libvirt.VIR_ERR_SYSTEM_ERROR, ANY): _REFUSED,
}

# What libvirt tells apart only in its text: QEMU's and qemu-img's refusals, and a call that is still at work for a
# process that died meanwhile.
_BY_TEXT = (
    ("No space left on device", _POOL_FULL),
    ("Cannot allocate memory", _NO_MEMORY),
    (
        "still being allocated",
        Meaning(
            UnknownOutcomeError, "VolumeBusy", "an earlier call is still making a volume in LIBVIRT_POOL={pool}; repeat"
        ),
    ),
)

# What the file system of a pool says to a daemon that may not write there.
_NO_WRITING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# Errors of the way to libvirt, not of libvirt.
_TRANSPORT = frozenset({libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_SSH, libvirt.VIR_FROM_LIBSSH})


def is_transport(error: libvirt.libvirtError) -> bool:
    """Whether the connection failed rather than the call."""
    return error.get_error_domain() in _TRANSPORT and error.get_error_code() in (
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_NO_CONNECT,
    )


def translate(error: libvirt.libvirtError, keys: LibvirtKeys) -> ProviderError:
    """The contract's error for an answer of libvirt. What is in no row says nothing of the outcome."""
    code, domain, said = error.get_error_code(), error.get_error_domain(), str(error)
    meaning = _TABLE.get((code, domain)) or _TABLE.get((code, ANY))
    if error.get_int1() == errno.ENOSPC and code == libvirt.VIR_ERR_SYSTEM_ERROR:
        meaning = _POOL_FULL
    if error.get_int1() in _NO_WRITING and (code, domain) == (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE):
        meaning = _POOL_DENIED
    for text, row in _BY_TEXT:
        if text in said:
            meaning = row
    if meaning is None:
        return UnknownOutcomeError("LibvirtError", f"libvirt at LIBVIRT_URI={shown_uri(keys.uri)} failed: {said}")
    values = {"uri": shown_uri(keys.uri), "pool": keys.pool, "net": keys.net}
    sentence = f"{meaning.sentence.format(**values)} (libvirt: {said})"
    if meaning is _POOL_FULL:  # no size of VM fits there
        return CapacityError(meaning.reason, sentence, Scope.ZONE)
    return meaning.error(meaning.reason, sentence)


def unreachable(keys: LibvirtKeys, why: object) -> UnavailableError:
    """libvirt could not be asked at all."""
    return UnavailableError("LibvirtUnreachable", f"LIBVIRT_URI={shown_uri(keys.uri)} cannot be reached: {why}")


def lost(keys: LibvirtKeys, why: object) -> UnknownOutcomeError:
    """The connection broke after something may have been done."""
    return UnknownOutcomeError("ConnectionLost", f"LIBVIRT_URI={shown_uri(keys.uri)} broke off in a call: {why}")
