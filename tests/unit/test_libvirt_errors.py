"""libvirt's refusals in the contract's words, and the registry. Real libvirt errors, from its built-in test driver."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import libvirt
import pytest

from providers import registry
from providers.base import (
    CapacityError,
    ConfigError,
    DeniedError,
    InvalidRequestError,
    Scope,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.keys import read_keys
from providers.libvirt.errors import is_transport, translate
from providers.libvirt.probe import Host, named_features, parse
from providers.libvirt.settings import LibvirtKeys

KEYS = read_keys(LibvirtKeys, {"LIBVIRT_URI": "qemu+ssh://u:secret@h/system", "LIBVIRT_POOL": "disks"})


def error(code: int, domain: int, text: str = "said so", number: int = -1) -> libvirt.libvirtError:
    made = libvirt.libvirtError("said so")
    made.err = (code, domain, text, 2, None, None, None, number, -1)
    made.args = (text,)
    return made


@pytest.mark.parametrize(
    ("given", "kind", "reason"),
    [
        (error(libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_FROM_RPC), DeniedError, "AccessDenied"),
        (error(libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_FROM_NETWORK), InvalidRequestError, "NetworkMissing"),
        (error(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_NETWORK), UnavailableError, "NetworkInactive"),
        (error(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_STORAGE), UnavailableError, "PoolInactive"),
        (
            error(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_STORAGE, "volume 'v' is still being allocated."),
            UnknownOutcomeError,
            "VolumeBusy",
        ),
        (error(libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_FROM_QEMU), UnknownOutcomeError, "LibvirtBusy"),
        (error(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU), InvalidRequestError, "HypervisorRefused"),
        (
            error(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, "pc.ram: Cannot allocate memory"),
            CapacityError,
            "HostMemory",
        ),
        (
            error(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STREAMS, "write", errno.ENOSPC),
            CapacityError,
            "PoolFull",
        ),
        (
            error(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE, "create", errno.EACCES),
            DeniedError,
            "PoolDenied",
        ),
        (error(987654, 1), UnknownOutcomeError, "LibvirtError"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_refusal_has_its_meaning(given: libvirt.libvirtError, kind: type[Exception], reason: str) -> None:
    meant = translate(given, KEYS)
    assert type(meant) is kind
    assert meant.reason == reason
    assert "secret" not in str(meant)


def test_the_sentence_names_key_and_value() -> None:
    assert "LIBVIRT_POOL=disks" in str(translate(error(libvirt.VIR_ERR_NO_STORAGE_POOL, 18), KEYS))


def test_a_full_pool_rules_out_every_size() -> None:
    full = translate(error(libvirt.VIR_ERR_SYSTEM_ERROR, 18, "x", errno.ENOSPC), KEYS)
    assert isinstance(full, CapacityError)
    assert full.scope is Scope.ZONE


def test_a_broken_connection_is_not_taken_for_an_answer() -> None:
    assert is_transport(error(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC, "client socket is closed"))
    assert not is_transport(error(libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_FROM_QEMU))


def test_a_real_missing_domain_is_told_apart_from_other_errors() -> None:
    conn = libvirt.open("test:///default")
    with pytest.raises(libvirt.libvirtError) as caught:
        conn.lookupByName("nobody")
    assert translate(caught.value, KEYS).reason == "DomainVanished"
    conn.close()


def test_a_disabled_feature_is_no_feature() -> None:
    cpu = parse(
        "<cpu><feature policy='disable' name='vmx'/><feature policy='require' name='svm'/><feature name='a'/></cpu>"
    )
    assert named_features(cpu) == {"svm", "a"}
    assert Host("x86_64", "qemu", kvm=False).domain_type == "qemu"


def test_the_registry_knows_libvirt_and_names_what_it_allows() -> None:
    assert "libvirt" in registry.names()
    with pytest.raises(ConfigError) as caught:
        registry.load("openstack", {})
    (problem,) = caught.value.problems
    assert problem.key == "CLOUD_PROVIDER"
    assert "'openstack'" in problem.message
    assert "libvirt" in problem.message


def test_loading_asks_the_cloud_nothing() -> None:
    provider = registry.load("libvirt", {"LIBVIRT_URI": "qemu+unix:///system?socket=/nowhere"})
    assert provider.name == "libvirt"
    provider.close()


def test_bad_keys_are_told_at_load() -> None:
    with pytest.raises(ConfigError, match="LIBVIRT_CPU"):
        registry.load("libvirt", {"LIBVIRT_CPU": "none"})


def python(code: str) -> Any:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_missing_library_is_told_with_the_extra_to_install() -> None:
    done = python(
        "import sys; sys.modules['libvirt'] = None\nfrom providers import registry\nregistry.load('libvirt', {})"
    )
    assert "ConfigError" in done.stderr
    assert "pip install peerpod-cloud-adaptor[libvirt]" in done.stderr


def test_the_registry_alone_imports_no_cloud_library() -> None:
    done = python("import sys, providers.registry; print('libvirt' in sys.modules, 'pycdlib' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]
