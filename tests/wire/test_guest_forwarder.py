"""Forwarder and stand-in agent as the processes they are, with real mutual TLS on loopback and a real pod's calls."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Request, Response, frame
from caa.ttrpc.protobuf import LEN, VARINT, write_field
from tests.wire.agentproxy_guest import SERVER_NAME, Keys, make_keys

POD_LIFE = Path(__file__).with_name("guest_pod_life.jsonl")
# How long a test waits for what another process does. Only a failing test waits this long.
PATIENCE = 20.0

AGENT = "from caa.guest.standin_agent import StandinAgent as A; A(Path(a[1]), Path(a[2]), Path(a[3])).run()"
FORWARDER = (
    "from caa.guest.forwarder import Forwarder as F; "
    "F(Path(a[1]), Path('/nowhere'), Path(a[2]), ('127.0.0.1', 0), Path(a[3]), 15).run()"
)


class Process:
    """A guest process and the lines it logs."""

    def __init__(self, code: str, *arguments: Path, **environment: str) -> None:
        self.lines: list[str] = []
        program = f"import sys; a = sys.argv; from pathlib import Path; {code}"
        self.child = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        self.lines.extend(self.child.stderr)  # extend takes them one by one, as they come

    def wait_line(self, part: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if part in line:
                    return line
            time.sleep(0.01)
        raise AssertionError(f"no line with {part!r} in {self.lines}")

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        self._reader.join()
        assert self.child.stderr is not None
        self.child.stderr.close()


class Guest:
    """Paths of one test's pod VM, its processes, and connections to it."""

    def __init__(self, directory: Path) -> None:
        self.keys: Keys = make_keys(directory / "keys")
        self.config = directory / "apf.json"
        self.socket = directory / "agent.sock"
        self.record = directory / "calls.jsonl"
        self.shared = directory / "shared"
        self.shared.mkdir()
        self.podns = directory / "podns"
        self.port = 0
        self._processes: list[Process] = []
        self.write_config()

    def write_config(self, **changes: Any) -> None:
        certificate, key = self.keys.server
        document = {
            "pod-network": None,
            "TLS-Server-Cert": Path(certificate).read_text(),  # keys match whatever their case
            "tls-server-key": Path(key).read_text(),
            "tls-client-ca": Path(self.keys.client[0]).read_text(),
            "not-known-here": [1],
        }
        self.config.write_text(json.dumps(document | changes))

    def start_agent(self) -> Process:
        agent = Process(AGENT, self.socket, self.record, self.shared)
        self._processes.append(agent)
        agent.wait_line("STAND-IN agent")
        return agent

    def start_forwarder(self, **environment: str) -> Process:
        forwarder = Process(FORWARDER, self.config, self.socket, self.podns, **environment)
        self._processes.append(forwarder)
        return forwarder

    def start(self) -> Process:
        self.start_agent()
        forwarder = self.start_forwarder()
        self.port = int(forwarder.wait_line("listening on 127.0.0.1").rsplit(":", 1)[1])
        return forwarder

    def end(self) -> None:
        for process in self._processes:
            process.end()

    def connect(self, client: tuple[str, str] | None = None) -> Link:
        tls = ssl.create_default_context(cafile=self.keys.ca)
        tls.load_cert_chain(*(client or self.keys.client))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        return Link(tls.wrap_socket(plain, server_hostname=SERVER_NAME))

    def calls(self, method: str) -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in self.record.read_text().splitlines())
        return [line for line in lines if line["method"] == method]


class Link:
    """A worker's connection: sends calls, and takes answers in the order they come."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.answers: dict[int, Response] = {}

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, stream_id: int, method: str, payload: bytes = b"", **more: Any) -> None:
        fields = {"service": "grpc.AgentService", "timeout_nano": 0} | more
        self.sock.sendall(frame(stream_id, REQUEST, Request(method=method, payload=payload, **fields).encode()))

    def answer(self, stream_id: int) -> Response:
        while stream_id not in self.answers:
            self.read_one()
        return self.answers.pop(stream_id)

    def read_one(self) -> None:
        size, stream_id, _, _ = HEADER.unpack(self.read(HEADER.size))
        self.answers[stream_id] = Response.decode(self.read(size))

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def call(self, stream_id: int, method: str, payload: bytes = b"", **more: Any) -> bytes:
        self.send(stream_id, method, payload, **more)
        response = self.answer(stream_id)
        assert code(response) == 0, response
        return response.payload


def code(response: Response) -> int:
    return response.status.code if response.status else 0


def encode(fields: list[Any]) -> bytes:
    """[[number, int | text | fields], ...] as a message."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += write_field(number, VARINT, value)
        else:
            out += write_field(number, LEN, encode(value) if isinstance(value, list) else value.encode())
    return out


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.end()


# What stays open until the pod's end, by its stream: the pod's long polls.
LONG_POLLS = {13, 15, 27, 29}


def test_a_real_pods_life_passes_from_check_to_destroy(guest: Guest) -> None:
    guest.start()
    guest.podns.touch()
    text = POD_LIFE.read_text().replace("@SHARED@", str(guest.shared))
    with guest.connect() as link:
        for line in map(json.loads, text.splitlines()):
            more = {"service": line["service"], "timeout_nano": line["timeout_s"] * 10**9}
            link.send(line["sid"], line["method"], encode(line["fields"]), **more)
            if line["sid"] not in LONG_POLLS | {31}:
                assert code(link.answer(line["sid"])) == 0, line
            if line["sid"] == 31:  # the pod runs, nothing has ended
                assert not LONG_POLLS & link.answers.keys()
        statuses = {sid: link.answer(sid) for sid in sorted(LONG_POLLS)}
        assert link.answer(31).payload == b""
    assert statuses[15].payload == write_field(1, VARINT, 137)
    assert code(statuses[27]) == code(statuses[29]) == 0
    assert code(statuses[13]) != 0  # no out-of-memory event ever came
    (sandbox,) = guest.calls("CreateSandbox")
    assert sandbox["dns"] == []
    networks = [call["namespaces"][-1] for call in guest.calls("CreateContainer")]
    assert networks == [["network", str(guest.podns)]] * 2
    copied = sorted(path for path in guest.shared.rglob("*") if path.is_file())
    assert len(copied) == 4
    assert b"nameserver 10.96.0.10" in copied[-1].read_bytes()


def test_without_the_pods_network_no_pod_starts_and_its_caller_hears_why(guest: Guest) -> None:
    guest.write_config(**{"pod-network": {"podip": "10.0.0.1/24", "tunnel-type": "gre"}})
    guest.start()
    with guest.connect() as link:
        link.send(1, "Check", service="grpc.Health")
        assert code(link.answer(1)) == 0
        for stream, method in ((3, "CreateSandbox"), (5, "CreateContainer")):
            link.send(stream, method)
            refused = link.answer(stream).status
            assert refused is not None
            assert "no pod network: pod-network.tunnel-type: 'gre' is not allowed" in refused.message
    assert guest.calls("CreateSandbox") == []


def test_the_stand_in_says_what_it_is_and_what_it_does_not_know(guest: Guest) -> None:
    guest.start()
    with guest.connect() as link:
        version = link.call(1, "Version", service="grpc.Health")
        assert b"stand-in" in version
        for stream_id, method, more, expected in (
            (3, "AddSwap", {}, 12),
            (5, "Check", {"service": "grpc.Other"}, 3),
            (7, "StartContainer", {"payload": encode([[1, "nobody"]])}, 5),
            (9, "CopyFile", {"payload": encode([[1, "/etc/passwd"], [8, "x"]])}, 3),
            (11, "GetOOMEvent", {"timeout_nano": 1}, 4),
            (12, "CreateSandbox", {}, 3),
        ):
            link.send(stream_id, method, **more)
            assert code(link.answer(stream_id)) == expected, method


def test_the_port_opens_only_when_the_agent_accepts(guest: Guest, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        forwarder = guest.start_forwarder(NOTIFY_SOCKET=str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX) as silent:  # bound, but not accepting yet
            silent.bind(str(guest.socket))
            time.sleep(0.3)  # gives a forwarder that does not wait the time to be wrong
            assert forwarder.lines == []
        guest.start_agent()
        forwarder.wait_line("listening on")
        assert systemd.recv(100) == b"READY=1"


@pytest.mark.parametrize("stranger", ["other certificate", "no certificate", "no TLS"])
def test_a_stranger_is_refused_and_others_do_not_notice(guest: Guest, tmp_path: Path, stranger: str) -> None:
    forwarder = guest.start()
    with guest.connect() as link:
        link.call(1, "Check", service="grpc.Health")
        tls = ssl.create_default_context(cafile=guest.keys.ca)
        if stranger == "other certificate":
            tls.load_cert_chain(*make_keys(tmp_path / "other").client)
        with pytest.raises((OSError, EOFError)):
            knock(guest.port, None if stranger == "no TLS" else tls)
        forwarder.wait_line("refused")
        link.call(3, "Check", service="grpc.Health")
    assert len(guest.calls("Check")) == 2


def knock(port: int, tls: ssl.SSLContext | None) -> None:
    """Ask for an answer with these credentials, or with none."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as plain:
        if tls is None:
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while plain.recv(100):
                pass
            raise EOFError
        with Link(tls.wrap_socket(plain, server_hostname=SERVER_NAME)) as link:
            link.call(1, "Check", service="grpc.Health")


def test_each_connection_ends_alone(guest: Guest) -> None:
    forwarder = guest.start()
    with guest.connect() as kept:
        with guest.connect() as lost:
            lost.send(1, "GetOOMEvent")
            lost.call(3, "Check", service="grpc.Health")
        forwarder.wait_line("closed")
        kept.call(1, "Check", service="grpc.Health")


def test_the_end_of_the_agent_ends_the_workers_connection(guest: Guest) -> None:
    agent = guest.start_agent()
    forwarder = guest.start_forwarder()
    guest.port = int(forwarder.wait_line("listening on").rsplit(":", 1)[1])
    with guest.connect() as link:
        link.call(1, "Check", service="grpc.Health")
        agent.child.kill()
        with pytest.raises((EOFError, OSError)):
            link.answer(3)


def test_large_calls_pass_both_ways_while_long_polls_wait(guest: Guest) -> None:
    guest.start()
    with guest.connect() as link:
        link.send(1, "GetOOMEvent")
        data = os.urandom(1 << 20)
        for index in range(8):
            path = str(guest.shared / "big")
            payload = encode([[1, path], [2, 8 << 20], [3, 0o100644], [7, index << 20]]) + write_field(8, LEN, data)
            link.call(3 + 2 * index, "CopyFile", payload)
        assert (guest.shared / "big").read_bytes() == data * 8
        link.sock.sendall(HEADER.pack(MAX_DATA + 1, 101, REQUEST, 0) + bytes(MAX_DATA + 1))
        assert code(link.answer(101)) == 3
        link.call(103, "Check", service="grpc.Health")


def test_a_worker_that_does_not_read_stops_the_agent_and_fills_no_memory(guest: Guest) -> None:
    """The agent here floods; the forwarder must take no more than it can hand on."""
    sent = 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest.socket))
        listener.listen()
        forwarder = guest.start_forwarder()
        guest.port = int(forwarder.wait_line("listening on").rsplit(":", 1)[1])
        listener.accept()[0].close()  # the forwarder's first look
        with guest.connect() as link:
            agent, _ = listener.accept()
            with agent:
                agent.setblocking(False)
                quiet_since = time.monotonic()
                while time.monotonic() - quiet_since < 1.0 and sent < 256 << 20:
                    try:
                        sent += agent.send(bytes(1 << 20))
                        quiet_since = time.monotonic()
                    except BlockingIOError:
                        time.sleep(0.01)
                assert sent < 64 << 20
                status = Path(f"/proc/{forwarder.child.pid}/status").read_text()
                peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
                assert peak < 64 << 10  # kB
                assert len(link.read(sent)) == sent


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"tls-client-ca": ""}, "tls-client-ca is missing"),
        ({"tls-server-key": "SECRET"}, "tls-server-cert and tls-server-key"),
        ({"tls-client-ca": "SECRET"}, "tls-client-ca is not a certificate"),
        ({"tls-server-cert": 5}, "tls-server-cert must be text"),
        ({"tls-min-version": "VersionTLS10"}, "VersionTLS12 or VersionTLS13"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_by_its_key(
    guest: Guest, changes: dict[str, Any], part: str
) -> None:
    if "tls-server-cert" in changes:
        changes = {**changes, "TLS-Server-Cert": changes["tls-server-cert"]}
    guest.write_config(**changes)
    forwarder = guest.start_forwarder()
    assert forwarder.child.wait(PATIENCE) != 0
    assert "SECRET" not in forwarder.wait_line(part)


def test_the_entry_names_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "caa.guest.main", "x"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "usage: python3 -m caa.guest.main forward|standin-agent",
    )


def test_the_record_holds_no_contents(guest: Guest) -> None:
    guest.start()
    path = str(guest.shared / "token")
    with guest.connect() as link:
        link.call(1, "CopyFile", encode([[1, path], [2, 6], [3, 0o100600], [8, "SECRET"]]))
    assert "SECRET" not in guest.record.read_text()
    assert guest.record.stat().st_mode & 0o777 == 0o600
