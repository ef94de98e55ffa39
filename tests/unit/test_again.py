"""A few failed tests get a second try, alone; more do not, and what fails twice fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNSTEADY = """
from pathlib import Path
def test_unsteady():
    seen = Path("seen")
    known = seen.exists()
    seen.touch()
    assert known
def test_steady():
    pass
"""
BROKEN = "def test_broken():\n    assert False\n"
MANY = "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_of_many(n):\n    assert False\n"


def both_tries(directory: Path, content: str) -> tuple[int, str]:
    """The last status of a suite of one file, and what the second try printed."""
    (directory / "test_it.py").write_text(content)
    quick = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    pytest_run = [sys.executable, "-m", "pytest", "-q"]
    first = subprocess.run(pytest_run, cwd=directory, env=quick, capture_output=True, check=False)
    again = [sys.executable, str(Path(__file__).parents[1] / "again.py"), str(first.returncode)]
    second = subprocess.run(again, cwd=directory, env=quick, capture_output=True, text=True, check=False)
    return second.returncode, second.stdout


def test_a_test_that_passes_alone_passes_and_is_named(tmp_path: Path) -> None:
    status, told = both_tries(tmp_path, UNSTEADY)
    assert status == 0
    assert "unsteady, to be mended: test_it.py::test_unsteady" in told
    assert "1 passed" in told


def test_a_test_that_fails_twice_fails(tmp_path: Path) -> None:
    status, told = both_tries(tmp_path, BROKEN)
    assert status == 1
    assert "1 failed" in told
    assert "unsteady" not in told


@pytest.mark.parametrize(
    ("content", "status"), [(MANY, 1), ("def test(:", 2), ("", 5)], ids=["many", "no code", "no test"]
)
def test_anything_else_is_not_tried_again(tmp_path: Path, content: str, status: int) -> None:
    assert both_tries(tmp_path, content) == (status, "")
