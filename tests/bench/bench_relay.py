"""What the agent proxy costs: added round trip, throughput and memory, each beside a plain TLS byte relay.

`python -m tests.bench.bench_relay` prints one JSON object a line. Client, relay and guest are three processes over
loopback, so on a machine with few processors that does other work the ratios say more than the figures.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from caa.ttrpc.frames import HEADER, REQUEST, Request, frame, response_frame
from tests.wire.agentproxy_guest import (
    PATIENCE,
    SERVER_NAME,
    Keys,
    ProxyProcess,
    make_keys,
    server_context,
    short_directory,
)

# What is promised.
ROUND_TRIP_MICROSECONDS = 150
THROUGHPUT_BYTES = 150_000_000
RSS_BYTES = 60_000_000

ROUNDS = 7  # each measured alternately; the medians of the rounds count
CALLS = 400
CHUNKS = 192
CHUNK_BYTES = 1 << 20  # the shim's file chunks
IDLE_SANDBOXES = 50

Connect = Callable[[], socket.socket]


def _read_exactly(sock: socket.socket, view: memoryview) -> None:
    at = 0
    while at < len(view):
        count = sock.recv_into(view[at:])
        if count == 0:
            raise EOFError
        at += count


def _serve_connection(raw: socket.socket, context: ssl.SSLContext) -> None:
    """Answer every request: an Echo with the same data, all else with nothing."""
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    header = memoryview(bytearray(HEADER.size))
    buffer = memoryview(bytearray(5 << 20))
    try:
        with context.wrap_socket(raw, server_side=True) as sock:
            while True:
                _read_exactly(sock, header)
                length, stream_id, _, _ = HEADER.unpack(header)
                _read_exactly(sock, buffer[:length])
                payload = bytes(buffer[:length]) if length < 2 * 1024 else b""
                if length < 100:  # a health check: serving
                    payload = b"\x08\x01"
                sock.sendall(response_frame(stream_id, payload))
    except (EOFError, OSError):
        pass


def _guest(keys: Keys, port_to: multiprocessing.connection.Connection) -> None:
    context = server_context(keys)
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        port_to.send(listener.getsockname()[1])
        while True:
            raw, _ = listener.accept()
            threading.Thread(target=_serve_connection, args=(raw, context), daemon=True).start()


def _unix(path: Path) -> Connect:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return sock

    return connect


def _direct(keys: Keys, port: int) -> Connect:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=keys.ca)
    context.load_cert_chain(*keys.client)

    def connect() -> socket.socket:
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(raw, server_hostname=SERVER_NAME)

    return connect


def _request(stream_id: int, method: str, size: int) -> bytes:
    return frame(stream_id, REQUEST, Request(service="grpc.AgentService", method=method, payload=bytes(size)).encode())


def round_trip(connect: Connect) -> float:
    """Median seconds of a call with 1 KiB each way."""
    with connect() as sock:
        answer = memoryview(bytearray(4096))
        times = []
        for index in range(CALLS + 50):
            data = _request(2 * index + 1, "Echo", 1024)
            began = time.perf_counter()
            sock.sendall(data)
            _read_exactly(sock, answer[: HEADER.size])
            _read_exactly(sock, answer[: HEADER.unpack(answer[: HEADER.size])[0]])
            times.append(time.perf_counter() - began)
        return statistics.median(times[50:])


def throughput(connect: Connect) -> float:
    """Bytes a second from client to guest, in chunks of 1 MiB, until the guest answered the last."""
    with connect() as sock:
        data = _request(1, "CopyFile", CHUNK_BYTES)
        answers = memoryview(bytearray(CHUNKS * len(response_frame(1, b""))))
        began = time.perf_counter()
        for _ in range(CHUNKS):
            sock.sendall(data)
        _read_exactly(sock, answers)
        return CHUNKS * CHUNK_BYTES / (time.perf_counter() - began)


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


def _check(sock: socket.socket) -> None:
    sock.sendall(frame(1, REQUEST, Request(service="grpc.Health", method="Check").encode()))
    _read_exactly(sock, memoryview(bytearray(HEADER.size)))


async def _open(proxy: ProxyProcess, keys: Keys, root: Path, port: int, sandbox_id: str) -> Path:
    path = root / "pods" / sandbox_id / "agent.ttrpc"
    await proxy.control.open(sandbox_id, str(path), SERVER_NAME, keys.ca, *keys.client)
    await proxy.control.connect(sandbox_id, ["127.0.0.1"], port, PATIENCE)
    return path


@contextmanager
def _setting() -> Iterator[tuple[Keys, int, Path, ProxyProcess, Path, subprocess.Popen[bytes]]]:
    with short_directory() as root:
        keys = make_keys(root / "keys")
        here, there = multiprocessing.Pipe()
        guest = multiprocessing.get_context("spawn").Process(target=_guest, args=(keys, there), daemon=True)
        guest.start()
        port: int = here.recv()
        proxy = ProxyProcess(root, 30.0)
        plain_path = root / "plain.sock"
        command = [sys.executable, "-m", "tests.bench.plain_relay", str(plain_path), str(port), SERVER_NAME]
        plain = subprocess.Popen([*command, keys.ca, *keys.client])
        try:
            asyncio.run(proxy.started())
            while not plain_path.exists():
                time.sleep(0.02)
            yield keys, port, root, proxy, plain_path, plain
        finally:
            proxy.stop()
            plain.kill()
            plain.wait()
            guest.kill()
            guest.join()


def _line(name: str, unit: str, value: float, plain: float, target: float, kept: bool) -> None:
    fields = {"measure": name, "unit": unit, "value": round(value, 1), "plain_relay": round(plain, 1)}
    print(json.dumps({**fields, "ratio": round(value / plain, 2), "target": target, "kept": kept}))


def main() -> int:
    """Measure and print; returns 1 when a promise is not kept."""
    with _setting() as (keys, port, root, proxy, plain_path, plain):
        ours = _unix(asyncio.run(_open(proxy, keys, root, port, "bench")))
        paths = {"direct": _direct(keys, port), "proxy": ours, "plain": _unix(plain_path)}
        trips: dict[str, list[float]] = {name: [] for name in paths}
        speeds: dict[str, list[float]] = {name: [] for name in paths}
        for measure, results in ((round_trip, trips), (throughput, speeds)):
            for _ in range(ROUNDS):
                for name, connect in paths.items():
                    results[name].append(measure(connect))
        trip = {name: statistics.median(values) * 1e6 for name, values in trips.items()}
        speed = {name: statistics.median(values) for name, values in speeds.items()}
        added, plain_added = trip["proxy"] - trip["direct"], trip["plain"] - trip["direct"]

        idle = []
        for index in range(IDLE_SANDBOXES):
            idle.append(_unix(asyncio.run(_open(proxy, keys, root, port, f"idle-{index}")))())
            _check(idle[-1])
            idle.append(_unix(plain_path)())
            _check(idle[-1])
        rss, plain_rss = _rss(proxy.process.pid), _rss(plain.pid)
        for sock in idle:
            sock.close()
    kept = (added <= ROUND_TRIP_MICROSECONDS, speed["proxy"] >= THROUGHPUT_BYTES, rss <= RSS_BYTES)
    print(json.dumps({"measure": "round trip without relay", "unit": "us", "value": round(trip["direct"], 1)}))
    print(json.dumps({"measure": "throughput without relay", "unit": "MB/s", "value": round(speed["direct"] / 1e6, 1)}))
    _line("added round trip, 1 KiB", "us", added, plain_added, ROUND_TRIP_MICROSECONDS, kept[0])
    _line("throughput", "MB/s", speed["proxy"] / 1e6, speed["plain"] / 1e6, THROUGHPUT_BYTES / 1e6, kept[1])
    _line(f"RSS, {IDLE_SANDBOXES} idle sandboxes", "MB", rss / 1e6, plain_rss / 1e6, RSS_BYTES / 1e6, kept[2])
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
