"""`caa explain` as a real process against the real REST interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa.sizing import MACHINE_TYPE, MEMORY, VCPUS
from tests.wire.rest_service import PATIENCE_S, serving, settings_in


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(settings_in(Path(tmp_path_factory.mktemp("cli")))) as running:
        yield running.socket


def run(socket: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caa.cli.main", "explain", *arguments],
        env={"PATH": os.environ["PATH"], "CAA_API_SOCKET": socket},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_people_get_a_table(socket: str) -> None:
    done = run(socket, "--annotation", f"{VCPUS}=0", "--annotation", f"{MEMORY}=4096")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("Rule default: the pod asks for nothing") for line in lines)
    assert "Ignored 4096 MiB: ignored, because 0 vCPUs ask for the default type" in lines
    assert "Image ami-1" in lines
    assert "Launched m6a.large in eu-1b, on-demand, with 2 vCPUs and 8192 MiB" in lines
    assert "ORDER TYPE ZONE MARKET VCPUS MIB GPUS PRICE WHY NOT" in lines
    assert "2 m6a.large eu-1b on-demand 2 8192 - -" in lines
    assert "3 m6a.xlarge eu-1a on-demand 4 16384 - 0.1728" in lines
    assert "- g4dn.xlarge eu-1a on-demand 4 16384 1 T4 - has 1 GPU, and none is asked for" in lines


def test_programs_get_json(socket: str) -> None:
    done = run(socket, "--output", "json", "--annotation", f"{MACHINE_TYPE}=m6a.xlarge")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["rule"], told["chosen"]["type"]) == ("machine_type", "m6a.xlarge")


@pytest.mark.parametrize("output", ["table", "json"])
def test_that_nothing_would_be_launched_is_1_with_the_reason_after_the_table(socket: str, output: str) -> None:
    done = run(socket, "--output", output, "--annotation", f"{VCPUS}=99")
    assert done.returncode == 1
    assert "given vcpus (99) and memory (0); the largest type without GPUs is m6a.xlarge" in done.stderr
    assert "has 2 vCPUs of 99" in done.stdout


def test_wrong_annotations_are_told_apart_from_wrong_use(socket: str) -> None:
    done = run(socket, "--annotation", f"{VCPUS}=many")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"annotation {VCPUS} is 'many'" in done.stderr
    done = run(socket, "--annotation", "no-pair")
    assert done.returncode == 2
    assert "KEY=VALUE" in done.stderr


def test_no_service_is_3(tmp_path: Path) -> None:
    done = run(str(tmp_path / "nobody.sock"))
    assert done.returncode == 3
    assert "CAA_API_SOCKET" in done.stderr
