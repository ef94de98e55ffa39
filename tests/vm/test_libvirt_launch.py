"""The libvirt provider's launches: once, whole or not at all, whatever breaks meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET

import pytest

from providers.base import (
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.libvirt.domain import domain_uuid, root_volume, seed_volume
from providers.libvirt.provider import LibvirtProvider
from tests.vm.libvirt_launch_child import request
from tests.vm.libvirt_relay import Cut, Relay
from tests.vm.libvirthost import BASE, CLUSTER, EVERY, SCOPE, LibvirtHost, end, has_virtualization, needs_libvirt

CHILD = Path(__file__).with_name("libvirt_launch_child.py")
T = TypeVar("T")

pytestmark = needs_libvirt


def test_launching_twice_makes_one_domain_and_terminating_twice_leaves_nothing(
    host: LibvirtHost, provider: LibvirtProvider
) -> None:
    wanted = host.new()
    first, second = provider.launch(wanted), provider.launch(wanted)
    assert first == second
    assert first.id == domain_uuid(wanted.token)
    assert first.owner == wanted.owner
    assert first.state is InstanceState.RUNNING
    assert first.created_at is not None
    assert first.created_at.tzinfo is not None
    assert host.domains() == [wanted.name]
    assert host.volumes() == [seed_volume(wanted.name), root_volume(wanted.name)]
    assert provider.instances(SCOPE) == [first]
    end(provider, first.id)
    assert isinstance(provider.terminate([first.id])[first.id], MissingError)
    assert (host.domains(), host.volumes(), provider.instances(SCOPE)) == ([], [], [])


def test_what_libvirt_runs_is_what_was_asked_for(host: LibvirtHost, provider: LibvirtProvider) -> None:
    wanted = host.new(user_data=b"#cloud-config\nsecret-key\n")
    provider.launch(wanted)
    domain = host.conn.lookupByName(wanted.name)
    xml = ET.fromstring(domain.XMLDesc())
    assert xml.findtext("vcpu") == "1"
    assert domain.maxMemory() == 256 * 1024
    assert xml.get("type") == ("kvm" if has_virtualization() else "qemu")
    root = ET.fromstring(host.pool.storageVolLookupByName(root_volume(wanted.name)).XMLDesc())
    assert root.findtext("backingStore/path") == str(host.directory / BASE)
    assert root.findtext("capacity") == str(2 << 30)  # the base volume's, which is more than the key's 1 GiB
    seed = host.directory / seed_volume(wanted.name)
    assert b"secret-key" in seed.read_bytes()
    assert seed.stat().st_mode & 0o077 == 0
    assert "secret-key" not in domain.XMLDesc()


def test_a_pod_vm_that_stopped_is_never_started_again(host: LibvirtHost, provider: LibvirtProvider) -> None:
    wanted = host.new()
    provider.launch(wanted)
    host.conn.lookupByName(wanted.name).destroy()
    assert provider.launch(wanted).state is InstanceState.STOPPED
    assert [i.state for i in provider.instances(SCOPE)] == [InstanceState.STOPPED]
    assert not host.conn.lookupByName(wanted.name).isActive()


def test_a_name_that_another_domain_has_is_refused_and_left_alone(host: LibvirtHost, provider: LibvirtProvider) -> None:
    wanted = host.new()
    provider.launch(wanted)
    other = request(wanted.name, "another-token")
    with pytest.raises(InvalidRequestError) as caught:
        provider.launch(other)
    assert caught.value.reason == "NameTaken"
    provider.discard(other)
    assert [i.state for i in provider.instances(SCOPE)] == [InstanceState.RUNNING]
    assert len(host.volumes()) == 2


def test_a_refusal_by_qemu_leaves_nothing(host: LibvirtHost) -> None:
    broken = LibvirtProvider(host.keys(LIBVIRT_EFI_FIRMWARE="/nowhere/firmware.fd"))
    with pytest.raises(InvalidRequestError) as caught:
        broken.launch(host.new())
    assert "/nowhere/firmware.fd" in str(caught.value)
    assert (host.domains(), host.volumes(), host.files()) == ([], [], [])
    missing = LibvirtProvider(host.keys(LIBVIRT_NET="nowhere"))
    with pytest.raises(InvalidRequestError, match="LIBVIRT_NET=nowhere"):
        missing.launch(host.new())
    assert (host.domains(), host.volumes(), host.files()) == ([], [], [])
    broken.close()
    missing.close()


def test_an_unknown_image_is_refused_before_anything_is_made(host: LibvirtHost, provider: LibvirtProvider) -> None:
    wanted = host.new()
    unknown = LaunchRequest(
        wanted.name, wanted.token, wanted.owner, wanted.offering, wanted.user_data, image="caa-test-none.qcow2"
    )
    with pytest.raises(InvalidRequestError, match=r"caa-test-none\.qcow2") as caught:
        provider.launch(unknown)
    assert caught.value.reason == "ImageMissing"
    assert host.domains() == []


def test_a_confidential_wish_that_cannot_be_met_is_refused(host: LibvirtHost, provider: LibvirtProvider) -> None:
    asking = LibvirtProvider(host.keys(DISABLECVM="false"))
    with pytest.raises(InvalidRequestError) as caught:
        asking.launch(host.new())
    assert caught.value.reason == "ConfidentialUnsupported"
    asking.close()


def test_twenty_launches_at_once_make_twenty_domains_and_the_same_request_ten_times_makes_one(
    host: LibvirtHost, provider: LibvirtProvider
) -> None:
    wanted = [host.new() for _ in range(20)]
    same = host.new()
    began = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        launched = list(pool.map(provider.launch, wanted + [same] * 10))
    took = time.monotonic() - began
    assert len({i.id for i in launched}) == 21
    assert len(host.domains()) == 21
    assert len(host.volumes()) == 42
    began = time.monotonic()
    listed = provider.instances(SCOPE)
    listing = time.monotonic() - began
    assert {i.state for i in listed} == {InstanceState.RUNNING}
    assert len(listed) == 21
    began = time.monotonic()
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda i: end(provider, i), {i.id for i in launched}))
    print(f"21 launches {took:.2f} s, listing {listing * 1000:.0f} ms, terminations {time.monotonic() - began:.2f} s")
    assert (host.domains(), host.volumes(), host.files()) == ([], [], [])


def settled(call: Callable[[LaunchRequest], T], wanted: LaunchRequest) -> T:
    """Repeat while libvirt is still at work for who is gone, as the service does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call(wanted)
        except UnknownOutcomeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def seconds_of_a_launch(host: LibvirtHost, provider: LibvirtProvider) -> float:
    """A provider's first one also asks what the host is like, which the child has done before it says `go`."""
    trial = host.new()
    began = time.monotonic()
    provider.launch(trial)
    took = time.monotonic() - began
    provider.discard(trial)
    return took


@pytest.mark.parametrize("ending", ["launch", "discard"])
def test_a_launch_killed_at_any_moment_can_be_repeated_or_discarded(
    host: LibvirtHost, provider: LibvirtProvider, ending: str
) -> None:
    rounds = random.Random(ending)
    usual = min(seconds_of_a_launch(host, provider) for _ in range(4))
    finished = 0
    for _ in range(15):
        wanted = host.new()
        arguments = [sys.executable, str(CHILD), json.dumps(host.environ), wanted.name, wanted.token, CLUSTER]
        root = Path(__file__).parents[2]
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
        ) as p:
            assert p.stdout is not None
            assert p.stdout.readline() == "go\n"
            time.sleep(rounds.uniform(0, 1.2 * usual))  # the random moment is the test
            p.kill()
            finished += p.stdout.read() == "done\n"
        if ending == "launch":
            assert settled(provider.launch, wanted).state is InstanceState.RUNNING
            assert host.domains() == [wanted.name]
            assert host.volumes() == [seed_volume(wanted.name), root_volume(wanted.name)]
        settled(provider.discard, wanted)
        assert (host.domains(), host.volumes(), host.files()) == ([], [], [])
    assert finished < 15  # else nothing was interrupted


@pytest.mark.parametrize("cut", Cut)
def test_a_connection_lost_at_any_message_of_a_launch_loses_nothing(
    host: LibvirtHost, provider: LibvirtProvider, cut: Cut, tmp_path: Path
) -> None:
    reasons: dict[str, int] = {}
    # A lost reply leaves libvirt where the next lost request finds it.
    for at in itertools.count(1, EVERY[cut]):
        wanted = host.new()
        relay = Relay(tmp_path / f"{at}", at, cut)
        through = LibvirtProvider(host.keys(LIBVIRT_URI=relay.uri))
        try:
            through.launch(wanted)
        except UnavailableError:
            assert host.domains() == [], f"message {at}: 'certainly did nothing', but it did"
        except UnknownOutcomeError as error:
            reasons[error.reason] = reasons.get(error.reason, 0) + 1
        else:
            if relay.messages < at:
                provider.discard(wanted)
                break  # the whole launch takes fewer messages
        finally:
            through.close()
            relay.close()
        assert {i.name for i in provider.instances(SCOPE)} == set(host.domains())
        assert host.domains() or not host.volumes(), f"message {at}: volumes that nothing lists"
        assert settled(provider.launch, wanted).state is InstanceState.RUNNING, f"message {at}"
        assert host.domains() == [wanted.name]
        provider.discard(wanted)
        assert (host.domains(), host.volumes()) == ([], [])
    assert at > 15
    assert reasons.keys() <= {"ConnectionLost", "CleanupFailed"}
