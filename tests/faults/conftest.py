"""What the fault tests on the emulated AWS share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.forkserver import ForkServer


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts services quickly."""
    with ForkServer() as forks:
        yield forks
