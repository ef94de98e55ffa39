"""The domain's XML, its identity and its record: pure."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.base import ConfigError, LaunchRequest, Offering, Owner
from providers.keys import read_keys
from providers.libvirt.checks import unprotected
from providers.libvirt.domain import (
    METADATA_URI,
    Disks,
    Record,
    domain_uuid,
    domain_xml,
    mac_address,
    plain_record,
    read_record,
    record_element,
    root_volume,
    seed_volume,
)
from providers.libvirt.probe import Host, protects
from providers.libvirt.settings import LibvirtKeys, is_local, shown_uri

OWNER = Owner("prod", "worker-1", "5a" * 32, "shop", 'web<&">-1', 1)
REQUEST = LaunchRequest(
    name="podvm-web-5a5a5a5a",
    token="t" * 64,
    owner=OWNER,
    offering=Offering("libvirt", "", vcpus=3, memory_mib=1536, flexible=True),
    user_data=b"#cloud-config\n",
)
RECORD = Record(OWNER, "default", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
DISKS = Disks("/pool/r.qcow2", "/pool/s.iso")
HOSTS = [
    Host("x86_64", "qemu", kvm=False),
    Host("x86_64", "kvm", kvm=True),
    Host("aarch64", "kvm", kvm=True),
    Host("aarch64", "qemu", kvm=False),
    Host("s390x", "kvm", kvm=True),
    Host("s390x", "qemu", kvm=False),
]


def keys(**environ: str) -> LibvirtKeys:
    return read_keys(LibvirtKeys, environ)


def built(host: Host, **environ: str) -> ET.Element:
    return ET.fromstring(domain_xml(REQUEST, keys(**environ), host, DISKS, RECORD))


@pytest.mark.parametrize("host", HOSTS, ids=lambda h: f"{h.arch}-{h.domain_type}")
@pytest.mark.parametrize("environ", [{}, {"DISABLECVM": "false", "LIBVIRT_CPUSET": "0-3,5"}], ids=["plain", "more"])
def test_the_domain_follows_libvirts_schema_on_every_architecture(
    host: Host, environ: dict[str, str], tmp_path: Path
) -> None:
    if not (shutil.which("virt-xml-validate") and shutil.which("xmllint")):
        pytest.skip("needs libvirt-clients and libxml2-utils")
    file = tmp_path / "domain.xml"
    file.write_text(domain_xml(REQUEST, keys(**environ), host, DISKS, RECORD))
    result = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sizes_and_identity_come_from_the_request() -> None:
    domain = built(HOSTS[1], LIBVIRT_CPUSET="0-3", LIBVIRT_NET="pods")
    assert domain.findtext("name") == REQUEST.name
    assert domain.findtext("uuid") == domain_uuid(REQUEST.token)
    assert domain.findtext("vcpu") == "3"
    assert domain.findtext("memory") == "1536"
    assert domain.find("vcpu").get("cpuset") == "0-3"  # type: ignore[union-attr]
    assert domain.find("devices/interface/source").get("network") == "pods"  # type: ignore[union-attr]
    assert domain.find("devices/interface/mac").get("address") == mac_address(domain_uuid(REQUEST.token))  # type: ignore[union-attr]
    assert domain.findtext("on_poweroff") == "destroy"


def test_firmware_is_stateless_on_x86_and_chosen_by_the_host_on_arm() -> None:
    loader = built(HOSTS[0]).find("os/loader")
    assert loader is not None
    assert loader.attrib == {"readonly": "yes", "type": "pflash", "stateless": "yes"}
    assert loader.text == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    arm = built(HOSTS[2]).find("os")
    assert arm is not None
    assert arm.get("firmware") == "efi"
    assert arm.find("loader") is None
    assert built(HOSTS[4]).find("os/loader") is None


def test_the_seed_is_on_the_bus_that_each_machine_has() -> None:
    targets = {}
    for host in HOSTS:
        seed = built(host).findall("devices/disk")[1]
        target = seed.find("target")
        assert target is not None
        targets[host.arch] = (seed.get("device"), target.get("dev"), target.get("bus"))
    assert targets == {
        "x86_64": ("disk", "vdb", "virtio"),
        "aarch64": ("cdrom", "sda", "scsi"),
        "s390x": ("disk", "vdb", "virtio"),
    }


@pytest.mark.parametrize("host", HOSTS[4:], ids=lambda h: h.domain_type)
def test_on_s390x_everything_is_a_channel_device_behind_an_iommu_and_there_is_no_firmware(host: Host) -> None:
    domain = built(host, DISABLECVM="false")
    system = domain.find("os")
    assert system is not None
    kind = system.find("type")
    assert kind is not None
    assert kind.attrib == {"arch": "s390x", "machine": "s390-ccw-virtio"}
    assert [one.tag for one in system] == ["type", "boot"]
    assert "firmware" not in system.attrib
    assert domain.find("features") is None
    devices = domain.find("devices")
    assert devices is not None
    assert {one.get("bus") for one in devices.findall("disk/target")} == {"virtio"}
    drivers = [one for kind in ("disk", "interface", "rng") for one in devices.findall(f"{kind}/driver")]
    assert len(drivers) == 4
    assert {one.get("iommu") for one in drivers} == {"on"}
    assert [one.get("type") for one in devices.findall("console/target")] == ["sclp"]
    assert devices.findall("controller") == []
    assert [one.get("type") for one in domain.findall("launchSecurity")] == ["s390-pv"]


DOMAIN_CAPABILITIES = """
<domainCapabilities>
  <path>/usr/bin/qemu-system-s390x</path>
  <domain>kvm</domain>
  <machine>s390-ccw-virtio-7.2</machine>
  <arch>s390x</arch>
  <vcpu max='248'/>
  <iothreads supported='yes'/>
  <os supported='yes'>
    <loader supported='no'/>
  </os>
  <cpu>
    <mode name='host-passthrough' supported='no'/>
    <mode name='maximum' supported='no'/>
    <mode name='host-model' supported='no'/>
    <mode name='custom' supported='no'/>
  </cpu>
  <devices/>
  <features>{feature}</features>
</domainCapabilities>
"""


@pytest.mark.parametrize(
    ("feature", "protected"),
    [("<s390-pv supported='yes'/>", True), ("<s390-pv supported='no'/>", False), ("<sev supported='yes'/>", False)],
)
def test_whether_an_s390x_host_protects_is_read_from_its_domain_capabilities(
    feature: str, protected: bool, tmp_path: Path
) -> None:
    text = DOMAIN_CAPABILITIES.format(feature=feature)
    if shutil.which("virt-xml-validate") and shutil.which("xmllint"):
        file = tmp_path / "capabilities.xml"
        file.write_text(text)
        # That the sample is one: the service reads what libvirt writes.
        command = ["virt-xml-validate", str(file), "domaincaps"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    described = ET.fromstring(text)
    assert protects(described) is protected
    assert [problem.key for problem in unprotected(described)] == ([] if protected else ["DISABLECVM"])


def test_only_a_confidential_wish_on_s390x_brings_launch_security() -> None:
    assert built(HOSTS[4]).find("launchSecurity") is None
    assert built(HOSTS[4], DISABLECVM="false").find("launchSecurity") is not None
    assert built(HOSTS[1], DISABLECVM="false").find("launchSecurity") is None


def test_user_data_is_never_in_the_domain() -> None:
    assert "#cloud-config" not in domain_xml(REQUEST, keys(), HOSTS[0], DISKS, RECORD)


words = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc", "Cn"]), max_size=40
)


@given(words, words, words, st.integers(1, 99), st.booleans())
def test_a_record_reads_back_as_it_was_written(cluster: str, node: str, pod: str, attempt: int, started: bool) -> None:
    record = Record(Owner(cluster, node, "sid", "ns", pod, attempt), "default", RECORD.created_at, started)
    assert read_record(ET.tostring(record_element(record), encoding="unicode")) == record
    assert read_record(plain_record(record)) == record
    assert METADATA_URI in ET.tostring(record_element(record), encoding="unicode")


def test_foreign_metadata_is_no_record() -> None:
    with pytest.raises(ValueError):
        read_record("<instance cluster='c'/>")


@given(st.text(min_size=1, max_size=64), st.text(min_size=1, max_size=64))
def test_a_token_always_gives_the_same_uuid_and_another_token_another(one: str, other: str) -> None:
    assert domain_uuid(one) == domain_uuid(one)
    assert (domain_uuid(one) == domain_uuid(other)) == (one == other)
    assert mac_address(domain_uuid(one)).startswith("52:54:00:")


def test_identities_stay_the_same_for_ever() -> None:
    """A changed constant would orphan every running pod VM at an upgrade."""
    assert domain_uuid("token") == "bae0c871-6b5b-5013-bf01-f2ed0ed14c41"
    assert mac_address("bae0c871-6b5b-5013-bf01-f2ed0ed14c41") == "52:54:00:d1:4c:41"
    assert (root_volume("n"), seed_volume("n")) == ("n-root.qcow2", "n-cloudinit.iso")


def test_keys_have_the_incumbents_defaults() -> None:
    assert keys().model_dump(by_alias=True) == {
        "LIBVIRT_URI": "qemu+ssh://root@192.168.122.1/system?no_verify=1",
        "LIBVIRT_POOL": "default",
        "LIBVIRT_NET": "default",
        "LIBVIRT_VOL_NAME": "podvm-base.qcow2",
        "LIBVIRT_LAUNCH_SECURITY": "",
        "LIBVIRT_EFI_FIRMWARE": "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "LIBVIRT_CPU": 2,
        "LIBVIRT_MEMORY": 8192,
        "LIBVIRT_CPUSET": "",
        "LIBVIRT_ROOT_DISK_SIZE": 10,
        "DISABLECVM": True,
        "LIBVIRT_DOMAIN_TYPE": "auto",
    }


def test_every_bad_key_is_named_at_once() -> None:
    bad = {
        "LIBVIRT_URI": "xen:///",
        "LIBVIRT_POOL": "a/b",
        "LIBVIRT_LAUNCH_SECURITY": "sev",
        "LIBVIRT_CPU": "0",
        "LIBVIRT_MEMORY": "lots",
        "LIBVIRT_CPUSET": "1-",
        "LIBVIRT_ROOT_DISK_SIZE": "-1",
        "DISABLECVM": "maybe",
        "LIBVIRT_DOMAIN_TYPE": "xen",
    }
    with pytest.raises(ConfigError) as caught:
        keys(**bad)
    problems = {p.key: p.message for p in caught.value.problems}
    assert problems.keys() == bad.keys()
    assert all(value in problems[key] for key, value in bad.items())


def test_a_password_in_the_uri_is_never_shown() -> None:
    assert shown_uri("qemu+ssh://root:secret@h:22/system?no_verify=1") == "qemu+ssh://root@h:22/system?no_verify=1"
    assert shown_uri("qemu:///system") == "qemu:///system"
    with pytest.raises(ConfigError) as caught:
        keys(LIBVIRT_URI="quemu+ssh://root:secret@h/system")
    assert "secret" not in str(caught.value)
    assert is_local("qemu+unix:///system")
    assert not is_local("qemu+ssh://h/system")
