"""Finding the user data ISO among the disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from caa.guest.seed import find_seed, mount_seed


def add_disk(directory: Path, name: str, label: bytes) -> None:
    """A disk that has `label` where ISO 9660 has its volume id."""
    for place in ("names", "devices"):
        (directory / place).mkdir(exist_ok=True)
    (directory / "names" / name).touch()
    image = bytearray(2048 * 20)
    image[2048 * 16 + 40 : 2048 * 16 + 72] = label.ljust(32)
    (directory / "devices" / name).write_bytes(image)


def find(directory: Path) -> str | None:
    found = find_seed(directory / "names", directory / "devices")
    return found.name if found else None


@pytest.mark.parametrize("label", [b"cidata", b"CIDATA"])
def test_the_disk_with_the_label_is_found_among_others(tmp_path: Path, label: bytes) -> None:
    add_disk(tmp_path, "sda", b"root")
    add_disk(tmp_path, "vdb", b"cidata-not-quite")
    assert find(tmp_path) is None
    add_disk(tmp_path, "sr0", label)
    assert find(tmp_path) == "sr0"


def test_disks_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    add_disk(tmp_path, "loop0", b"cidata")
    add_disk(tmp_path, "sda", b"")
    (tmp_path / "names/sdb").touch()  # no device node
    (tmp_path / "devices/sda").write_bytes(b"short")
    assert find(tmp_path) is None


def test_user_data_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "user-data").touch()
    assert mount_seed(tmp_path, patience=0)


def test_without_a_disk_the_wait_is_bounded(tmp_path: Path) -> None:
    add_disk(tmp_path, "sda", b"root")
    assert not mount_seed(tmp_path / "empty", 0, tmp_path / "names", tmp_path / "devices")
