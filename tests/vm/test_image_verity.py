"""An image whose root is checked by dm-verity: it boots by firmware and directly, and a changed root does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import caa
from imagebuilder.build import BuiltImage, build, read_built
from imagebuilder.recipe import Recipe
from tests.vm.test_image_boots import PATIENCE, TARGET, booted, check_agent, direct, firmware

pytestmark = pytest.mark.skipif(
    not os.environ.get("CAA_SOAK") or os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None,
    reason="a long run: CAA_SOAK=1, as root, with qemu-system-x86",
)


@pytest.fixture(scope="module")
def image() -> BuiltImage:
    """With a checked root and the FIPS flag."""
    out = Path(os.environ.get("CAA_TEST_IMAGE_CACHE", "/var/cache/caa-test")) / "podvm-verity.qcow2"
    recipe = Recipe(Path(caa.__file__).parent, verity=True, fips=True)
    return read_built(out, recipe=recipe) or build(out, recipe=recipe)


def test_it_boots_from_firmware(image: BuiltImage, tmp_path: Path) -> None:
    with booted(tmp_path, *firmware(), disk=image.path) as vm:
        check_agent(vm, TARGET["firmware"])


def test_it_boots_directly_and_is_told_to_be_in_fips_mode(image: BuiltImage, tmp_path: Path) -> None:
    assert re.search(r"\broothash=[0-9a-f]{64} .*\bfips=1\b", image.command_line)
    with booted(tmp_path, *direct(image), disk=image.path) as vm:
        check_agent(vm, TARGET["direct"])


def test_a_root_that_was_changed_does_not_boot(image: BuiltImage, tmp_path: Path) -> None:
    """One byte in the middle of a file that every boot reads."""
    raw = tmp_path / "changed.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.path, raw], check=True)
    text = b'server_addr = "unix:///run/kata-containers/agent.sock"'
    content = raw.read_bytes()
    with raw.open("r+b") as file:
        for match in re.finditer(rb"Description=Agent|\[Unit\]\n", content):
            file.seek(match.start())
            file.write(b"#")
    assert text in content
    changed = tmp_path / "changed.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, changed], check=True)
    with booted(tmp_path, *direct(image), disk=changed) as vm:
        deadline = time.monotonic() + PATIENCE * TARGET["direct"]
        while vm.process.poll() is None:  # -no-reboot: the end of the panic's five seconds ends QEMU
            assert time.monotonic() < deadline, vm.console[-20:]
            time.sleep(0.1)
    assert any("dm-verity" in line and "corrupt" in line for line in vm.console), vm.console[-20:]
