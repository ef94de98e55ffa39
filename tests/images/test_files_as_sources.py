"""`caa image build` from files: every format by its content, what is measured, and what is refused with which words."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caa.cli.main import main
from tests.images.conftest import Build
from tests.lab.smalldisk import MIB, ROOT_HASH, convert, gpt_disk, uki


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Formats


@pytest.mark.parametrize(
    "kind", ["raw", "qcow2", "qcow2,compression_type=zstd", "vpc", "vpc,subformat=fixed,force_size=on"]
)
def test_every_format_is_told_by_content_and_gives_the_same_disk(
    build: Build, disk: Path, output: Path, tmp_path: Path, kind: str
) -> None:
    source = convert(disk, kind, tmp_path / "named-like-nothing.iso")
    done = build(source)
    assert (done.code, done.facts["format"], done.facts["arch"]) == (0, "raw", "amd64")
    raw = output.read_bytes()
    assert raw[: disk.stat().st_size] == disk.read_bytes()
    assert not any(raw[disk.stat().st_size :])  # a dynamic VHD has whole cylinders
    assert done.facts["measurements"]["disk"] == sha256(output)


@pytest.mark.parametrize("packing", ["w:", "w:gz", "w:xz", "gz"])
def test_a_packed_disk_is_unpacked(build: Build, disk: Path, output: Path, tmp_path: Path, packing: Any) -> None:
    source = tmp_path / "packed"
    if packing == "gz":
        source.write_bytes(gzip.compress(disk.read_bytes()))
    else:
        with tarfile.open(source, packing) as archive:
            archive.add(convert(disk, "qcow2", tmp_path / "podvm.qcow2"), "some/podvm.qcow2")
    assert build(source).facts["measurements"]["disk"] == sha256(disk)
    assert sha256(output) == sha256(disk)


def test_a_vhd_for_azure_is_fixed_and_has_whole_mebibytes_and_a_right_footer(
    build: Build, disk: Path, tmp_path: Path, output: Path
) -> None:
    odd = Path(shutil.copy(disk, tmp_path / "odd"))
    with odd.open("r+b") as file:
        file.truncate(disk.stat().st_size + 512)
    before = sha256(odd)
    target = output.with_suffix(".vhd")
    done = build(odd, to=target)
    assert done.facts["format"] == "vhd"
    size = target.stat().st_size - 512
    assert size == disk.stat().st_size + MIB
    footer = target.read_bytes()[-512:]
    cookie, _, _, offset = struct.unpack_from(">8sIIQ", footer)
    assert (cookie, offset) == (b"conectix", 0xFFFFFFFFFFFFFFFF)
    original, current = struct.unpack_from(">QQ", footer, 40)
    (kind, checksum) = struct.unpack_from(">II", footer, 60)
    assert (original, current, kind) == (size, size, 2)  # 2: fixed
    assert checksum == ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF
    assert target.read_bytes()[: disk.stat().st_size] == disk.read_bytes()
    assert sha256(odd) == before
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_qcow2_for_libvirt_holds_the_same_disk(build: Build, disk: Path, output: Path, tmp_path: Path) -> None:
    done = build(disk, "--format", "qcow2")
    assert done.facts["measurements"]["disk"] == sha256(disk)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", output, tmp_path / "back"], check=True)
    assert sha256(tmp_path / "back") == sha256(disk)


def test_an_output_that_is_there_is_replaced_as_a_whole_or_not_at_all(
    build: Build, disk: Path, output: Path, tmp_path: Path
) -> None:
    output.write_text("old")
    assert build(tmp_path / "nothing").code == 1
    assert output.read_text() == "old"
    assert build(disk).code == 0
    assert sha256(output) == sha256(disk)


# Measurements


def test_disk_kernel_image_and_root_hash_are_measured(build: Build, disk: Path, output: Path) -> None:
    done = build(disk, "--kernel")
    assert done.facts["measurements"] == {
        "disk": sha256(disk),
        "uki": sha256(disk.with_name("uki.efi")),
        "verity-root-hash": ROOT_HASH,
    }
    assert output.with_name("podvm.vmlinuz").read_text() == "linux"
    assert output.with_name("podvm.initrd").read_text() == "initrd"
    assert output.with_name("podvm.cmdline").read_text() == f"quiet roothash={ROOT_HASH}"


def test_people_get_the_same_facts(disk: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", "build", "--output", str(output), "--source", str(disk)]) == 0
    printed = capsys.readouterr()
    assert f"disk sha256 {sha256(disk)}" in printed.out
    assert printed.err.splitlines() == ["image: unpack", "image: measure"]


def test_what_is_asked_for_must_hold_for_a_disk_from_elsewhere(build: Build, disk: Path, tmp_path: Path) -> None:
    assert build(disk, "--verity").code == 0  # it has a root hash
    done = build(disk, "--fips")
    assert f"{disk} has no unified kernel image that starts in FIPS mode, as is asked for" in done.stderr
    plain = gpt_disk(tmp_path / "plain")
    assert f"{plain} has no unified kernel image with the root hash of dm-verity" in build(plain, "--verity").stderr
    strict = gpt_disk(tmp_path / "strict", program=uki(tmp_path, "quiet fips=1"))
    assert build(strict, "--fips").code == 0
    assert "--payload is for disks that are built here" in build(disk, "--payload", "/srv").stderr


# Architectures


def test_a_disk_for_another_architecture_is_refused_with_what_was_found(build: Build, tmp_path: Path) -> None:
    arm = gpt_disk(tmp_path / "arm.raw", "BOOTAA64.EFI")
    done = build(arm)
    assert done.code == 1
    assert f"{arm} is a disk for arm64 (EFI/BOOT/BOOTAA64.EFI); what is asked for is amd64" in done.stderr
    assert build(arm, "--arch", "arm64").facts["arch"] == "arm64"


@pytest.mark.parametrize("magic", [b"zIPL", b"\xc9\xd7\xd3\xf1"])
def test_a_disk_that_zipl_prepared_is_for_s390x(build: Build, tmp_path: Path, magic: bytes) -> None:
    mainframe = tmp_path / "s390x"
    mainframe.write_bytes(magic.ljust(MIB, b"\0"))
    assert "is a disk for s390x (a zipl boot record); what is asked for is amd64" in build(mainframe).stderr
    assert build(mainframe, "--arch", "s390x").facts["arch"] == "s390x"


def test_a_disk_that_nothing_boots_from_is_refused(build: Build, tmp_path: Path) -> None:
    empty = gpt_disk(tmp_path / "empty", "OTHER.EFI")
    assert "is a disk that nothing boots from: no EFI/BOOT/BOOT*.EFI, no zipl and no boot code" in build(empty).stderr


# What is no disk


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a disk: it has no partition table (it is empty)"),
        (b"\x7fELF".ljust(MIB), "is not a disk: it has no partition table (it looks like a program)"),
        (b"<html>".ljust(MIB), "is not a disk: it has no partition table (it looks like a web page)"),
        (bytes(510) + b"\x55\xaa" + bytes(MIB), "is not a disk: its partition table is empty"),
        (b"QFI\xfb" + bytes(MIB), "cannot be read as qcow2"),
        (b"KDMV".ljust(MIB, b"\0"), "it looks like VMDK; convert it with qemu-img first"),
        (gzip.compress(os.urandom(MIB))[:1000], "cannot be unpacked"),
    ],
)
def test_what_is_no_disk_is_refused_by_name(build: Build, tmp_path: Path, content: bytes, words: str) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    done = build(source)
    assert done.code == 1
    assert str(source) in done.stderr
    assert words in done.stderr


def test_a_truncated_raw_disk_is_refused_with_both_sizes(build: Build, disk: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(disk.read_bytes()[: 5 * MIB])
    assert (
        f"{short} is cut off: its partition table needs {16 * MIB} bytes, and it has {5 * MIB}" in build(short).stderr
    )


@pytest.mark.parametrize("keep", [0.4, 0.95])
def test_a_truncated_qcow2_is_refused_though_it_could_be_read_as_zeros(
    build: Build, disk: Path, tmp_path: Path, keep: float
) -> None:
    short = convert(disk, "qcow2", tmp_path / "short")
    os.truncate(short, int(short.stat().st_size * keep))
    assert f"{short} is cut off" in build(short).stderr


def test_a_qcow2_that_points_at_a_file_of_this_machine_is_refused(build: Build, disk: Path, tmp_path: Path) -> None:
    thief = tmp_path / "thief"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk), str(thief)], check=True)
    assert f"{thief} is a qcow2 that needs another file ({disk}); flatten it first" in build(thief).stderr


def test_a_qcow2_that_has_its_data_elsewhere_or_is_encrypted_is_refused(build: Build, tmp_path: Path) -> None:
    split, secret = tmp_path / "split", tmp_path / "secret"
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, split, "1M"], check=True)
    assert f"{split} is a qcow2 that has its data in another file; flatten it first" in build(split).stderr
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", secret, "1M"], check=True)
    with secret.open("r+b") as file:
        file.seek(32)  # the method: LUKS
        file.write(struct.pack(">I", 2))
    assert f"{secret} is encrypted; decrypt it first" in build(secret).stderr


def test_a_disk_far_too_large_is_refused_before_it_is_unpacked(build: Build, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", bomb, "4096G"], check=True)
    assert f"{bomb} is a disk of 4096 GiB; allowed: up to 128 GiB" in build(bomb).stderr


def test_an_archive_with_several_files_is_refused_with_their_names(build: Build, disk: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        archive.add(disk, "one.raw")
        archive.add(disk, "two.raw")
    assert "is an archive of one.raw, two.raw; one disk is needed" in build(tmp_path / "two.tar").stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/nowhere/disk", "/nowhere/disk does not exist; a disk's file is needed"),
        ("/tmp", "/tmp is a directory; a disk's file is needed"),
        ("/dev/null", "/dev/null is a device; a disk's file is needed"),
        ("disk.raw", "image source 'disk.raw' is not allowed: must be a file's absolute path"),
        ("s3://bucket/disk", "image source 's3://bucket/disk' is not allowed: must be a file's absolute path"),
        ("bootc::quay.io/org/image", "bootc images are not built here"),
        ("oci::image", "must name registry and image"),
        ("oci::quay.io/org/image::/a/../../etc", "the path must not have '..' in it"),
        ("https://host/disk", "must end in #sha256= and the 64 hex digits"),
        (
            "https://user:secret@host/disk#sha256=12",
            "image source 'https://host/disk' is not allowed: must not have a user",
        ),
    ],
)
def test_a_source_that_is_none_is_refused_with_what_is_allowed(build: Build, source: str, words: str) -> None:
    done = build(source)
    assert done.code == 1
    assert words in done.stderr
    assert "secret" not in done.stderr


def test_the_configuration_is_used_where_no_option_is_given(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PODVM_IMAGE_URI", "/nowhere/configured")
    with pytest.raises(SystemExit):
        main(["image", "build", "--output", str(tmp_path / "out" / "podvm")])
    assert "/nowhere/configured does not exist" in capsys.readouterr().err
    monkeypatch.setenv("BOOT_FIPS", "maybe")
    assert "BOOT_FIPS: 'maybe' is not allowed: must be true or false" in build("/nowhere").stderr


def test_a_missing_tool_is_named_with_its_package(
    build: Build, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagebuilder.tools._SYSTEM_PATH", str(tmp_path))
    assert "qemu-img (package qemu-utils); apt-get install qemu-utils" in build(disk).stderr


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_done(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, words in ((tmp_path, "is a directory"), (tmp_path / "no" / "disk", "is no directory that exists")):
        with pytest.raises(SystemExit):
            main(["image", "build", "--output", str(place), "--source", str(disk)])
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Space


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file system of 72 MiB, of which 64 must stay free."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m", "tmpfs", place], check=True)
    return place


@pytest.fixture(autouse=True)
def _unmounted(tmp_path: Path) -> object:
    yield
    subprocess.run(["umount", tmp_path / "small"], check=False, stderr=subprocess.DEVNULL)


def test_a_lack_of_space_is_told_before_anything_is_written(build: Build, small: Path, tmp_path: Path) -> None:
    large = gpt_disk(tmp_path / "large", mib=32)
    with large.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(os.urandom(20 * MIB))
    done = build(convert(large, "qcow2", tmp_path / "large.qcow2"), to=small / "podvm")
    assert "MiB free; unpacking" in done.stderr


def test_a_disk_that_fills_up_meanwhile_is_told_and_cleared(
    build: Build, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = gpt_disk(tmp_path / "large", mib=96)
    with large.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(os.urandom(80 * MIB))
    plenty = SimpleNamespace(free=1 << 40)
    monkeypatch.setattr("imagebuilder.formats.shutil.disk_usage", lambda _: plenty)
    assert "the disk is full" in build(large, to=small / "podvm").stderr
