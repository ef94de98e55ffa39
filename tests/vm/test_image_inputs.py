"""What an image is made from: recorded, told apart, and refused with a clear word when it cannot work."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import caa
import imagebuilder.tools
from caa.cli.main import main
from imagebuilder.disk import assemble, root_label
from imagebuilder.errors import ImageError, PassingImageError
from imagebuilder.initrd import write_cpio
from imagebuilder.platforms import PLATFORMS, platform_of
from imagebuilder.recipe import Recipe, read_inputs
from imagebuilder.rootimage import build_root_image
from imagebuilder.tools import BuildError, MissingToolError, check_tools, run

GUEST = Path(caa.__file__).parent


def make_guest(directory: Path) -> Path:
    for part in ("ttrpc", "guest", "podnetwork"):
        (directory / part).mkdir(parents=True)
        (directory / part / "a.py").write_text("a = 1\n")
    (directory / "__init__.py").write_text("")
    return directory


def main_fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What it says; without the lines of its progress."""
    with pytest.raises(SystemExit):
        main(arguments)
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("caa: "))


def test_equal_inputs_have_an_equal_id_and_any_change_has_another(tmp_path: Path) -> None:
    guest = make_guest(tmp_path / "guest")
    first = read_inputs(Recipe(guest), "amd64")
    (guest / "guest/__pycache__").mkdir()
    (guest / "guest/__pycache__/a.pyc").write_bytes(b"compiled")
    assert read_inputs(Recipe(guest), "amd64") == first
    ids = {first.id}
    (guest / "guest/a.py").write_text("a = 2\n")
    ids.add(read_inputs(Recipe(guest), "amd64").id)
    payload = tmp_path / "payload"
    payload.mkdir()
    ids.add(read_inputs(Recipe(guest, payload), "amd64").id)
    (payload / "file").symlink_to("/target")
    ids.add(read_inputs(Recipe(guest, payload), "amd64").id)
    assert len(ids) == 4


def test_a_foreign_architecture_needs_what_runs_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebuilder.platforms._BINFMT", tmp_path)
    foreign = "arm64" if os.uname().machine == "x86_64" else "amd64"
    entry = tmp_path / PLATFORMS[foreign].emulator
    for content in (None, "disabled\nflags: F\n", "enabled\ninterpreter /usr/bin/qemu\nflags: P\n"):
        if content is not None:
            entry.write_text(content)
        with pytest.raises(ImageError, match=f"cannot run programs of {foreign}.*apt-get install qemu-user-static"):
            platform_of(foreign)
    entry.write_text("enabled\ninterpreter /usr/bin/qemu\nflags: POF\n")
    assert platform_of(foreign) is PLATFORMS[foreign]


def test_a_payload_with_an_agent_replaces_the_stand_in(tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    (payload / "usr/local/bin").mkdir(parents=True)
    assert read_inputs(Recipe(GUEST, payload), "amd64").agent == "stand-in"
    (payload / "usr/local/bin/kata-agent").write_bytes(b"\x7fELF")
    assert read_inputs(Recipe(GUEST, payload), "amd64").agent == "kata-agent"
    with tarfile.open(tmp_path / "payload.tar.gz", "w:gz") as archive:
        archive.add(payload, ".")
    assert read_inputs(Recipe(GUEST, tmp_path / "payload.tar.gz"), "amd64").agent == "kata-agent"


def test_inputs_that_cannot_work_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arch, why in (("riscv64", "it is not supported"), ("s390x", "its boot record is written by zipl")):
        with pytest.raises(ImageError, match=f"images for {arch} are not built by the recipe .{why}"):
            platform_of(arch)
    with pytest.raises(BuildError, match="payload: /nowhere is not a directory or a tar file"):
        read_inputs(Recipe(GUEST, Path("/nowhere")), "amd64")
    with pytest.raises(BuildError, match=r"guest_source: .* has no __init__\.py"):
        read_inputs(Recipe(tmp_path), "amd64")
    (tmp_path / "not-a-tar").write_text("text")
    with pytest.raises(BuildError, match="tar failed"):
        read_inputs(Recipe(GUEST, tmp_path / "not-a-tar"), "amd64")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(BuildError, match="SOURCE_DATE_EPOCH: 'yesterday'"):
        read_inputs(Recipe(GUEST), "amd64")


def test_every_missing_tool_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagebuilder.tools, "_SYSTEM_PATH", str(tmp_path))
    with pytest.raises(MissingToolError) as caught:
        check_tools(["mcopy", "mmdebstrap"], {tmp_path / "stub": "systemd-boot-efi"})
    text = str(caught.value)
    assert "mcopy (package mtools)" in text
    assert "mmdebstrap (package mmdebstrap)" in text
    assert text.endswith("apt-get install mmdebstrap mtools systemd-boot-efi")
    assert caught.value.permanent


def test_a_failing_tool_is_quoted_and_a_full_disk_is_called_so() -> None:
    with pytest.raises(BuildError, match="sh failed with exit code 3: went wrong"):
        run(["sh", "-c", "echo went wrong >&2; exit 3"])
    with pytest.raises(PassingImageError, match="the disk is full") as caught:
        run(["sh", "-c", "echo No space left on device >&2; exit 1"])
    assert caught.value.reason == "NoSpace"


@pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")
def test_a_failed_build_leaves_nothing_and_keeps_the_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails half way: the guest's source does not compile in the finished root."""
    for tool in ("mmdebstrap", "objcopy", "mcopy", "depmod"):
        if not any((Path(place) / tool).exists() for place in ("/usr/bin", "/usr/sbin")):
            pytest.skip(f"needs {tool}")
    out = tmp_path / "out/podvm.qcow2"
    out.parent.mkdir()
    out.write_bytes(b"old")
    guest = make_guest(tmp_path / "guest")
    (guest / "guest/broken.py").write_text("def (\n")
    monkeypatch.setattr("caa.__file__", str(guest / "__init__.py"))
    assert main_fails(["image", "build", "--output", str(out)], capsys).startswith("caa: chroot failed")
    assert [path.name for path in out.parent.iterdir()] == ["podvm.qcow2"]
    assert out.read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="files in an image belong to root")
@pytest.mark.parametrize("verity", [False, True])
def test_equal_files_give_an_equal_disk_whenever_and_in_whatever_order_they_were_made(
    tmp_path: Path, verity: bool
) -> None:
    inputs = read_inputs(Recipe(GUEST, verity=verity), "amd64")
    uki = tmp_path / "uki.efi"
    uki.write_bytes(bytes(3 << 20))
    names = [f"etc/{number}" for number in range(200)]
    for disk, order in (("one", names), ("two", names[::-1])):
        root = tmp_path / f"root-{disk}"
        (root / "etc").mkdir(parents=True)
        for name in order:
            (root / name).write_text(name)
        (root / "link").symlink_to("etc/7")
        os.link(root / "etc/7", root / "second-name")
        for path in (root, *root.rglob("*")):
            os.utime(path, (10**9, inputs.source_date_epoch), follow_symlinks=False)
        work = tmp_path / f"work-{disk}"
        work.mkdir()
        assemble(build_root_image(root, inputs, work, lambda *_told: None), uki, inputs, tmp_path / disk)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    table = subprocess.run(["/usr/sbin/sfdisk", "--dump", tmp_path / "one"], capture_output=True, text=True, check=True)
    assert f'name="{root_label(inputs.id)}"' in table.stdout
    assert (f'name="{root_label(inputs.id)}-verity"' in table.stdout) is verity


def test_the_initrd_archive_is_read_back_as_it_was(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "init").write_bytes(b"#!/bin/sh\n")
    (tree / "init").chmod(0o755)
    write_cpio(tree, tmp_path / "initrd")
    data = gzip.decompress((tmp_path / "initrd").read_bytes())
    names, at = {}, 0
    while True:
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = -(-(at + 110 + fields[11]) // 4) * 4
        if name == "TRAILER!!!":
            break
        names[name] = (fields[1], data[start : start + fields[6]])
        at = -(-(start + fields[6]) // 4) * 4
    assert names["init"] == (0o100755, b"#!/bin/sh\n")
    assert names["bin/sh"] == (0o120777, b"busybox")
    assert names["bin"][0] & 0o170000 == 0o040000


@pytest.mark.skipif(os.geteuid() != 0, reason="building needs root")
@pytest.mark.parametrize("killed", ["the command is told to end", "its tool is killed"])
def test_a_build_that_ends_half_way_leaves_no_file_no_mount_and_no_program(tmp_path: Path, killed: str) -> None:
    """In the middle of mmdebstrap, which has programs of its own running in the new root."""
    command = [sys.executable, "-m", "caa.cli.main", "image", "build", "--output", str(tmp_path / "podvm")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 600
        while not list(tmp_path.glob(".image-*/.image-*/root/var/lib/dpkg/status")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if killed == "its tool is killed":
            (tool,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.killpg(int(tool), signal.SIGKILL)
            assert process.stderr is not None
            assert "caa: mmdebstrap failed with exit code -9" in process.stderr.read()
        else:
            process.terminate()
        assert process.wait(120) == 1
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 60
    while [path for path in Path("/proc").glob("[0-9]*/root") if str(tmp_path) in _target(path)]:
        assert time.monotonic() < deadline  # whoever was killed is gone when it had its turn
        time.sleep(0.05)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
