"""The command line as its users meet it: real processes, their exit codes and what they say."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import caa

# Bound of every process; none takes a tenth of it.
PATIENCE_S = 60.0


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caa.cli.main", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"} | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages that a command loads."""
    code = f"import sys; from caa.cli.main import main; main({list(arguments)!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_version_is_told_and_no_library_is_loaded_for_it() -> None:
    done = run("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{caa.__version__}\n", "")
    assert not imported_by("version") & {"pydantic", "httpx", "rich", "sqlalchemy", "fastapi", "uvicorn"}


def test_version_takes_at_most_150_ms() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("version")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of a processor, and the fastest of a few, for the machine is shared.
    assert min(seconds() for _ in range(5)) < 0.150


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["sandox"], "did you mean 'sandbox'?"),
        (["sandbox", "lst"], "did you mean 'list'?"),
        (["sandbox", "list", "--state", "runing"], "did you mean 'running'?"),
        (["db", "upgrde"], "did you mean 'upgrade'?"),
        (["frobnicate"], "choose from serve, proxy, "),
    ],
)
def test_a_typo_gets_a_hint(arguments: list[str], hint: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert arguments[-1] in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sandbox"],
        ["sandbox", "show"],
        ["sandbox", "create", "--pod", "no-namespace"],
        ["sandbox", "create", "--pod", "a/b/c"],
        ["sandbox", "create", "--pod", "shop/web", "--annotation", "novalue"],
        ["sandbox", "start", "x", "--timeout", "0"],
        ["sandbox", "start", "x", "--timeout", "nan"],
        ["sandbox", "list", "--js"],
        ["sandbox", "list", "--server", "ftp://x"],
        ["sandbox", "list", "--server", "://"],
        ["sandbox", "list", "--token-file", "/x"],
        ["sandbox", "list", "--server", "https://localhost:1", "--token-file", "/nowhere"],
        ["sandbox", "list", "--server", "https://localhost:1", "--ca-file", "/nowhere"],
        ["sandbox", "list", "--server", "https://localhost:1", "--cert-file", "/nowhere"],
    ],
)
def test_wrong_use_is_2_with_a_sentence_and_no_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_token_is_not_sent_over_plain_http_to_another_machine(tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("hunter2")
    done = run("sandbox", "list", "--server", "http://192.0.2.1:80", "--token-file", str(token))
    assert done.returncode == 2
    assert "https" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("key", ["CAA_API_SOCKET", "CAA_RUN_DIR"])
def test_a_service_that_is_not_there_is_3_and_says_where_it_was_looked_for(tmp_path: Path, key: str) -> None:
    socket = tmp_path / "caa.sock"
    done = run("sandbox", "list", **{key: str(socket if key == "CAA_API_SOCKET" else tmp_path)})
    assert done.returncode == 3
    assert str(socket) in done.stderr
    assert "CAA_API_SOCKET" in done.stderr


def test_a_tcp_service_that_is_not_there_is_3() -> None:
    done = run("sandbox", "list", "--server", "http://127.0.0.1:1")
    assert done.returncode == 3
    assert "http://127.0.0.1:1" in done.stderr


def test_the_proxy_is_started_without_the_services_libraries(tmp_path: Path) -> None:
    """A relative directory ends it before it serves, after everything is imported that leads there."""
    done = run("proxy", CAA_RUN_DIR="run")
    assert done.returncode == 1
    assert done.stderr == "caa: CAA_RUN_DIR: 'run' is not allowed: must be an absolute path\n"
    code = "import sys; import caa.cli.main, caa.agentproxy.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    names = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert not names & {"pydantic", "httpx", "rich", "sqlalchemy", "fastapi", "uvicorn"}


def test_serve_with_a_bad_configuration_is_1_and_names_the_key() -> None:
    done = run("serve", FORWARDER_PORT="many", CLOUD_PROVIDER="libvirt")
    assert done.returncode == 1
    assert "FORWARDER_PORT: 'many'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_database_is_prepared_and_inspected(tmp_path: Path) -> None:
    state = {"CAA_STATE_DIR": str(tmp_path)}
    first, again = run("db", "upgrade", **state), run("db", "upgrade", **state)
    shown = run("db", "revision", **state)
    assert (first.returncode, again.returncode, shown.returncode) == (0, 0, 0), first.stderr
    assert first.stdout == again.stdout
    assert shown.stdout.strip() in first.stdout


def test_a_database_that_cannot_be_used_is_1_and_shows_no_password() -> None:
    for url in ("mysql://caa:hunter2@db/x", "postgresql://caa:hunter2@127.0.0.1:1/x"):
        done = run("db", "revision", CAA_LEDGER_URL=url)
        assert done.returncode == 1
        assert "CAA_LEDGER_URL" in done.stderr
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr


def test_output_into_a_pipe_that_closes_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m caa.cli.main sandbox --help | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
