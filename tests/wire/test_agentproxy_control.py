"""The process `caa proxy` and its verbs, over its real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa import __version__
from caa.agentproxy.control import ProxyControl
from caa.ttrpc.client import Client
from caa.ttrpc.frames import Code, Request, StatusError, error_frame
from tests.wire.agentproxy_guest import (
    PATIENCE,
    SERVER_NAME,
    GuestConnection,
    ProxyProcess,
    echo,
    eventually,
    make_keys,
    open_files,
    server_context,
    short_directory,
    world,
)


def test_open_makes_a_private_socket_and_close_removes_it_and_its_directory() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.open()
            for part, mode in ((path, 0o600), (path.parent, 0o700), (path.parent.parent, 0o700)):
                assert stat.S_IMODE(part.stat().st_mode) == mode
            assert stat.S_IMODE((w.proxy.run_dir / "proxy.sock").stat().st_mode) == 0o600
            await w.open()  # the same again
            await w.control.close("sb")
            assert not path.parent.exists()
            assert path.parent.parent.exists()
            await w.control.close("sb")
            await w.control.close("never heard of")
            assert await w.control.list() == []

    asyncio.run(main())


def test_open_replaces_a_stale_socket_but_nothing_else_and_close_keeps_a_directory_in_use() -> None:
    async def main() -> None:
        async with world() as w:
            path = w.socket_path()
            path.parent.mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(path))
            await w.up()
            (path.parent / "other").touch()
            await w.control.close("sb")
            assert [entry.name for entry in path.parent.iterdir()] == ["other"]
            path.write_text("not a socket")
            with pytest.raises(StatusError, match="no socket") as caught:
                await w.open()
            assert caught.value.code == Code.FAILED_PRECONDITION
            assert path.read_text() == "not a socket"

    asyncio.run(main())


def test_open_refuses_other_arguments_for_the_same_sandbox_and_another_sandbox_s_socket() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.open()
            with pytest.raises(StatusError, match="close it first") as caught:
                await w.open(server_name="other")
            assert caught.value.code == Code.ALREADY_EXISTS
            with pytest.raises(StatusError, match="belongs to another") as caught:
                await w.control.open("two", str(path), SERVER_NAME, w.keys.ca, *w.keys.client)
            assert caught.value.code == Code.ALREADY_EXISTS

    asyncio.run(main())


@pytest.mark.parametrize(
    "path", ["relative/agent.ttrpc", "/run/a:b", "/run/a%b", "/run/a?b", "/run/a#b", "/run/" + "x" * 103]
)
def test_open_refuses_a_socket_path_that_a_shim_cannot_dial(path: str) -> None:
    async def main() -> None:
        async with world() as w:
            with pytest.raises(StatusError, match="socket_path") as caught:
                await w.control.open("sb", path, SERVER_NAME, w.keys.ca, *w.keys.client)
            assert caught.value.code == Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_open_names_what_is_wrong_and_never_shows_key_material() -> None:
    async def main() -> None:
        async with world() as w:
            path, ca, (cert, key) = str(w.socket_path()), w.keys.ca, w.keys.client
            good = {"server_name": SERVER_NAME, "ca_file": ca, "cert_file": cert, "key_file": key}
            broken = w.root / "broken.key"
            broken.write_text("-----BEGIN PRIVATE KEY-----\nVERYSECRET\n-----END PRIVATE KEY-----\n")
            cases: list[tuple[dict[str, object], str]] = [
                ({"server_name": ""}, "server_name is missing"),
                ({"server_name": ".x"}, "server_name"),
                ({"ca_file": "/nowhere"}, "ca_file /nowhere"),
                ({"key_file": str(broken)}, "key_file"),
                ({"cert_file": ca}, "cert_file"),
                ({"tls_min_version": "1.1"}, "VersionTLS12"),
                ({"tls_ciphers": ["TLS_RSA_WITH_RC4_128_SHA"]}, "TLS_RSA_WITH_RC4_128_SHA"),
            ]
            for change, text in cases:
                with pytest.raises(StatusError, match=text) as caught:
                    await w.control.open("sb", path, **{**good, **change})  # type: ignore[arg-type]
                assert caught.value.code == Code.INVALID_ARGUMENT
            assert await w.control.list() == []
            assert "VERYSECRET" not in w.proxy.log

    asyncio.run(main())


def test_a_tls_profile_is_kept_to() -> None:
    async def main() -> None:
        async with world() as w:
            versions: list[tuple[str, str]] = []

            async def note(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                tls = connection.writer.get_extra_info("ssl_object")
                versions.append((tls.version(), tls.cipher()[0]))
                return await echo(connection, stream_id, request)

            w.guest.respond = note
            suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
            files = (w.keys.ca, *w.keys.client)
            await w.control.open("a", str(w.socket_path("a")), SERVER_NAME, *files, "VersionTLS13")
            await w.control.connect("a", ["127.0.0.1"], w.guest.port, PATIENCE)
            w.guest.context.maximum_version = w.guest.context.minimum_version.TLSv1_2
            await w.control.open("b", str(w.socket_path("b")), SERVER_NAME, *files, "VersionTLS12", [suite])
            await w.control.connect("b", ["127.0.0.1"], w.guest.port, PATIENCE)
            assert versions[0][0] == "TLSv1.3"
            assert versions[1] == ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")

    asyncio.run(main())


def test_connect_finds_a_guest_that_comes_up_late_and_says_when() -> None:
    async def main() -> None:
        async with world() as w:
            await w.guest.stop()
            await w.open()
            connecting = asyncio.create_task(w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE))
            joining = asyncio.create_task(w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE))
            await asyncio.sleep(0.3)
            assert not connecting.done()
            began = asyncio.get_running_loop().time()
            await w.guest.start()
            first, second = await connecting, await joining
            assert asyncio.get_running_loop().time() - began < 5.0
            assert first.address == second.address == "127.0.0.1"
            assert 0.3 <= first.tcp_seconds <= first.tls_seconds <= first.agent_seconds
            assert w.guest.asked == ["Check"]  # one dialled for both

            async def connected() -> bool:
                return (await w.control.list())[0].connected

            await eventually(connected, "the link that was left for the shim is up")
            again = await w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE)
            assert again.agent_seconds == 0.0

    asyncio.run(main())


def test_connect_waits_for_the_agent_behind_the_forwarder() -> None:
    async def main() -> None:
        async with world() as w:
            refusals = 3

            async def respond(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                nonlocal refusals
                refusals -= 1
                if refusals == 1:
                    connection.cut()
                    return None
                if refusals > 0:
                    return error_frame(stream_id, Code.UNAVAILABLE, "agent not there yet")
                return await echo(connection, stream_id, request)

            w.guest.respond = respond
            await w.up()
            assert w.guest.asked == ["Check", "Check", "Check"]

    asyncio.run(main())


def test_connect_gives_up_at_its_time_and_says_what_it_saw_last() -> None:
    async def main() -> None:
        async with world() as w:
            await w.guest.stop()
            await w.open()
            with pytest.raises(StatusError, match=r" 2 s; last: 127\.0\.0\.1: Connect") as caught:
                await w.control.connect("sb", ["127.0.0.1"], w.guest.port, 2)
            assert caught.value.code == Code.DEADLINE_EXCEEDED
            with pytest.raises(StatusError) as caught:
                await w.control.connect("unknown", ["127.0.0.1"], 1, 1)
            assert caught.value.code == Code.NOT_FOUND
            for addresses, port in (([], 1), (["podvm.example"], 1), (["127.0.0.1"], 0)):
                with pytest.raises(StatusError, match="allowed") as caught:
                    await w.control.connect("sb", addresses, port, 1)
                assert caught.value.code == Code.INVALID_ARGUMENT

    asyncio.run(main())


def test_connect_fails_at_once_when_the_vm_is_not_the_one_expected() -> None:
    async def main() -> None:
        async with world() as w:
            await w.open(server_name="another-vm")
            with pytest.raises(StatusError, match="Hostname mismatch") as caught:
                await w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE)
            assert caught.value.code == Code.FAILED_PRECONDITION
            stranger = make_keys(w.root / "stranger")
            await w.control.open("two", str(w.socket_path("two")), SERVER_NAME, stranger.ca, *w.keys.client)
            with pytest.raises(StatusError, match="certificate is not the one expected"):
                await w.control.connect("two", ["127.0.0.1"], w.guest.port, PATIENCE)

    asyncio.run(main())


@contextlib.contextmanager
def refusing_server(context: ssl.SSLContext) -> Iterator[int]:
    """A server that sends its TLS alert when it refuses, as Go's does and asyncio's does not; yields its port."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as sock:
                    sock.recv(1)
                raw.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            thread.join(PATIENCE)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_connect_fails_at_once_when_the_vm_does_not_trust_our_certificate(version: ssl.TLSVersion) -> None:
    async def main() -> None:
        async with world() as w:
            stranger = make_keys(w.root / "stranger")
            context = server_context(w.keys)
            context.maximum_version = version
            await w.control.open("sb", str(w.socket_path()), SERVER_NAME, w.keys.ca, *stranger.client)
            with refusing_server(context) as port:
                with pytest.raises(StatusError, match="does not trust our client certificate") as caught:
                    await w.control.connect("sb", ["127.0.0.1"], port, PATIENCE)
                assert caught.value.code == Code.FAILED_PRECONDITION

    asyncio.run(main())


def test_connect_fails_at_once_when_the_vm_has_no_tls_version_in_common() -> None:
    async def main() -> None:
        async with world() as w:
            context = server_context(w.keys)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            files = (w.keys.ca, *w.keys.client)
            await w.control.open("sb", str(w.socket_path()), SERVER_NAME, *files, "VersionTLS13")
            with refusing_server(context) as port:
                with pytest.raises(StatusError, match="no TLS version in common") as caught:
                    await w.control.connect("sb", ["127.0.0.1"], port, PATIENCE)
                assert caught.value.code == Code.FAILED_PRECONDITION

    asyncio.run(main())


def test_close_ends_a_connect_under_way() -> None:
    async def main() -> None:
        async with world() as w:
            await w.guest.stop()
            await w.open()
            connecting = asyncio.create_task(w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE))
            await asyncio.sleep(0.1)
            await w.control.close("sb")
            with pytest.raises(StatusError, match="closed") as caught:
                await connecting
            assert caught.value.code == Code.CANCELLED

    asyncio.run(main())


def test_a_connect_whose_caller_is_gone_still_succeeds() -> None:
    async def main() -> None:
        async with world() as w:
            await w.guest.stop()
            await w.open()
            connecting = asyncio.create_task(w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE))
            await asyncio.sleep(0.1)
            connecting.cancel()
            await w.guest.start()

            async def connected() -> bool:
                return (await w.control.list())[0].connected

            await eventually(connected, "the link is up")

    asyncio.run(main())


def test_list_tells_whether_a_shim_is_and_was_there() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.open()
            (status,) = await w.control.list()
            assert (status.id, status.shim_connections, status.agent_seen) == ("sb", 0, False)
            assert (status.connected, status.address) == (False, "")
            await w.up()
            async with await Client.connect(path) as shim:
                await shim.call("grpc.Health", "Check", b"", PATIENCE)
                (status,) = await w.control.list()
                assert (status.shim_connections, status.agent_seen, status.idle_seconds) == (1, True, 0.0)
                assert (status.connected, status.address) == (True, "127.0.0.1")

            async def gone() -> bool:
                return (await w.control.list())[0].shim_connections == 0

            await eventually(gone, "the proxy saw the shim go")
            (status,) = await w.control.list()
            assert status.agent_seen
            assert status.idle_seconds < PATIENCE

    asyncio.run(main())


def test_a_second_process_in_the_same_run_directory_says_so_and_ends() -> None:
    async def main() -> None:
        async with world() as w:
            code = f"import sys; from caa.agentproxy.main import run; sys.exit(run({str(w.proxy.run_dir)!r}, '/tmp'))"
            second = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
            )
            assert second.returncode == 0
            assert "another agent proxy runs already" in second.stderr
            assert "Traceback" not in second.stderr
            version = await w.control.version()
            assert (version.version, version.pid) == (__version__, w.proxy.process.pid)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM"])
def test_the_process_ends_when_told_and_leaves_no_sockets(how: str) -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            if how == "shutdown":
                await w.control.shutdown()
            else:
                w.proxy.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(w.proxy.process.wait, PATIENCE) == 0
            assert not path.exists()
            assert not (w.proxy.run_dir / "proxy.sock").exists()
            with pytest.raises(ConnectionError):
                await w.control.version()
            w.proxy = ProxyProcess(w.root, 30.0)  # the lock is free again
            await w.proxy.started()

    asyncio.run(main())


def test_sandboxes_that_come_and_go_leave_nothing_open() -> None:
    async def main() -> None:
        async with world() as w:
            await w.up()
            await w.control.close("sb")
            before = open_files(w.proxy.process.pid)
            for index in range(5):
                path = await w.up(f"sb-{index}")
                async with await Client.connect(path) as shim:
                    await shim.call("grpc.Health", "Check", b"", PATIENCE)
                    await w.control.close(f"sb-{index}")

            async def settled() -> bool:
                return open_files(w.proxy.process.pid) <= before

            await eventually(settled, "the descriptors are closed")

    asyncio.run(main())


def test_the_process_needs_nothing_but_the_standard_library_and_ttrpc() -> None:
    code = (
        "import sys; before = set(sys.modules); import caa.agentproxy.main, caa.agentproxy.control; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
        "; print(*sorted(name for name in sys.modules if name.startswith('caa.') and name.count('.') == 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    foreign, ours = done.stdout.splitlines()
    assert foreign == "caa"
    assert ours == "caa.agentproxy caa.ttrpc"


def test_control_without_a_proxy_is_a_connection_error() -> None:
    with short_directory() as root, pytest.raises(ConnectionError):
        asyncio.run(ProxyControl(Path(root)).version())
