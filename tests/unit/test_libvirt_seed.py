"""The seed, read back by others than its maker."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pycdlib
import pytest

from providers.libvirt.seed import seed_iso

USER_DATA = b"#cloud-config\n\nwrite_files:\n" + bytes(range(256)) * 1000


@pytest.mark.parametrize("way", ["rr_path", "joliet_path"])
@pytest.mark.parametrize("user_data", [USER_DATA, b""], ids=["large", "empty"])
def test_linux_sees_the_lower_case_names_by_either_extension(way: str, user_data: bytes) -> None:
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(seed_iso("podvm-web-1", user_data)))
    got = {}
    for name in ("user-data", "meta-data", "vendor-data"):
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, **{way: f"/{name}"})
        got[name] = out.getvalue()
    iso.close()
    assert got == {"user-data": user_data, "meta-data": b"local-hostname: podvm-web-1\n", "vendor-data": b""}


def test_blkid_finds_the_label(tmp_path: Path) -> None:
    if not shutil.which("blkid"):
        pytest.skip("needs util-linux")
    file = tmp_path / "seed.iso"
    file.write_bytes(seed_iso("n", USER_DATA))
    said = subprocess.run(["blkid", "-p", "-o", "export", str(file)], capture_output=True, text=True, check=True).stdout
    assert "LABEL=cidata" in said
    assert "TYPE=iso9660" in said


def test_the_same_request_gives_a_seed_of_the_same_length() -> None:
    """Repeating a launch writes over the seed in place."""
    assert len(seed_iso("n", USER_DATA)) == len(seed_iso("n", USER_DATA))
