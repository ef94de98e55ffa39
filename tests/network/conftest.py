"""Fixtures: a topology of network namespaces, made for one test and removed after it. Needs root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.network.topology import Topology


@pytest.fixture
def topology() -> Iterator[Topology]:
    """The usual one: 1500 bytes everywhere, IPv4 only."""
    made = Topology()
    try:
        yield made
    finally:
        made.close()
