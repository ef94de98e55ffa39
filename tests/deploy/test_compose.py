"""`docker/compose.yaml`, as far as it can be tried without a container engine: its services run as plain processes.

The emulated AWS is the same program as in its image; the ledger is SQLite, for the tests of PostgreSQL are elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from caa.cli.main import COMMANDS
from caa.knownkeys import keys_of
from tests.clouds.podworld import service_directory
from tests.deploy.capabilities import confined

FILE = Path(__file__).parents[2] / "docker" / "compose.yaml"
PATIENCE_S = 180.0
# In place of compose's 127.0.0.1, where somebody else may have its ports: an address of this process alone.
HOST = f"127.61.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def ours() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in compose()["services"].items() if one["image"] == "caa:try"}


def test_commands_keys_files_volumes_and_dependencies_are_real() -> None:
    whole = compose()
    assert {"postgres", "aws"} == whole["services"].keys() - ours().keys()
    for name, service in whole["services"].items():
        assert set(service.get("depends_on", {})) <= whole["services"].keys(), name
        for dependency, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in whole["services"][dependency]
    for name, service in ours().items():
        assert "entrypoint" in service or service["command"][0] in COMMANDS, name
        assert set(service["environment"]) <= {key.name for key in keys_of("aws")}
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in whole["volumes"] or (FILE.parent / source).is_file(), source
        assert (FILE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_a_newcomer_gets_a_ready_service_and_a_page_with_a_token(tmp_path: Path) -> None:
    keys = {key: value.replace("127.0.0.1", HOST) for key, value in ours()["serve"]["environment"].items()}
    with service_directory() as directory:
        environ = os.environ | {
            **keys,
            "CAA_LEDGER_URL": f"sqlite:///{directory}/ledger.db",
            "CAA_STATE_DIR": str(directory),
            "CAA_RUN_DIR": str(directory / "run"),
            "CAA_CONFIG_DIR": str(directory / "config"),
            "CAA_API_TOKEN_FILE": str(directory / "token"),
        }
        processes: list[subprocess.Popen[bytes]] = []

        def start(*words: str) -> None:
            with (tmp_path / "log").open("ab") as log:
                processes.append(subprocess.Popen(words, env=environ, stdout=log, stderr=log))

        def wait_for(*words: str) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while subprocess.run(words, env=environ, capture_output=True).returncode != 0:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)

        caa = [sys.executable, "-m", "caa.cli.main"]
        try:
            start(
                sys.executable,
                "-m",
                "moto.server",
                "-H",
                HOST,
                "-p",
                keys["AWS_ENDPOINT_URL"].rpartition(":")[2],
            )
            prepare = [sys.executable, str(FILE.parent / "compose" / "prepare.py"), environ["CAA_CONFIG_DIR"]]
            wait_for(*prepare)
            start(*confined([]), 'exec "$@"', "sh", *caa, "proxy")
            start(*confined([]), 'exec "$@"', "sh", *caa, "serve")
            wait_for(*caa, "health", "ready")
            token = (directory / "token").read_text()
            with httpx.Client(base_url=f"http://{keys['CAA_API_LISTEN']}", timeout=60) as http:
                assert http.get("/v1/sandboxes").status_code == 401
                assert http.get("/v1/sandboxes", headers={"Authorization": f"Bearer {token}"}).json()["sandboxes"] == []
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(PATIENCE_S)
