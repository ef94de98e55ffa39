"""Many tunnels, one after the other and at once: nothing is left of them."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from caa.podnetwork.config import to_json
from tests.network.topology import Topology, echo_server, exchange, namespaces_in_use, run, snapshot
from tests.wire.ttrpc_peer import open_files

CYCLES = 200
AT_ONCE = 50
WORKERS = 4  # cycles go on at the same time on as many pods, as on a busy node


def held() -> set[object]:
    """File descriptors and threads of this process, and child processes that nobody waited for.

    Compare with `<=`: what an earlier test left may end at any moment.
    """
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {*open_files(), *threading.enumerate(), *children}


def test_two_hundred_tunnels_one_after_the_other_leave_nothing(topology: Topology) -> None:
    pods = [topology.pod(number) for number in range(2, 2 + WORKERS)]
    networks = [pod.inspect() for pod in pods]
    places = [topology.worker, *(pod.netns for pod in pods)]
    before = [snapshot(place) for place in places]
    held_before, namespaces_before = held(), namespaces_in_use()

    def cycle(place: int) -> None:
        for round_number in range(CYCLES // WORKERS):
            # Each tunnel has an id of its own, as in life.
            network = networks[place].with_tunnel_id(556000 + round_number * WORKERS + place)
            pods[place].setup(network)
            pods[place].teardown(network)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(cycle, range(WORKERS)))
    assert [snapshot(place) for place in places] == before
    assert held() <= held_before
    assert namespaces_in_use() == namespaces_before


def test_fifty_tunnels_at_once_work_and_leave_nothing(topology: Topology) -> None:
    pods = [topology.pod(number) for number in range(2, 2 + AT_ONCE)]
    places = [topology.worker, *(pod.netns for pod in pods)]
    before = [snapshot(place) for place in places]
    held_before, namespaces_before = held(), namespaces_in_use()
    networks = [pod.inspect() for pod in pods]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(lambda pod: pod.connect(), pods))
    assert made == networks
    assert run("ip", "netns", "exec", topology.worker, "iptables-save", "-t", "raw").count("NOTRACK") == 2 * AT_ONCE
    for pod, peer in zip(pods[::10], pods[1::10], strict=True):
        with echo_server(pod.podns, pod.address):
            for asking in (topology.worker, peer.podns):
                assert exchange(asking, pod.address, b"hello")[0] == b"hello"
    for pod, network in zip(pods, networks, strict=True):
        pod.setup_vm(to_json(network))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda pair: pair[0].teardown(pair[1]), zip(pods, networks, strict=True)))
    assert [snapshot(place) for place in places] == before
    # Each pod VM made one for its pod.
    assert namespaces_in_use() - AT_ONCE == namespaces_before
    assert held() <= held_before
