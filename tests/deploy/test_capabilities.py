"""`caa serve` gets exactly the capabilities that its work on pod networks takes: with one less, that fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.deploy.capabilities import confined, granted
from tests.network.topology import FIRST, Pod, Topology, path_of

# What a start does with the pod's network and its metadata address, and an end undoes.
PROGRAM = """
import sys
from caa.podnetwork.metadatadoor import MetadataDoor
from caa.podnetwork.tunnel import setup, teardown
from caa.podnetwork.worker import TunnelSettings, inspect
path, tunnel_id, *addresses = sys.argv[1:]
network = inspect(path, TunnelSettings()).with_tunnel_id(int(tunnel_id))
setup(path, addresses, network)
door = MetadataDoor()
for listener in door.open(path, network):
    listener.close()
door.remove(network)
door.close()
teardown(path, network)
"""


@pytest.fixture
def pod() -> Iterator[Pod]:
    topology = Topology()
    try:
        yield topology.pod(2)
    finally:
        topology.close()


def work(pod: Pod, capabilities: list[str]) -> subprocess.CompletedProcess[str]:
    """All of it, in the worker's namespace."""
    command = [sys.executable, "-c", PROGRAM, path_of(pod.netns), str(FIRST), *pod.vm_addresses]
    enter = ["ip", "netns", "exec", pod.topology.worker, *confined(capabilities), 'exec "$@"', "sh"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=300)


def test_the_capabilities_of_the_manifest_are_enough_and_each_is_needed(pod: Pod) -> None:
    capabilities = granted("serve")
    for missing in capabilities:
        done = work(pod, [one for one in capabilities if one != missing])
        assert done.returncode != 0, f"nothing needs {missing}"
        assert "ermi" in done.stderr, done.stderr  # Operation not permitted, Permission denied
    done = work(pod, capabilities)
    assert done.returncode == 0, done.stderr


def test_the_proxy_has_none() -> None:
    assert granted("proxy") == []
