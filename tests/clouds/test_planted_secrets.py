"""A whole life of sandboxes with secrets planted wherever some go in: none comes out anywhere."""

from __future__ import annotations

import base64
import gzip
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from caa.guestconfig import INITDATA_ANNOTATION
from caa.sizing import MACHINE_TYPE
from tests.clouds.aws.account import Account
from tests.clouds.aws.errors import Ec2Error
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.podworld import LAUNCHES, alive, pod_service
from tests.faults.world import free_port
from tests.lab.service import ServiceProcess, new_id

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID1234",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+access=key",
    "AWS_SESSION_TOKEN": "planted-session-token",
}
TOKEN = "planted-token-of-the-rest-interface"
OF_ALL, OF_ONE = "planted-initdata-of-all-pods", "planted-initdata-of-one-pod"
# The page sends its first part at once.
STREAM_SECONDS = 3


def toml(marker: str) -> str:
    """Initdata as pods bring it, with the marker in a file of the guest."""
    return f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = """\nmarker = "{marker}"\n"""\n'


def packed(marker: str) -> str:
    """The same as the configuration has it, and as the guest gets it."""
    return base64.b64encode(gzip.compress(toml(marker).encode(), mtime=0)).decode()


def planted() -> dict[str, str]:
    """What must come out nowhere, by what it is."""
    given = {**CREDENTIALS, "CAA_API_TOKEN_FILE": TOKEN, "INITDATA's content": OF_ALL, "initdata's content": OF_ONE}
    return given | {"INITDATA": packed(OF_ALL)}


def forms(secret: str) -> set[str]:
    """As it is, and as it may be written."""
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    # Of what is inside longer base64 the ends depend on what is beside it.
    return {secret, quote(secret, safe=""), encoded[: len(encoded) // 4 * 4 - 4]}


def found_in(text: str, secrets: dict[str, str]) -> list[str]:
    """Which of them are there."""
    return [name for name, secret in secrets.items() if any(form in text for form in forms(secret))]


def private_lines(user_data: bytes) -> dict[str, str]:
    """The lines of the private keys in a pod VM's user data, as they stand there."""
    text = user_data.decode()
    keys = re.findall(r"BEGIN (?:EC )?PRIVATE KEY-----(.*?)-----END", text.replace("\\n", "\n"), re.DOTALL)
    lines = [line.strip() for key in keys for line in key.splitlines() if len(line.strip()) > 30]
    return {f"line {number} of a pod VM's key": line for number, line in enumerate(lines)}


def outputs(service: ServiceProcess, ids: list[str]) -> Iterator[tuple[str, str]]:
    """Everything that people and programs get to read, by where."""
    with service.rest(timeout=30) as client:
        ways = ["/metrics", "/v1/sandboxes", "/v1/events?limit=1000", "/v1/config/status", "/v1/audit", "/v1/images"]
        ways += ["/v1/image/status", "/", "/openapi.json", "/readyz"]
        ways += [f"/v1/sandboxes/{one}{more}" for one in ids for more in ("", "/events", "/metadata")]
        ways += [f"/sandboxes/{one}" for one in ids]
        for way in ways:
            yield way, client.get(way).text
        explained = client.post("/v1/sizing/explain", json={"annotations": {INITDATA_ANNOTATION: toml(OF_ONE)}})
        yield "explain", explained.text
        with client.stream("GET", "/events", timeout=STREAM_SECONDS) as stream:
            yield "the page's stream", next(stream.iter_text(), "")
    yield from logs(service)


def commands(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """What `caa` prints."""
    for words in ("config show", "config show --json", "config check", "sandbox list", "audit export", "audit"):
        command = [sys.executable, "-m", "caa.cli.main", *words.split()]
        done = subprocess.run(command, env=service.environ, capture_output=True, text=True, timeout=60)
        yield f"caa {words}", done.stdout + done.stderr


def logs(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """Of the service and of the agent proxy."""
    for path in [service.log_file, *service.run_dir.rglob("*.log"), *service.state_dir.rglob("*.log")]:
        yield path.name, path.read_text(errors="replace")


def command_lines(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """Of all processes that have to do with the service: anybody on the machine may read them."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(service.directory) in text or "caa" in text:
            yield str(path), text


def readable_by_others(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """Files that anybody on the machine may read, with the directories above them."""
    for path in service.directory.rglob("*"):
        above = [one for one in path.parents if service.directory in (one, *one.parents)]
        closed = any(not one.stat().st_mode & stat.S_IXOTH for one in above)
        if path.is_file() and path.stat().st_mode & stat.S_IROTH and not closed:
            yield str(path), path.read_bytes().decode("latin-1")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_secret_comes_out_of_a_whole_life(
    account: Account, proxy: FaultProxy, tmp_path: Path, log_format: str
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    (first, *_) = account.seed.subnets
    account.emulator.capacity({"zone": first})
    keys = CREDENTIALS | {
        "INITDATA": packed(OF_ALL),
        "CAA_API_LISTEN": f"127.0.0.1:{free_port()}",
        "CAA_API_TOKEN_FILE": str(token),
        "CAA_LOG_FORMAT": log_format,
        "CAA_LOG_LEVEL": "DEBUG",
    }
    secrets = planted()
    with pod_service(account, proxy.url, **keys) as service:
        ids = [new_id() for _ in range(4)]
        service.create(ids[0], "web")
        service.start_sandbox(ids[0])
        service.create(ids[1], "own", {INITDATA_ANNOTATION: toml(OF_ONE)})
        service.start_sandbox(ids[1])
        for instance in alive(account):
            secrets |= private_lines(account.emulator.user_data(instance))
        assert len(secrets) > len(planted()), "the user data have keys, and the test knows where"
        service.create(ids[2], "wrong", {MACHINE_TYPE: "x9.huge"})
        assert service.begin_start(ids[2]).status_code >= 400
        refused = Ec2Error("UnauthorizedOperation", "You are not authorized to perform this operation.").body
        proxy.add(Fault.STATUS, Phase.BEFORE, body=LAUNCHES, times=None, status=403, reply=refused)
        service.create(ids[3], "denied")
        assert service.begin_start(ids[3]).status_code >= 400
        service.kill()
        service.start()
        service.wait_ready()
        service.stop_sandbox(ids[0])
        service.wait_for_state(ids[0], {"stopped"}, 60)
        read = [*outputs(service, ids), *command_lines(service), *readable_by_others(service)]
        read += commands(service) if log_format == "json" else []
        service.stop()
        read.append(("the log to its end", service.log_file.read_text()))
    leaks = {where: names for where, text in read if (names := found_in(text, secrets))}
    assert leaks == {}
    assert len(read) > 30
    assert any(INITDATA_ANNOTATION in text or "own" in text for _, text in read)
