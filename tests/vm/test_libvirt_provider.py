"""The libvirt provider against a real libvirt. No guest needs to boot: the base volume is an empty image."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET

import libvirt
import pytest

from providers.base import (
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    OwnerScope,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.libvirt import connection
from providers.libvirt.domain import domain_uuid, root_volume, seed_volume
from providers.libvirt.images import has_base_volume, upload_base_volume
from providers.libvirt.provider import LibvirtProvider
from providers.libvirt.settings import LibvirtKeys
from tests.vm.libvirt_launch_child import request
from tests.vm.libvirt_relay import Cut, Relay

HOST = Path(__file__).parents[1] / "lab" / "host.sh"
CHILD = Path(__file__).with_name("libvirt_launch_child.py")
CLUSTER = f"caa-test-{os.getpid()}"
SCOPE = OwnerScope(CLUSTER, "node-1")
BASE = "caa-test-base.qcow2"
_numbers = itertools.count(1)
T = TypeVar("T")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("libvirtd"), reason="needs root and libvirt-daemon-system"
)


class Lab:
    """A pool of our own on the real libvirt, and a look at it that does not go through the provider."""

    def __init__(self, conn: libvirt.virConnect, pool: libvirt.virStoragePool, directory: Path) -> None:
        self.conn, self.pool, self.directory = conn, pool, directory
        self.environ = {
            "LIBVIRT_URI": "qemu:///system",
            "LIBVIRT_POOL": pool.name(),
            "LIBVIRT_VOL_NAME": BASE,
            "LIBVIRT_EFI_FIRMWARE": "",  # a BIOS without boot disk stops quietly; UEFI would keep a core busy
            "LIBVIRT_ROOT_DISK_SIZE": 1,
        }

    def keys(self, **changed: object) -> LibvirtKeys:
        return LibvirtKeys.model_validate(self.environ | changed)

    def new(self, **changed: str | bytes) -> LaunchRequest:
        number = next(_numbers)
        return request(f"caa-test-{os.getpid()}-{number}", f"token-{os.getpid()}-{number}", **changed)  # type: ignore[arg-type]

    def domains(self) -> list[str]:
        return sorted(d.name() for d in self.conn.listAllDomains() if d.name().startswith(f"caa-test-{os.getpid()}-"))

    def volumes(self) -> list[str]:
        return sorted(set(self.pool.listVolumes()) - {BASE})

    def files(self) -> list[str]:
        return sorted(set(os.listdir(self.directory)) - {BASE})


def qcow2(path: Path, size: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), size], check=True)
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    subprocess.run([str(HOST), "up"], check=True, capture_output=True)
    # Not under pytest's directory: QEMU's own user must be able to go there.
    directory = Path(f"/var/lib/libvirt/caa-test-{os.getpid()}")
    directory.mkdir(mode=0o711)
    connection._start_event_loop()
    conn = libvirt.open("qemu:///system")
    name = f"caa-test-{os.getpid()}"
    pool = conn.storagePoolDefineXML(
        f"<pool type='dir'><name>{name}</name><target><path>{directory}</path></target></pool>"
    )
    pool.create()
    lab = Lab(conn, pool, directory)
    upload_base_volume(lab.keys(), qcow2(tmp_path_factory.mktemp("base") / "b.qcow2", "2G"))
    yield lab
    for domain in conn.listAllDomains():
        if domain.name().startswith(f"{name}-"):
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    pool.destroy()
    pool.undefine()
    conn.close()
    shutil.rmtree(directory)


def end(provider: LibvirtProvider, instance_id: str) -> None:
    """Terminate what must be there."""
    assert provider.terminate([instance_id]) == {}


@pytest.fixture
def provider(lab: Lab) -> Iterator[LibvirtProvider]:
    provider = LibvirtProvider(lab.keys())
    yield provider
    for instance in provider.instances(SCOPE):
        end(provider, instance.id)
    provider.close()
    assert lab.domains() == []
    assert lab.volumes() == []
    assert lab.files() == []


def test_launching_twice_makes_one_domain_and_terminating_twice_leaves_nothing(
    lab: Lab, provider: LibvirtProvider
) -> None:
    wanted = lab.new()
    first, second = provider.launch(wanted), provider.launch(wanted)
    assert first == second
    assert first.id == domain_uuid(wanted.token)
    assert first.owner == wanted.owner
    assert first.state is InstanceState.RUNNING
    assert first.created_at is not None
    assert first.created_at.tzinfo is not None
    assert lab.domains() == [wanted.name]
    assert lab.volumes() == [seed_volume(wanted.name), root_volume(wanted.name)]
    assert provider.instances(SCOPE) == [first]
    end(provider, first.id)
    assert isinstance(provider.terminate([first.id])[first.id], MissingError)
    assert (lab.domains(), lab.volumes(), provider.instances(SCOPE)) == ([], [], [])


def test_what_libvirt_runs_is_what_was_asked_for(lab: Lab, provider: LibvirtProvider) -> None:
    wanted = lab.new(user_data=b"#cloud-config\nsecret-key\n")
    provider.launch(wanted)
    domain = lab.conn.lookupByName(wanted.name)
    xml = ET.fromstring(domain.XMLDesc())
    assert xml.findtext("vcpu") == "1"
    assert domain.maxMemory() == 256 * 1024
    assert xml.get("type") == ("kvm" if has_virtualization() else "qemu")
    root = ET.fromstring(lab.pool.storageVolLookupByName(root_volume(wanted.name)).XMLDesc())
    assert root.findtext("backingStore/path") == str(lab.directory / BASE)
    assert root.findtext("capacity") == str(2 << 30)  # the base volume's, which is more than the key's 1 GiB
    seed = lab.directory / seed_volume(wanted.name)
    assert b"secret-key" in seed.read_bytes()
    assert seed.stat().st_mode & 0o077 == 0
    assert "secret-key" not in domain.XMLDesc()


def has_virtualization() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return Path("/dev/kvm").exists() and ("vmx" in flags or "svm" in flags)


def test_a_pod_vm_that_stopped_is_never_started_again(lab: Lab, provider: LibvirtProvider) -> None:
    wanted = lab.new()
    provider.launch(wanted)
    lab.conn.lookupByName(wanted.name).destroy()
    assert provider.launch(wanted).state is InstanceState.STOPPED
    assert [i.state for i in provider.instances(SCOPE)] == [InstanceState.STOPPED]
    assert not lab.conn.lookupByName(wanted.name).isActive()


def test_a_name_that_another_domain_has_is_refused_and_left_alone(lab: Lab, provider: LibvirtProvider) -> None:
    wanted = lab.new()
    provider.launch(wanted)
    other = request(wanted.name, "another-token")
    with pytest.raises(InvalidRequestError) as caught:
        provider.launch(other)
    assert caught.value.reason == "NameTaken"
    provider.discard(other)
    assert [i.state for i in provider.instances(SCOPE)] == [InstanceState.RUNNING]
    assert len(lab.volumes()) == 2


def test_only_the_owners_instances_are_listed(lab: Lab, provider: LibvirtProvider) -> None:
    mine, other = lab.new(), lab.new(node="node-2")
    provider.launch(mine)
    theirs = provider.launch(other)
    assert [i.name for i in provider.instances(SCOPE)] == [mine.name]
    assert [i.name for i in provider.instances(OwnerScope(CLUSTER, "node-2"))] == [other.name]
    assert provider.instances(OwnerScope("another", "node-1")) == []
    end(provider, theirs.id)


def test_a_foreign_domain_is_not_terminated(lab: Lab, provider: LibvirtProvider) -> None:
    name = f"caa-test-{os.getpid()}-foreign"
    domain = lab.conn.defineXML(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
    )
    try:
        refused = provider.terminate([domain.UUIDString()])[domain.UUIDString()]
        assert (type(refused), refused.reason) == (InvalidRequestError, "NotOurs")
        assert name in lab.domains()
    finally:
        domain.undefine()


def test_discard_removes_what_is_there_and_is_content_with_nothing(lab: Lab, provider: LibvirtProvider) -> None:
    never, launched, volumes_only = lab.new(), lab.new(), lab.new()
    provider.discard(never)
    provider.launch(launched)
    provider.discard(launched)
    provider.discard(launched)
    provider.launch(volumes_only)
    domain = lab.conn.lookupByName(volumes_only.name)
    domain.destroy()
    domain.undefine()
    assert isinstance(provider.terminate([gone := domain_uuid(volumes_only.token)])[gone], MissingError)
    provider.discard(volumes_only)
    assert (lab.domains(), lab.volumes()) == ([], [])


def test_a_refusal_by_qemu_leaves_nothing(lab: Lab) -> None:
    broken = LibvirtProvider(lab.keys(LIBVIRT_EFI_FIRMWARE="/nowhere/firmware.fd"))
    with pytest.raises(InvalidRequestError) as caught:
        broken.launch(lab.new())
    assert "/nowhere/firmware.fd" in str(caught.value)
    assert (lab.domains(), lab.volumes(), lab.files()) == ([], [], [])
    missing = LibvirtProvider(lab.keys(LIBVIRT_NET="nowhere"))
    with pytest.raises(InvalidRequestError, match="LIBVIRT_NET=nowhere"):
        missing.launch(lab.new())
    assert (lab.domains(), lab.volumes(), lab.files()) == ([], [], [])
    broken.close()
    missing.close()


def test_an_unknown_image_is_refused_before_anything_is_made(lab: Lab, provider: LibvirtProvider) -> None:
    wanted = lab.new()
    unknown = LaunchRequest(
        wanted.name, wanted.token, wanted.owner, wanted.offering, wanted.user_data, image="caa-test-none.qcow2"
    )
    with pytest.raises(InvalidRequestError, match=r"caa-test-none\.qcow2") as caught:
        provider.launch(unknown)
    assert caught.value.reason == "ImageMissing"
    assert lab.domains() == []


def test_twenty_launches_at_once_make_twenty_domains_and_the_same_request_ten_times_makes_one(
    lab: Lab, provider: LibvirtProvider
) -> None:
    wanted = [lab.new() for _ in range(20)]
    same = lab.new()
    began = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        launched = list(pool.map(provider.launch, wanted + [same] * 10))
    took = time.monotonic() - began
    assert len({i.id for i in launched}) == 21
    assert len(lab.domains()) == 21
    assert len(lab.volumes()) == 42
    began = time.monotonic()
    listed = provider.instances(SCOPE)
    listing = time.monotonic() - began
    assert {i.state for i in listed} == {InstanceState.RUNNING}
    assert len(listed) == 21
    began = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda i: end(provider, i), {i.id for i in launched}))
    print(f"21 launches {took:.2f} s, listing {listing * 1000:.0f} ms, terminations {time.monotonic() - began:.2f} s")
    assert (lab.domains(), lab.volumes(), lab.files()) == ([], [], [])


def settled(call: Callable[[LaunchRequest], T], wanted: LaunchRequest) -> T:
    """Repeat while libvirt is still at work for the killed process, as the service does."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return call(wanted)
        except UnknownOutcomeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("ending", ["launch", "discard"])
def test_a_launch_killed_at_any_moment_can_be_repeated_or_discarded(
    lab: Lab, provider: LibvirtProvider, ending: str
) -> None:
    rounds = random.Random(ending)
    trial = lab.new()
    began = time.monotonic()
    provider.launch(trial)
    usual = time.monotonic() - began
    provider.discard(trial)
    finished = 0
    for _ in range(15):
        wanted = lab.new()
        arguments = [sys.executable, str(CHILD), json.dumps(lab.environ), wanted.name, wanted.token, CLUSTER]
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
        ) as p:
            assert p.stdout is not None
            assert p.stdout.readline() == "go\n"
            time.sleep(rounds.uniform(0, usual))  # the random moment is the test
            p.kill()
            finished += p.stdout.read() == "done\n"
        if ending == "launch":
            assert settled(provider.launch, wanted).state is InstanceState.RUNNING
            assert lab.domains() == [wanted.name]
            assert lab.volumes() == [seed_volume(wanted.name), root_volume(wanted.name)]
        settled(provider.discard, wanted)
        assert (lab.domains(), lab.volumes(), lab.files()) == ([], [], [])
    assert finished < 15  # else nothing was interrupted


# Which messages of a call are lost, one after the other: all take a minute for a launch.
EVERY = {Cut.REPLY: 1, Cut.REQUEST: 1} if os.environ.get("CAA_SOAK") else {Cut.REPLY: 3, Cut.REQUEST: 5}


@pytest.mark.parametrize("cut", Cut)
def test_a_connection_lost_at_any_message_of_a_launch_loses_nothing(
    lab: Lab, provider: LibvirtProvider, cut: Cut, tmp_path: Path
) -> None:
    reasons: dict[str, int] = {}
    # A lost reply leaves libvirt where the next lost request finds it.
    for at in itertools.count(1, EVERY[cut]):
        wanted = lab.new()
        relay = Relay(tmp_path / f"{at}", at, cut)
        through = LibvirtProvider(lab.keys(LIBVIRT_URI=relay.uri))
        try:
            through.launch(wanted)
        except UnavailableError:
            assert lab.domains() == [], f"message {at}: 'certainly did nothing', but it did"
        except UnknownOutcomeError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
        else:
            if relay.messages < at:
                provider.discard(wanted)
                break  # the whole launch takes fewer messages
        finally:
            through.close()
            relay.close()
        assert {i.name for i in provider.instances(SCOPE)} == set(lab.domains())
        assert lab.domains() or not lab.volumes(), f"message {at}: volumes that nothing lists"
        assert provider.launch(wanted).state is InstanceState.RUNNING, f"message {at}"
        assert lab.domains() == [wanted.name]
        provider.discard(wanted)
        assert (lab.domains(), lab.volumes()) == ([], [])
    assert at > 15
    assert reasons.keys() <= {"ConnectionLost", "CleanupFailed"}


@pytest.mark.parametrize("cut", Cut)
def test_a_connection_lost_at_any_message_of_a_termination_loses_nothing(
    lab: Lab, provider: LibvirtProvider, cut: Cut, tmp_path: Path
) -> None:
    for at in itertools.count(1, EVERY[cut]):
        wanted = lab.new()
        made = provider.launch(wanted)
        relay = Relay(tmp_path / f"{at}", at, cut)
        through = LibvirtProvider(lab.keys(LIBVIRT_URI=relay.uri))
        cut_off = through.terminate([made.id]).get(made.id)
        through.close()
        relay.close()
        if cut_off is not None:
            assert isinstance(cut_off, UnavailableError | UnknownOutcomeError)
            assert lab.domains() or not lab.volumes()
        provider.terminate([made.id])
        assert (lab.domains(), lab.volumes()) == ([], [])
        if relay.messages < at:
            break
    assert at > 8


def test_a_dead_connection_is_opened_anew(lab: Lab, provider: LibvirtProvider, tmp_path: Path) -> None:
    relay = Relay(tmp_path / "s")
    through = LibvirtProvider(lab.keys(LIBVIRT_URI=relay.uri))
    assert through.instances(SCOPE) == []
    relay.cut_now()
    try:
        through.instances(SCOPE)
    except UnavailableError:  # the end was not noticed before the call: this call pays, the next does not
        assert through.instances(SCOPE) == []
    assert relay.connections == 2
    through.close()
    relay.close()


def test_a_silent_libvirt_never_holds_a_call_for_ever(
    lab: Lab, provider: LibvirtProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OPEN_SECONDS", 0.5)
    monkeypatch.setattr(connection, "KEEPALIVE_SECONDS", 1)
    monkeypatch.setattr(connection, "KEEPALIVE_PROBES", 1)
    relay = Relay(tmp_path / "s")
    through = LibvirtProvider(lab.keys(LIBVIRT_URI=relay.uri))
    assert through.instances(SCOPE) == []
    relay.frozen.set()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(through.instances, SCOPE) for _ in range(8)]
        for call in calls:
            assert isinstance(call.exception(timeout=20), UnavailableError)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for call in [pool.submit(through.instances, SCOPE) for _ in range(8)]:
            assert isinstance(call.exception(timeout=20), UnavailableError)
    assert time.monotonic() - began < 3, "each caller waited for a time-out of its own"
    relay.frozen.clear()
    assert through.instances(SCOPE) == []
    relay.close()
    through.close()


def test_an_unreachable_libvirt_is_told_with_its_uri(lab: Lab) -> None:
    away = LibvirtProvider(lab.keys(LIBVIRT_URI="qemu+unix:///system?socket=/nowhere/sock"))
    with pytest.raises(UnavailableError, match="/nowhere/sock"):
        away.launch(lab.new())
    (problem,) = away.check()
    assert problem.key == "LIBVIRT_URI"
    away.close()


def test_check_is_silent_when_all_is_well_and_names_every_problem_at_once(lab: Lab, provider: LibvirtProvider) -> None:
    assert provider.check() == []
    real = LibvirtProvider(lab.keys(LIBVIRT_EFI_FIRMWARE="/usr/share/OVMF/OVMF_CODE_4M.fd"))
    assert real.check() == []
    wrong = LibvirtProvider(
        lab.keys(
            LIBVIRT_NET="nowhere",
            LIBVIRT_VOL_NAME="none.qcow2",
            LIBVIRT_EFI_FIRMWARE="/nowhere/fd",
            LIBVIRT_LAUNCH_SECURITY="s390-pv",
            DISABLECVM="false",
        )
    )
    problems = {p.key: p.message for p in wrong.check()}
    assert problems.keys() == {
        "LIBVIRT_NET",
        "LIBVIRT_VOL_NAME",
        "LIBVIRT_EFI_FIRMWARE",
        "LIBVIRT_LAUNCH_SECURITY",
        "DISABLECVM",
    }
    assert "caa image ensure" in problems["LIBVIRT_VOL_NAME"]
    poolless = LibvirtProvider(lab.keys(LIBVIRT_POOL="nowhere"))
    assert [p.key for p in poolless.check()] == ["LIBVIRT_POOL"]
    poolless.discard(lab.new())  # where no pool is, nothing can be left
    for each in (real, wrong, poolless):
        each.close()


def test_kvm_is_refused_where_the_cpu_has_none(lab: Lab) -> None:
    asking = LibvirtProvider(lab.keys(LIBVIRT_DOMAIN_TYPE="kvm"))
    assert [p.key for p in asking.check()] == ([] if has_virtualization() else ["LIBVIRT_DOMAIN_TYPE"])
    asking.close()


def test_a_confidential_wish_that_cannot_be_met_is_refused(lab: Lab, provider: LibvirtProvider) -> None:
    asking = LibvirtProvider(lab.keys(DISABLECVM="false"))
    with pytest.raises(InvalidRequestError) as caught:
        asking.launch(lab.new())
    assert caught.value.reason == "ConfidentialUnsupported"
    asking.close()


def test_offerings_are_one_of_any_size(provider: LibvirtProvider) -> None:
    (offering,) = provider.offerings()
    assert (offering.instance_type, offering.vcpus, offering.memory_mib) == ("libvirt", 2, 8192)
    assert offering.flexible


def test_a_base_volume_is_whole_or_unusable(lab: Lab, provider: LibvirtProvider, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "i.qcow2", "64M")
    with image.open("ab") as file:
        file.write(os.urandom(8 << 20))
    name = "caa-test-image.qcow2"
    keys = lab.keys()
    total = image.stat().st_size

    def stop_in_the_middle(sent: int, _total: int) -> None:
        if sent > total // 2:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            upload_base_volume(keys, image, name, stop_in_the_middle)
        assert not has_base_volume(keys, name)
        wanted = lab.new()
        half = LaunchRequest(wanted.name, wanted.token, wanted.owner, wanted.offering, wanted.user_data, image=name)
        with pytest.raises(InvalidRequestError) as caught:
            provider.launch(half)
        assert caught.value.reason == "ImageNotReady"
        seen: list[tuple[int, int]] = []
        upload_base_volume(keys, image, name, lambda sent, all_: seen.append((sent, all_)))
        assert has_base_volume(keys, name)
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)
        assert (lab.directory / name).read_bytes() == image.read_bytes()
        with pytest.raises(InvalidRequestError) as caught:
            upload_base_volume(keys, image, name)
        assert caught.value.reason == "ImageExists"
    finally:
        lab.pool.storageVolLookupByName(name).delete()


def test_an_image_that_reads_other_files_is_refused(lab: Lab, tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2", "1M")
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)], check=True
    )
    text = tmp_path / "text"
    text.write_text("no image")
    for bad in (overlay, text):
        with pytest.raises(InvalidRequestError) as caught:
            upload_base_volume(lab.keys(), bad, "caa-test-bad.qcow2")
        assert caught.value.reason == "ImageInvalid"
    assert not has_base_volume(lab.keys(), "caa-test-bad.qcow2")
