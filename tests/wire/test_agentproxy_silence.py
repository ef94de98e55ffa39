"""A pod VM that drops packets: before it is up, and after it died without a word. In network namespaces of the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from caa.agentproxy.repeatable import CHECK
from caa.ttrpc.client import Client
from tests.wire.agentproxy_guest import PATIENCE, Keys, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

# The shim gives up a pod when one health check has no answer for this long.
SHIM_CHECK_SECONDS = 30.0


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=PATIENCE)


class Wire:
    """A guest behind a veth pair; `cut` makes it receive without ever answering, `mend` undoes that."""

    def __init__(self, tag: int) -> None:
        self.namespace = f"apx{tag:x}"
        self.link = f"apx{tag:x}"
        network = f"198.18.{tag % 250}"  # the range for benchmarks of network devices
        self.worker, self.address = f"{network}.1", f"{network}.2"

    def cut(self) -> None:
        ip("-n", self.namespace, "route", "add", "blackhole", self.worker)

    def mend(self) -> None:
        ip("-n", self.namespace, "route", "del", "blackhole", self.worker)


@contextlib.contextmanager
def wire() -> Iterator[Wire]:
    w = Wire(os.getpid() % 60_000)
    ip("netns", "add", w.namespace)
    try:
        ip("link", "add", w.link, "type", "veth", "peer", "name", "eth0", "netns", w.namespace)
        ip("addr", "add", f"{w.worker}/24", "dev", w.link)
        ip("link", "set", w.link, "up")
        ip("-n", w.namespace, "addr", "add", f"{w.address}/24", "dev", "eth0")
        ip("-n", w.namespace, "link", "set", "eth0", "up")
        yield w
    finally:
        ip("netns", "del", w.namespace)  # takes the pair with it


@contextlib.contextmanager
def guest_process(w: Wire, keys: Keys) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.wire.agentproxy_guest", str(keys.directory), w.address]
    with subprocess.Popen(["ip", "netns", "exec", w.namespace, *command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def test_a_vm_that_drops_packets_while_it_boots_is_reached_soon_after_it_stops_dropping() -> None:
    async def main(net: Wire) -> None:
        async with world() as w:
            with guest_process(net, w.keys) as port:
                await w.open()
                net.cut()
                connecting = asyncio.create_task(w.control.connect("sb", [net.address], port, PATIENCE))
                # One long attempt would send its SYN at 0, 1, 3 and 7 seconds.
                await asyncio.wait([connecting], timeout=3.2)
                assert not connecting.done()
                began = asyncio.get_running_loop().time()
                net.mend()
                await connecting
                assert asyncio.get_running_loop().time() - began < 3.0  # the SYN at 7 s would come after 3.8

    with wire() as net:
        asyncio.run(main(net))


def test_a_vm_that_falls_silent_is_noticed_before_the_shim_s_health_check_fails() -> None:
    async def main(net: Wire) -> None:
        async with world() as w:
            with guest_process(net, w.keys) as port:
                path = await w.open()
                await w.control.connect("sb", [net.address], port, PATIENCE)
                async with await Client.connect(path) as shim:
                    await shim.call(*CHECK, b"", PATIENCE)
                    net.cut()
                    began = asyncio.get_running_loop().time()
                    assert await shim.call(*CHECK, b"", SHIM_CHECK_SECONDS) == b"\x08\x01"
                    assert asyncio.get_running_loop().time() - began < SHIM_CHECK_SECONDS / 2
                    waiting = asyncio.create_task(shim.call("grpc.AgentService", "Echo", b"later", SHIM_CHECK_SECONDS))
                    net.mend()
                    assert await waiting == b"later"

    with wire() as net:
        asyncio.run(main(net))
