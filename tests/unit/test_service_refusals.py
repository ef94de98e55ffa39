"""`caa serve` refuses what cannot work: every problem by key and value, exit code 1, nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="caa-", dir="/run") as name:
        yield Path(name)


def serve(directory: Path, **environ: str) -> tuple[int, str]:
    """Exit code and stderr of a service that is expected to refuse."""
    return caa(directory, "serve", **environ)


def caa(directory: Path, *words: str, **environ: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    base = {
        "PATH": os.environ["PATH"],
        "CAA_STATE_DIR": str(directory / "state"),
        "CAA_RUN_DIR": str(directory / "run"),
        "CLOUD_PROVIDER": "libvirt",
    }
    done = subprocess.run(
        [sys.executable, "-m", "caa.cli.main", *words], env=base | environ, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


def nothing_runs_or_listens(directory: Path) -> bool:
    sockets = [path for path in directory.rglob("*") if path.is_socket()]
    return not sockets and not (directory / "run" / "proxy.lock").exists()


def test_an_unknown_provider_is_named_with_those_there_are(directory: Path) -> None:
    code, said = serve(directory, CLOUD_PROVIDER="libvrit")
    assert code == 1
    assert "CLOUD_PROVIDER: 'libvrit' is not allowed" in said
    assert "libvirt" in said
    assert nothing_runs_or_listens(directory)


def test_a_libvirt_that_cannot_be_reached_is_named_with_its_address(directory: Path) -> None:
    code, said = serve(directory, LIBVIRT_URI="qemu+unix:///system?socket=/run/nobody-listens-here")
    assert code == 1
    assert "LIBVIRT_URI" in said
    assert "/run/nobody-listens-here" in said
    assert nothing_runs_or_listens(directory)


def test_a_broken_database_address_is_named_without_its_password(directory: Path) -> None:
    code, said = serve(directory, CAA_LEDGER_URL="postgresql://caa:hunter2@127.0.0.1:1/none")
    assert code == 1
    assert "CAA_LEDGER_URL" in said
    assert "127.0.0.1:1/none" in said
    assert "hunter2" not in said
    assert nothing_runs_or_listens(directory)


def test_several_wrong_keys_are_told_at_once(directory: Path) -> None:
    code, said = serve(directory, PROXY_TIMEOUT="soon", FORWARDER_PORT="99999")
    assert code == 1
    assert "PROXY_TIMEOUT: 'soon'" in said
    assert "FORWARDER_PORT: '99999'" in said


def test_a_misspelt_key_is_told_beside_what_is_wrong_because_of_it(directory: Path) -> None:
    code, said = serve(directory, CLOUD_PROVIDER="aws", PODVM_AMIID="ami-1", FORWARDER_PORT="0")
    assert code == 1
    assert "FORWARDER_PORT: '0'" in said
    assert "PODVM_AMIID (environment) is no key of this service and has no effect; did you mean PODVM_AMI_ID?" in said


def test_a_directory_of_keys_that_is_not_mounted_is_named(directory: Path) -> None:
    code, said = serve(directory, CAA_CONFIG_DIR="/run/not-mounted", PROXY_TIMEOUT="soon")
    assert code == 1
    assert "CAA_CONFIG_DIR: '/run/not-mounted' cannot be read" in said
    assert nothing_runs_or_listens(directory)


def test_an_image_that_cannot_be_built_is_told_with_the_reason(directory: Path, lab: dict[str, str]) -> None:
    # As on a worker without the builder's tools: the payload is the first thing that is looked at after them.
    environ = lab | {"LIBVIRT_VOL_NAME": "not-there.qcow2", "PODVM_PAYLOAD": "/nonexistent/payload"}
    code, said = caa(directory, "image", "ensure", **environ)
    assert code == 1
    assert "could not be built" in said
    assert "/nonexistent/payload" in said
    assert nothing_runs_or_listens(directory)


def test_a_port_in_use_is_named_and_no_proxy_is_started(directory: Path, lab: dict[str, str]) -> None:
    token = directory / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = serve(directory, **lab, CAA_API_LISTEN=address, CAA_API_TOKEN_FILE=str(token))
    assert code == 1
    assert f"CAA_API_LISTEN: '{address}'" in said.replace('"', "'")
    assert nothing_runs_or_listens(directory)


def test_a_state_directory_that_another_service_uses_is_refused(directory: Path) -> None:
    import fcntl

    (directory / "state").mkdir()
    with (directory / "state" / "serve.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, said = serve(directory)
    assert code == 1
    assert "CAA_STATE_DIR" in said


def test_a_wrong_price_is_named_before_anything_is_made(directory: Path) -> None:
    (prices := directory / "prices.yaml").write_text("m6a.large: cheap\n")
    code, said = serve(directory, CAA_PRICES_FILE=str(prices))
    assert code == 1
    assert f"CAA_PRICES_FILE: '{prices}': 'm6a.large': 'cheap' is not allowed" in said
    assert not (directory / "state").exists()
