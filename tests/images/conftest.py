"""What tests of image sources share: `caa image build` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caa.cli.main import main
from tests.lab.smalldisk import gpt_disk, uki


class Outcome(NamedTuple):
    """How the command ended. `facts` is what --json printed."""

    code: int
    facts: dict[str, Any]
    stderr: str


Build = Callable[..., Outcome]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The file that is asked for, alone in a directory."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "podvm"


@pytest.fixture
def build(output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Build:
    """Run it; when it fails, look that it left nothing."""
    for key in ("PODVM_IMAGE_URI", "CAA_IMAGE_ARCH", "REGISTRY_AUTH_FILE", "CAA_CONFIG_DIR"):
        monkeypatch.delenv(key, raising=False)

    def run(source: str | Path, *arguments: str, to: Path = output) -> Outcome:
        capsys.readouterr()
        before = sorted(to.parent.iterdir())
        try:
            code = main(["image", "build", "--json", "--output", str(to), "--source", str(source), *arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        if code:
            assert sorted(to.parent.iterdir()) == before
            assert printed.out == ""
        return Outcome(code, json.loads(printed.out) if printed.out else {}, printed.err)

    return run


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bootable disk for amd64, with a unified kernel image."""
    directory = tmp_path_factory.mktemp("disk")
    return gpt_disk(directory / "disk.raw", program=uki(directory))
