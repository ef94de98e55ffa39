"""Whole builds, and an image whose root is checked by dm-verity: it boots, and a changed root does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.imagefile import ImageFile, build, image_file
from tests.vm.test_image_boots import PATIENCE, TARGET, booted, check_agent, direct, firmware

pytestmark = pytest.mark.skipif(
    not os.environ.get("CAA_SOAK") or os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None,
    reason="a long run: CAA_SOAK=1, as root, with qemu-system-x86",
)


@pytest.fixture(scope="module")
def image() -> ImageFile:
    """With a checked root and the FIPS flag."""
    return image_file(verity=True, fips=True)


def test_it_boots_from_firmware(image: ImageFile, tmp_path: Path) -> None:
    with booted(tmp_path, *firmware(), disk=image.path) as vm:
        check_agent(vm, TARGET["firmware"])


def test_it_boots_directly_and_is_told_to_be_in_fips_mode(image: ImageFile, tmp_path: Path) -> None:
    root_hash = image.facts["measurements"]["verity-root-hash"]
    assert re.search(rf"\broothash={root_hash} .*\bfips=1\b", image.command_line)
    with booted(tmp_path, *direct(image), disk=image.path) as vm:
        check_agent(vm, TARGET["direct"])


def test_a_root_that_was_changed_does_not_boot(image: ImageFile, tmp_path: Path) -> None:
    """One byte of each unit file: something that every boot reads."""
    raw = tmp_path / "changed.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.path, raw], check=True)
    places = [match.start() for match in re.finditer(rb"\[Unit\]\n", raw.read_bytes())]
    assert places
    with raw.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"#")
    changed = tmp_path / "changed.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, changed], check=True)
    with booted(tmp_path, *direct(image), disk=changed) as vm:
        deadline = time.monotonic() + PATIENCE * TARGET["direct"]
        while vm.process.poll() is None:  # -no-reboot: the reboot after the panic ends QEMU
            assert time.monotonic() < deadline, vm.console[-20:]
            time.sleep(0.1)
    assert any("dm-verity" in line and "corrupt" in line for line in vm.console), vm.console[-20:]


def test_two_builds_of_the_same_inputs_give_the_same_disk(image: ImageFile, tmp_path: Path) -> None:
    """Under another umask, for nothing of the machine may show."""
    before = os.umask(0o027)
    try:
        again = build(tmp_path / "podvm.raw", "--verity", "--fips")
    finally:
        os.umask(before)
    assert again["measurements"] == image.facts["measurements"]
