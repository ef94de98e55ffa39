"""`caa sandbox` as real processes against the real REST interface."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wire.rest_service import PATIENCE_S, Service, serving, settings_in


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(settings_in(tmp_path)) as running:
        yield running


def command(service: Service, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "caa.cli.main", "sandbox", *arguments]


def environ(service: Service) -> dict[str, str]:
    # A proxy of the environment is never asked for a service of this machine.
    proxies = {"HTTP_PROXY": "http://192.0.2.1:3128", "ALL_PROXY": "http://192.0.2.1:3128"}
    return {"PATH": os.environ["PATH"], "CAA_API_SOCKET": service.socket} | proxies


def run(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(service, *arguments),
        env=environ(service),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def told(service: Service, *arguments: str) -> Any:
    """The JSON of a command that succeeds."""
    done = run(service, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_sandbox_from_create_to_stop(service: Service) -> None:
    created = told(service, "create", "--pod", "shop/web", "--annotation", "a=b=c", "--netns", "/run/netns/x")
    assert re.fullmatch(r"[0-9a-f]{64}", created["id"])
    assert created["pod"] == {"namespace": "shop", "name": "web"}
    assert created["network_namespace_path"] == "/run/netns/x"
    stored = service.ledger.sandbox(created["id"])
    assert stored is not None
    assert stored.annotations["a"] == "b=c"

    short = created["id"][:12]
    assert told(service, "start", short)["state"] == "running"
    shown = told(service, "show", short)
    assert shown["instance"]["id"] == "i-1"
    assert [event["kind"] for event in shown["events"]] == ["Created", "Running"]
    assert [sandbox["id"] for sandbox in told(service, "list")] == [created["id"]]
    assert told(service, "stop", short) == {"id": created["id"], "state": "stopping"}
    assert told(service, "stop", "nobody") == {"id": "nobody", "state": "unknown"}


def test_people_get_tables_and_sentences(service: Service) -> None:
    sandbox_id = run(service, "create", "--pod", "shop/web", "--id", "c0ffee").stdout.splitlines()[0]
    assert sandbox_id == "c0ffee"
    assert run(service, "start", "c0ffee").stdout == "c0ffee is running\n"
    heading, line = run(service, "list").stdout.splitlines()
    assert heading.split() == ["SANDBOX", "STATE", "POD", "NODE", "INSTANCE", "TYPE", "ADDRESS", "AGE"]
    assert line.split()[:-1] == ["c0ffee", "running", "shop/web", "node-1", "i-1", "m6a.large", "10.0.0.7"]
    shown = run(service, "show", "c0ffee").stdout
    for expected in ("c0ffee", "shop/web", "i-1 (podvm-web-01234567)", "m6a.large in eu-1a, on-demand", "Running"):
        assert expected in shown


def test_the_list_can_be_narrowed(service: Service) -> None:
    for name in ("web", "db"):
        told(service, "create", "--pod", f"shop/{name}", "--id", name)
    told(service, "start", "db")
    assert [s["id"] for s in told(service, "list", "--pod", "web")] == ["web"]
    assert [s["id"] for s in told(service, "list", "--state", "running")] == ["db"]
    assert [s["id"] for s in told(service, "list", "--state", "running", "--state", "created")] == ["web", "db"]
    assert told(service, "list", "--namespace", "bank") == []


def test_what_came_from_outside_cannot_move_the_cursor(service: Service) -> None:
    told(service, "create", "--pod", "shop/web\x1b[2J[bold]", "--id", "x")
    out = run(service, "list").stdout
    assert "\x1b" not in out
    assert "[bold]" in out


def test_a_refusal_is_1_with_the_services_sentence(service: Service) -> None:
    done = run(service, "show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "caa: there is no sandbox nobody\n"
    told(service, "create", "--pod", "shop/web", "--id", "f", "--annotation", "test/start=failed")
    done = run(service, "start", "f")
    assert (done.returncode, done.stderr) == (1, "caa: no capacity in any zone\n")
    done = run(service, "create", "--pod", "shop/web", "--id", "../x")
    assert done.returncode == 1
    assert "'../x' is not allowed" in done.stderr


def test_an_ambiguous_beginning_of_an_id_is_1(service: Service) -> None:
    for name in ("aa1", "aa2", "aa"):
        told(service, "create", "--pod", "shop/web", "--id", name)
    done = run(service, "stop", "a")
    assert done.returncode == 1
    assert "3 sandbox ids" in done.stderr
    assert told(service, "stop", "aa")["id"] == "aa"


def test_ctrl_c_during_a_start_gives_it_up(service: Service) -> None:
    told(service, "create", "--pod", "shop/web", "--id", "h", "--annotation", "test/start=hang")
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    start = ["env", "--default-signal=INT", *command(service, "start", "h")]
    with subprocess.Popen(start, env=environ(service), stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: bool(service.lifecycle.starts))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, b"")
    wait_until(lambda: service.lifecycle.gone == ["h"])


def test_a_service_over_tcp_is_asked_with_its_token(tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("a-token-of-sufficient-length\n")
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = settings_in(tmp_path, CAA_API_LISTEN=listen, CAA_API_TOKEN_FILE=str(token))
    with serving(settings) as service:
        assert told(service, "list", "--server", f"http://{listen}", "--token-file", str(token)) == []
        done = run(service, "list", "--server", f"http://{listen}")
        assert done.returncode == 1
        assert "Authorization" in done.stderr


def test_something_else_on_the_address_is_3(tmp_path: Path, service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(PATIENCE_S)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with subprocess.Popen(
            command(service, "list", "--server", f"http://{address}"),
            env=environ(service),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/html\r\n\r\nhello")
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (3, f"caa: what answers at http://{address} is not this service\n")


def test_metadata_shows_what_the_pod_sees(service: Service) -> None:
    told(service, "create", "--id", "sb-1", "--pod", "shop/web")
    assert "has no instance to tell about" in run(service, "metadata", "sb-1").stderr
    told(service, "start", "sb-1")
    assert told(service, "metadata", "sb-1")["answers"]["/latest/meta-data/instance-id"] == "i-1"
    lines = run(service, "metadata", "sb-1").stdout.splitlines()
    assert [line.split() for line in lines if "meta-data/instance-id" in line] == [
        ["/latest/meta-data/instance-id", "i-1"]
    ]
    assert "this service (not at the moment)" in lines[1]
