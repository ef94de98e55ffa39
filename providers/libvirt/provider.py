"""The libvirt provider: pod VMs as domains of one libvirt host.

Exactly once: the domain's UUID comes from the launch token and its name from the request. The domain is defined
first and undefined last, so whatever a crash leaves behind, `instances` lists it with its owner. In between
come the two volumes, then a paused start, the `started` mark, and the first instruction of the guest.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import libvirt

from providers.base import (
    ApiClass,
    Instance,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    Offering,
    OwnerScope,
    Problem,
    ProviderError,
    Rate,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.keys import read_keys
from providers.libvirt import checks, storage
from providers.libvirt.connection import Connections, alive
from providers.libvirt.domain import (
    METADATA_PREFIX,
    METADATA_URI,
    Disks,
    Record,
    domain_uuid,
    domain_xml,
    mac_address,
    plain_record,
    read_record,
    root_volume,
    seed_volume,
)
from providers.libvirt.errors import is_transport, lost, translate, unreachable
from providers.libvirt.probe import Host, probe
from providers.libvirt.seed import seed_iso
from providers.libvirt.settings import LibvirtKeys, shown_uri

log = logging.getLogger(__name__)

# All sizes are one type.
_TYPE = "libvirt"
# libvirt's domain states. A paused domain with the mark was halted from outside (by an operator, a full disk) and may
# go on.
_STATES = {
    libvirt.VIR_DOMAIN_SHUTDOWN: InstanceState.STOPPED,
    libvirt.VIR_DOMAIN_SHUTOFF: InstanceState.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: InstanceState.FAILED,
}


class _KeyedLock:
    """A lock per instance id, forgotten when nobody holds or awaits it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
            self._users[key] += 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                self._users[key] -= 1
                if not self._users[key]:
                    del self._users[key], self._locks[key]


def create(environ: Mapping[str, str]) -> LibvirtProvider:
    """Build the provider from its keys. Raises ConfigError. Nothing is asked of libvirt yet."""
    return LibvirtProvider(read_keys(LibvirtKeys, environ))


class LibvirtProvider:
    """One libvirt host as a cloud. Keeps connections, the host's description and immutable owner records."""

    name = "libvirt"
    watch_interval = 0.2  # a local daemon: one listing takes a few milliseconds
    lag = 0.0
    terminate_batch = 1  # they are ended side by side, one thread each
    limits: Mapping[ApiClass, Rate] = MappingProxyType({})  # a local daemon counts nobody's calls
    user_data_limit = 256 << 10  # an ISO holds any size; our guest reads no more than this

    # Shared by all providers of the process: one that was exchanged for another may have a launch under way still.
    _busy = _KeyedLock()
    # libvirt reads the whole pool anew after each upload, and may then miss a volume that is just being made.
    _pool_lock = threading.Lock()

    def __init__(self, keys: LibvirtKeys, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._keys = keys
        self._clock = clock
        self._connections = Connections(keys)
        self._host: Host | None = None
        self._records: dict[str, Record | None] = {}  # by UUID; None: not ours

    @property
    def account(self) -> str:
        """One host is one account."""
        return f"libvirt/{shown_uri(self._keys.uri)}"

    @property
    def default_type(self) -> str:
        """The one there is."""
        return _TYPE

    @property
    def default_image(self) -> str:
        """LIBVIRT_VOL_NAME."""
        return self._keys.vol_name

    def image_arch(self, image: str) -> str:
        """A volume does not tell; whoever put it into the pool made it for this host."""
        return ""

    def offerings(self) -> Sequence[Offering]:
        """One offering of any size."""
        with self._calls(changes=False) as conn:
            arch = self._probe(conn).arch
        keys = self._keys
        return (Offering(_TYPE, "", keys.cpu, keys.memory, arch=arch, flexible=True),)

    def launch(self, request: LaunchRequest) -> Instance:
        """Make the domain, or take over what an earlier call of the same request left. See the module's order."""
        instance_id = domain_uuid(request.token)
        with self._busy.hold(instance_id):
            with self._calls(changes=False) as conn:
                plan = None if self._exists(conn, request) else self._plan(conn, request)
            if plan is not None:
                with self._calls(changes=True) as conn:
                    conn.defineXML(plan)
            return self._complete(request, instance_id)

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """Two calls for all domains, and one more for each domain not seen before."""
        with self._calls(changes=False) as conn:
            flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            rows = [
                (domain, domain.UUIDString(), stats.get("state.state", libvirt.VIR_DOMAIN_NOSTATE))
                for domain, stats in conn.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, flags)
            ]
            addresses = self._addresses(conn)
            found = []
            for domain, instance_id, state in rows:
                record = self._record(domain, instance_id, state)
                if record and (record.owner.cluster, record.owner.node) == (scope.cluster, scope.node):
                    found.append(_instance(domain.name(), instance_id, state, record, addresses))
            for gone in set(self._records).difference(row[1] for row in rows):
                self._records.pop(gone, None)
            return found

    def describe(self, instance_id: str) -> Mapping[str, Any]:
        """Its name, size in MiB, MAC address, image's volume and network; libvirt has no description in JSON."""
        with self._calls(changes=False) as conn:
            domain = _lookup(conn, instance_id)
            record = None if domain is None else _read(domain)
            if domain is None or record is None:
                raise MissingError("InstanceMissing", f"libvirt has no domain {instance_id}")
            _, most_kib, _, vcpus, _ = domain.info()
            return {
                "uuid": instance_id,
                "name": domain.name(),
                "vcpus": vcpus,
                "memory_mib": most_kib // 1024,
                "mac": mac_address(instance_id),
                "image": self._keys.vol_name,
                "network": self._keys.net,
                "created_at": record.created_at.isoformat(),
            }

    def terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        """Destroy, delete the volumes, undefine last; one after the other."""
        failed = {}
        for instance_id in instance_ids:
            try:
                self._terminate(instance_id)
            except ProviderError as error:
                failed[instance_id] = error
        return failed

    def _terminate(self, instance_id: str) -> None:
        with self._busy.hold(instance_id), self._calls(changes=True) as conn:
            domain = _lookup(conn, instance_id)
            if domain is None:
                raise MissingError("InstanceMissing", f"libvirt has no domain {instance_id}")
            record = _read(domain)
            if record is None:
                raise InvalidRequestError("NotOurs", f"the domain {instance_id} was not made by this service")
            self._remove(conn, domain, domain.name(), record.pool)

    def discard(self, request: LaunchRequest) -> None:
        """The same by computed UUID and name, also when the domain is not there but its volumes are."""
        instance_id = domain_uuid(request.token)
        with self._busy.hold(instance_id), self._calls(changes=True) as conn:
            domain = _lookup(conn, instance_id)
            if domain is None:
                if _lookup_name(conn, request.name) is None:  # else name and volumes belong to another launch
                    self._remove(conn, None, request.name, self._keys.pool)
            elif record := _read(domain):
                self._remove(conn, domain, request.name, record.pool)

    def check(self) -> list[Problem]:
        """Everything that can be seen to be wrong, all at once."""
        try:
            with self._calls(changes=False) as conn:
                return checks.problems(conn, self._keys)
        except UnavailableError as error:
            return [Problem("LIBVIRT_URI", str(error))]

    def shortages(self) -> list[Problem]:
        """Nothing: libvirt has no quotas."""
        return []

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def _exists(self, conn: libvirt.virConnect, request: LaunchRequest) -> bool:
        if _lookup(conn, domain_uuid(request.token)) is not None:
            return True
        if _lookup_name(conn, request.name) is not None:
            raise InvalidRequestError(
                "NameTaken", f"libvirt has another domain named {request.name!r}, made by another launch or by hand"
            )
        return False

    def _plan(self, conn: libvirt.virConnect, request: LaunchRequest) -> str:
        """The domain's XML. Looks at what the launch needs, so that most refusals come before anything is made."""
        host = self._probe(conn)
        for problem in checks.confidential(self._keys, host):
            raise InvalidRequestError("ConfidentialUnsupported", f"{problem.key}: {problem.message}")
        pool = conn.storagePoolLookupByName(self._keys.pool)
        storage.base_volume(pool, request.image or self._keys.vol_name)
        path = storage.pool_path(pool)
        disks = Disks(f"{path}/{root_volume(request.name)}", f"{path}/{seed_volume(request.name)}")
        record = Record(request.owner, self._keys.pool, self._clock())
        return domain_xml(request, self._keys, host, disks, record)

    def _complete(self, request: LaunchRequest, instance_id: str) -> Instance:
        """Volumes and start. A refusal here is undone before it is told: after it nothing may be left."""
        try:
            with self._calls(changes=True) as conn:
                domain = conn.lookupByUUIDString(instance_id)
                record = _read(domain)
                if record is None:
                    raise InvalidRequestError("NotOurs", f"the domain {instance_id} was not made by this service")
                if not record.started and not domain.isActive():
                    self._volumes(conn, request, record)
                return _start(domain, record, instance_id)
        except UnknownOutcomeError:
            raise
        except Exception:
            try:
                self._undo(request, instance_id)
            except Exception as left:
                raise UnknownOutcomeError(
                    "CleanupFailed", f"{request.name!r} failed and could not be removed: {left}"
                ) from left
            raise

    def _undo(self, request: LaunchRequest, instance_id: str) -> None:
        with self._calls(changes=True) as conn:
            domain = _lookup(conn, instance_id)
            record = _read(domain) if domain is not None else None
            if record is None:
                return
            if record.started:  # the guest may run: only its owner may end it
                raise UnknownOutcomeError("StartUncertain", f"{request.name!r} may have started")
            self._remove(conn, domain, request.name, record.pool)

    def _volumes(self, conn: libvirt.virConnect, request: LaunchRequest, record: Record) -> None:
        pool = conn.storagePoolLookupByName(record.pool)
        base = storage.base_volume(pool, request.image or self._keys.vol_name)
        content = seed_iso(request.name, request.user_data)
        with self._pool_lock:
            storage.ensure_overlay(pool, root_volume(request.name), base, self._keys.root_disk_size * storage.GIB)
            storage.ensure_seed(conn, pool, seed_volume(request.name), content)

    def _remove(self, conn: libvirt.virConnect, domain: libvirt.virDomain | None, name: str, pool_name: str) -> None:
        if domain is not None:
            _ignoring(domain.destroy, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN)
        try:
            pool = conn.storagePoolLookupByName(pool_name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                raise
            # Somebody took the pool away from libvirt, and with it the way to anything that may still be in it.
            log.warning("the storage pool %r is gone: volumes of %r in it cannot be deleted", pool_name, name)
        else:
            with self._pool_lock:
                storage.delete(pool, root_volume(name))
                storage.delete(pool, seed_volume(name))
        if domain is not None:
            flags = libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            _ignoring(lambda: domain.undefineFlags(flags), libvirt.VIR_ERR_NO_DOMAIN)

    def _addresses(self, conn: libvirt.virConnect) -> dict[str, tuple[str, ...]]:
        """IPv4 addresses by MAC, the newest lease first: initrd and system may have asked under two client ids."""
        try:
            leases = conn.networkLookupByName(self._keys.net).DHCPLeases()
        except libvirt.libvirtError as error:
            # A network that is gone or down has no leases; `check` says so. The listing must go on.
            if error.get_error_code() in (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_OPERATION_INVALID):
                return {}
            raise
        found: dict[str, tuple[str, ...]] = {}
        for lease in sorted(leases, key=lambda lease: -lease["expirytime"]):
            if lease["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4 and lease["mac"]:
                found[lease["mac"]] = (*found.get(lease["mac"], ()), lease["ipaddr"])
        return found

    def _record(self, domain: libvirt.virDomain, instance_id: str, state: int) -> Record | None:
        """The owner record, read once; again only where the mark decides and was not there yet."""
        if instance_id in self._records:
            known = self._records[instance_id]
            if known is None or known.started or state == libvirt.VIR_DOMAIN_RUNNING:
                return known
        try:
            record = _read(domain)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None  # gone since the listing
            raise
        self._records[instance_id] = record
        return record

    def _probe(self, conn: libvirt.virConnect) -> Host:
        if self._host is None:
            self._host = probe(conn, self._keys)
        return self._host

    @contextlib.contextmanager
    def _calls(self, *, changes: bool) -> Iterator[libvirt.virConnect]:
        """A stretch of libvirt calls. A connection lost in one that changes things leaves the outcome unknown."""
        with self._connections.borrow() as conn:
            try:
                yield conn
            except libvirt.libvirtError as error:
                if is_transport(error) or not alive(conn):
                    raise (lost if changes else unreachable)(self._keys, error) from error
                raise translate(error, self._keys) from error


def _start(domain: libvirt.virDomain, record: Record, instance_id: str) -> Instance:
    """Start paused, mark, run. Each step can be repeated, and the guest runs only after the mark is on disk."""
    if not domain.isActive():
        if record.started:
            return _instance(domain.name(), instance_id, libvirt.VIR_DOMAIN_SHUTOFF, record, {})
        try:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError:
            if not domain.isActive():  # else an earlier, interrupted call's start came through first
                raise
    if not record.started:
        record = record.marked()
        both = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        domain.setMetadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, plain_record(record), METADATA_PREFIX, METADATA_URI, both
        )
    if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    return _instance(domain.name(), instance_id, domain.state()[0], record, {})


def _instance(
    name: str, instance_id: str, state: int, record: Record, addresses: dict[str, tuple[str, ...]]
) -> Instance:
    # Without the mark the guest never ran: the launch is still under way, or must be repeated or discarded. A guest
    # that runs has the mark by now, even if `record` was read before.
    begun = record.started or state == libvirt.VIR_DOMAIN_RUNNING
    meaning = _STATES.get(state, InstanceState.RUNNING) if begun else InstanceState.PENDING
    return Instance(
        id=instance_id,
        name=name,
        state=meaning,
        owner=record.owner,
        addresses=addresses.get(mac_address(instance_id), ()),
        instance_type="libvirt",
        created_at=record.created_at,
    )


def _lookup(conn: libvirt.virConnect, instance_id: str) -> libvirt.virDomain | None:
    return _absent_is_none(lambda: conn.lookupByUUIDString(instance_id))


def _lookup_name(conn: libvirt.virConnect, name: str) -> libvirt.virDomain | None:
    return _absent_is_none(lambda: conn.lookupByName(name))


def _absent_is_none(look: Callable[[], libvirt.virDomain]) -> libvirt.virDomain | None:
    try:
        return look()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _read(domain: libvirt.virDomain) -> Record | None:
    """The record of a domain; None when the domain is not ours."""
    try:
        return read_record(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_URI))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    except ValueError:
        log.warning("the domain %s has metadata of ours that cannot be read; it is left alone", domain.name())
        return None


def _ignoring(call: Callable[[], object], *codes: int) -> None:
    try:
        call()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
