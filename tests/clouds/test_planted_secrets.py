"""A whole life of sandboxes with secrets planted wherever some go in: none comes out anywhere."""

from __future__ import annotations

import base64
import contextlib
import gzip
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from caa.guestconfig import INITDATA_ANNOTATION
from caa.sizing import MACHINE_TYPE
from tests.clouds.aws.account import Account
from tests.clouds.aws.errors import Ec2Error
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.podworld import LAUNCHES, alive, pod_service
from tests.lab.ports import held_port
from tests.lab.service import ServiceProcess, new_id

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID1234",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+access=key",
    "AWS_SESSION_TOKEN": "planted-session-token",
}
TOKEN = "planted-token-of-the-rest-interface"
OPERATOR_TOKEN = "planted-token/of+an-operator-at-the-page"
OF_ALL, OF_ONE = "planted-initdata-of-all-pods", "planted-initdata-of-one-pod"


def toml(marker: str) -> str:
    """Initdata as pods bring it, with the marker in a file of the guest."""
    return f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = """\nmarker = "{marker}"\n"""\n'


def packed(marker: str) -> str:
    """The same as the configuration has it, and as the guest gets it."""
    return base64.b64encode(gzip.compress(toml(marker).encode(), mtime=0)).decode()


def planted() -> dict[str, str]:
    """What must come out nowhere, by what it is."""
    tokens = {"CAA_API_TOKEN_FILE": TOKEN, "CAA_OPERATOR_TOKEN_FILE": OPERATOR_TOKEN}
    given = {**CREDENTIALS, **tokens, "INITDATA's content": OF_ALL, "initdata's content": OF_ONE}
    return given | {"INITDATA": packed(OF_ALL)}


def forms(secret: str) -> set[str]:
    """As it is, and as it may be written."""
    found = {secret, quote(secret, safe="")}
    # Inside longer base64 it begins at one of three places; what a neighbour decides is left out at both ends.
    for shift, first in enumerate((0, 2, 3)):
        padded = b"." * shift + secret.encode()
        part = slice(first, 8 * len(padded) // 6)
        found |= {encode(padded).decode()[part] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return found


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
        with client.stream("GET", "/events") as stream:
            yield "the page's stream", next(stream.iter_text(), "")
    yield from logs(service)


def operators_page(url: str, sandbox_id: str) -> Iterator[tuple[str, str]]:
    """What an operator's browser gets, who logs in after a wrong try and stops a sandbox."""
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as browser:
        for given in (OPERATOR_TOKEN + "x", OPERATOR_TOKEN):
            answer = browser.post("/login", data={"token": given})
            yield "login", f"{answer.headers} {answer.text}"
        assert answer.status_code == 303
        yield "an operator's page", browser.get("/").text
        text = browser.get(f"/sandboxes/{sandbox_id}").text
        (proof,) = set(re.findall(r'name="proof" value="(\w+)"', text))
        answer = browser.post(f"/sandboxes/{sandbox_id}/stop", data={"proof": proof})
        assert answer.status_code == 303
        yield "an operator's sandbox", f"{text} {answer.headers} {answer.text}"


def commands(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """What `caa` prints."""
    for words in ("config show", "config show --json", "config check", "sandbox list", "audit export", "audit"):
        command = [sys.executable, "-m", "caa.cli.main", *words.split()]
        done = subprocess.run(command, env=service.environ, capture_output=True, text=True, timeout=60)
        yield f"caa {words}", done.stdout + done.stderr


def logs(service: ServiceProcess) -> Iterator[tuple[str, str]]:
    """Of the service and of the agent proxy."""
    for directory, _, names in os.walk(service.directory):
        for name in names:
            if name.endswith(".log"):
                yield name, (Path(directory) / name).read_text(errors="replace")


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
    """Files that anybody on the machine may read if the service's own directories let them."""
    # Sockets of pods, and directories of theirs, go meanwhile.
    for directory, below, names in os.walk(service.directory):
        paths = [Path(directory) / name for name in names]
        below[:] = [name for name in below if mode_of(Path(directory) / name) & stat.S_IXOTH]
        for path in paths:
            mode = mode_of(path)
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                with contextlib.suppress(FileNotFoundError):
                    yield str(path), path.read_bytes().decode("latin-1")


def mode_of(path: Path) -> int:
    """0 for what is gone."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_secret_comes_out_of_a_whole_life(
    account: Account, proxy: FaultProxy, tmp_path: Path, log_format: str
) -> None:
    token, operator = tmp_path / "token", tmp_path / "operator"
    for path, text in ((token, TOKEN), (operator, OPERATOR_TOKEN)):
        path.write_text(text)
        path.chmod(0o600)
    listen = f"127.0.0.1:{held_port()}"
    (first, *_) = account.seed.subnets
    account.emulator.capacity({"zone": first})
    keys = CREDENTIALS | {
        "INITDATA": packed(OF_ALL),
        "CAA_API_LISTEN": listen,
        "CAA_API_TOKEN_FILE": str(token),
        "CAA_OPERATOR_TOKEN_FILE": str(operator),
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
        told = list(operators_page(f"http://{listen}", ids[1]))
        service.wait_for_state(ids[1], {"stopped"}, 60)
        read = [*told, *outputs(service, ids), *command_lines(service), *readable_by_others(service)]
        read += commands(service) if log_format == "json" else []
        service.stop()
        read.append(("the log to its end", service.log_file.read_text()))
    leaks = {where: names for where, text in read if (names := found_in(text, secrets))}
    assert leaks == {}
    assert len(read) > 30
    assert any(INITDATA_ANNOTATION in text or "own" in text for _, text in read)


@pytest.mark.parametrize("name", list(planted()))
def test_the_search_finds_what_leaks(name: str) -> None:
    secret = planted()[name]
    assert name in found_in(f'{{"key": "{secret}"}}', planted())
    assert name in found_in(f"GET /?key={quote(secret, safe='')}", planted())
    for shift in range(3):  # where it begins inside longer base64
        leak = base64.b64encode(b"." * shift + secret.encode() + b" and more").decode()
        assert name in found_in(leak, planted()), shift
