"""What the libvirt provider tells: its instances, problems, a host that is away or silent, and base volumes."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from providers.base import InvalidRequestError, LaunchRequest, OwnerScope, UnavailableError
from providers.libvirt import connection
from providers.libvirt.images import has_base_volume, upload_base_volume
from providers.libvirt.provider import LibvirtProvider
from tests.vm.libvirt_relay import Relay
from tests.vm.libvirthost import CLUSTER, SCOPE, LibvirtHost, end, has_virtualization, needs_libvirt, qcow2

pytestmark = needs_libvirt


def test_only_the_owners_instances_are_listed(host: LibvirtHost, provider: LibvirtProvider) -> None:
    mine, other = host.new(), host.new(node="node-2")
    provider.launch(mine)
    theirs = provider.launch(other)
    assert [i.name for i in provider.instances(SCOPE)] == [mine.name]
    assert [i.name for i in provider.instances(OwnerScope(CLUSTER, "node-2"))] == [other.name]
    assert provider.instances(OwnerScope("another", "node-1")) == []
    end(provider, theirs.id)


def test_offerings_are_one_of_any_size(provider: LibvirtProvider) -> None:
    (offering,) = provider.offerings()
    assert (offering.instance_type, offering.vcpus, offering.memory_mib) == ("libvirt", 2, 8192)
    assert offering.flexible


def test_check_is_silent_when_all_is_well_and_names_every_problem_at_once(
    host: LibvirtHost, provider: LibvirtProvider
) -> None:
    assert provider.check() == []
    real = LibvirtProvider(host.keys(LIBVIRT_EFI_FIRMWARE="/usr/share/OVMF/OVMF_CODE_4M.fd"))
    assert real.check() == []
    wrong = LibvirtProvider(
        host.keys(
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
    poolless = LibvirtProvider(host.keys(LIBVIRT_POOL="nowhere"))
    assert [p.key for p in poolless.check()] == ["LIBVIRT_POOL"]
    poolless.discard(host.new())  # where no pool is, nothing can be left
    for each in (real, wrong, poolless):
        each.close()


def test_kvm_is_refused_where_the_cpu_has_none(host: LibvirtHost) -> None:
    asking = LibvirtProvider(host.keys(LIBVIRT_DOMAIN_TYPE="kvm"))
    assert [p.key for p in asking.check()] == ([] if has_virtualization() else ["LIBVIRT_DOMAIN_TYPE"])
    asking.close()


def test_an_unreachable_libvirt_is_told_with_its_uri(host: LibvirtHost) -> None:
    away = LibvirtProvider(host.keys(LIBVIRT_URI="qemu+unix:///system?socket=/nowhere/sock"))
    with pytest.raises(UnavailableError, match="/nowhere/sock"):
        away.launch(host.new())
    (problem,) = away.check()
    assert problem.key == "LIBVIRT_URI"
    away.close()


def test_a_dead_connection_is_opened_anew(host: LibvirtHost, provider: LibvirtProvider, tmp_path: Path) -> None:
    relay = Relay(tmp_path / "s")
    through = LibvirtProvider(host.keys(LIBVIRT_URI=relay.uri))
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
    host: LibvirtHost, provider: LibvirtProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection keeps the limits that it was opened with; these see death after 4 s.
    monkeypatch.setattr(connection, "KEEPALIVE_SECONDS", 1)
    relay = Relay(tmp_path / "s")
    through = LibvirtProvider(host.keys(LIBVIRT_URI=relay.uri))
    assert through.instances(SCOPE) == []
    relay.frozen.set()
    with monkeypatch.context() as patch:
        patch.setattr(connection, "OPEN_SECONDS", 1.0)
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(through.instances, SCOPE) for _ in range(8)]
            for call in calls:
                assert isinstance(call.exception(timeout=60), UnavailableError)
        # One after the other they would wait for 12 s on the 8 connections that there may be.
        began = time.monotonic()
        with ThreadPoolExecutor(96) as pool:
            for call in [pool.submit(through.instances, SCOPE) for _ in range(96)]:
                assert isinstance(call.exception(timeout=60), UnavailableError)
        assert time.monotonic() - began < 8, "each caller waited for a time-out of its own"
    relay.frozen.clear()
    assert through.instances(SCOPE) == []
    relay.close()
    through.close()


def test_a_base_volume_is_whole_or_unusable(host: LibvirtHost, provider: LibvirtProvider, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "i.qcow2", "64M")
    with image.open("ab") as file:
        file.write(os.urandom(8 << 20))
    name = "caa-test-image.qcow2"
    keys = host.keys()
    total = image.stat().st_size

    def stop_in_the_middle(sent: int, _total: int) -> None:
        if sent > total // 2:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            upload_base_volume(keys, image, name, stop_in_the_middle)
        assert not has_base_volume(keys, name)
        wanted = host.new()
        half = LaunchRequest(wanted.name, wanted.token, wanted.owner, wanted.offering, wanted.user_data, image=name)
        with pytest.raises(InvalidRequestError) as caught:
            provider.launch(half)
        assert caught.value.reason == "ImageNotReady"
        seen: list[tuple[int, int]] = []
        upload_base_volume(keys, image, name, lambda sent, all_: seen.append((sent, all_)))
        assert has_base_volume(keys, name)
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)
        assert (host.directory / name).read_bytes() == image.read_bytes()
        with pytest.raises(InvalidRequestError) as caught:
            upload_base_volume(keys, image, name)
        assert caught.value.reason == "ImageExists"
    finally:
        host.pool.storageVolLookupByName(name).delete()


def test_an_image_that_reads_other_files_is_refused(host: LibvirtHost, tmp_path: Path) -> None:
    base = qcow2(tmp_path / "base.qcow2", "1M")
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)], check=True
    )
    text = tmp_path / "text"
    text.write_text("no image")
    for bad in (overlay, text):
        with pytest.raises(InvalidRequestError) as caught:
            upload_base_volume(host.keys(), bad, "caa-test-bad.qcow2")
        assert caught.value.reason == "ImageInvalid"
    assert not has_base_volume(host.keys(), "caa-test-bad.qcow2")
