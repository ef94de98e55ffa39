"""The libvirt provider's terminations and discards: all that is ours goes, and nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from providers.base import InvalidRequestError, MissingError, UnavailableError, UnknownOutcomeError
from providers.libvirt.domain import domain_uuid
from providers.libvirt.provider import LibvirtProvider
from tests.vm.libvirt_relay import Cut, Relay
from tests.vm.libvirthost import CLUSTER, EVERY, LibvirtHost, needs_libvirt

pytestmark = needs_libvirt


def test_a_foreign_domain_is_not_terminated(host: LibvirtHost, provider: LibvirtProvider) -> None:
    name = f"{CLUSTER}-foreign"
    domain = host.conn.defineXML(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
    )
    try:
        refused = provider.terminate([domain.UUIDString()])[domain.UUIDString()]
        assert (type(refused), refused.reason) == (InvalidRequestError, "NotOurs")
        assert name in host.domains()
    finally:
        domain.undefine()


def test_discard_removes_what_is_there_and_is_content_with_nothing(
    host: LibvirtHost, provider: LibvirtProvider
) -> None:
    never, launched, volumes_only = host.new(), host.new(), host.new()
    provider.discard(never)
    provider.launch(launched)
    provider.discard(launched)
    provider.discard(launched)
    provider.launch(volumes_only)
    domain = host.conn.lookupByName(volumes_only.name)
    domain.destroy()
    domain.undefine()
    assert isinstance(provider.terminate([gone := domain_uuid(volumes_only.token)])[gone], MissingError)
    provider.discard(volumes_only)
    assert (host.domains(), host.volumes()) == ([], [])


@pytest.mark.parametrize("cut", Cut)
def test_a_connection_lost_at_any_message_of_a_termination_loses_nothing(
    host: LibvirtHost, provider: LibvirtProvider, cut: Cut, tmp_path: Path
) -> None:
    for at in itertools.count(1, EVERY[cut]):
        wanted = host.new()
        made = provider.launch(wanted)
        relay = Relay(tmp_path / f"{at}", at, cut)
        through = LibvirtProvider(host.keys(LIBVIRT_URI=relay.uri))
        cut_off = through.terminate([made.id]).get(made.id)
        through.close()
        relay.close()
        if cut_off is not None:
            assert isinstance(cut_off, UnavailableError | UnknownOutcomeError)
            assert host.domains() or not host.volumes()
        provider.terminate([made.id])
        assert (host.domains(), host.volumes()) == ([], [])
        if relay.messages < at:
            break
    assert at > 8
