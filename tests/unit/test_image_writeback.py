"""Where the id of an image goes that was built here; a user's is never touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from caa.images.imaging import OnlyLedger, WriteBackError
from caa.images.writeback import ConfigMapWriteBack, DirectoryWriteBack, write_back

KEY, LATEST = "PODVM_AMI_ID", "LATEST_AMI_ID"


def back(directory: Path) -> DirectoryWriteBack:
    made = write_back({"CAA_CONFIG_DIR": str(directory)}, KEY, LATEST)
    assert isinstance(made, DirectoryWriteBack)
    return made


def test_the_id_is_written_where_none_was_replaced_when_it_changes_and_cleared_when_the_image_goes(
    tmp_path: Path,
) -> None:
    (tmp_path / KEY).write_text("\n")
    for image in ("ami-1", "ami-2", ""):
        back(tmp_path).written(image)
        assert [(tmp_path / name).read_text() for name in (KEY, LATEST)] == [image, image]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, KEY]


@pytest.mark.parametrize("image", ["ami-1", ""])
def test_what_a_user_named_stays(tmp_path: Path, image: str) -> None:
    (tmp_path / KEY).write_text("ami-of-a-user")
    back(tmp_path).written(image)
    assert (tmp_path / KEY).read_text() == "ami-of-a-user"


def test_a_key_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / KEY).touch(0o640)
    back(tmp_path).written("ami-1")
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o640


def test_a_mounted_configmap_is_a_copy_and_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "..data").symlink_to(tmp_path)
    assert isinstance(write_back({"CAA_CONFIG_DIR": str(tmp_path)}, KEY, LATEST), OnlyLedger)
    assert isinstance(write_back({}, KEY, LATEST), OnlyLedger)


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(WriteBackError, match="gone"):
        DirectoryWriteBack(tmp_path / "gone", KEY, LATEST).written("ami-1")


class Object:
    """A ConfigMap as the API server keeps it; `others` write before so many patches come through."""

    def __init__(self, data: dict[str, str], others: int = 0) -> None:
        self.data = data
        self.annotations: dict[str, str] = {}
        self.version = 1
        self.others = others

    def read(self) -> tuple[Mapping[str, str], str]:
        return dict(self.data), str(self.version)

    def patch(self, data: Mapping[str, str], annotations: Mapping[str, str | None], resource_version: str) -> bool:
        if self.others:
            self.others -= 1
            self.version += 1
        if resource_version != str(self.version):
            return False
        self.data |= data
        for key, value in annotations.items():
            self.annotations.pop(key, None)
            if value is not None:
                self.annotations[key] = value
        self.version += 1
        return True


def test_a_configmap_is_patched_at_the_version_that_was_read() -> None:
    kept = Object({KEY: "", "AWS_REGION": "eu-west-1"}, others=2)
    ConfigMapWriteBack(kept, KEY, LATEST).written("ami-1")
    assert kept.data == {KEY: "ami-1", LATEST: "ami-1", "AWS_REGION": "eu-west-1"}
    assert kept.annotations == {LATEST: "ami-1"}
    version = kept.version
    ConfigMapWriteBack(kept, KEY, LATEST).written("ami-1")
    assert kept.version == version
    ConfigMapWriteBack(kept, KEY, LATEST).written("")
    assert (kept.data[KEY], kept.annotations) == ("", {})


def test_a_user_who_sets_the_key_meanwhile_wins() -> None:
    kept = Object({KEY: "ami-of-a-user"})
    ConfigMapWriteBack(kept, KEY, LATEST).written("ami-1")
    assert kept.data == {KEY: "ami-of-a-user"}


def test_a_configmap_that_never_stands_still_is_told() -> None:
    with pytest.raises(WriteBackError, match=KEY):
        ConfigMapWriteBack(Object({}, others=1000), KEY, LATEST).written("ami-1")
