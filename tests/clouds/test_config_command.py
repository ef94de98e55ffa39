"""`caa config check` and `show` as their users meet them: real processes, on the emulated EC2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.clouds import podworld
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.podworld import service_environ
from tests.lab.mounted import Mounted

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7MOUNTED", "AWS_SECRET_ACCESS_KEY": "hunter2"}


@pytest.fixture
def environ(account: Account) -> dict[str, str]:
    return account.emulator.environ() | service_environ(account)


def config(verb: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caa.cli.main", "config", verb, *options],
        env={"PATH": os.environ["PATH"]} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shown(environ: Mapping[str, str]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Key -> (value, where from), and the warnings."""
    done = config("show", "--json", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    return {one["key"]: (one["value"], one["source"]) for one in told["keys"]}, told["warnings"]


def test_a_right_configuration_is_right_and_nothing_was_made(account: Account, environ: dict[str, str]) -> None:
    done = config("check", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert account.emulator.counters()["states"] == {}


def test_every_problem_of_the_keys_is_told_at_once(environ: dict[str, str]) -> None:
    done = config("check", **environ | {"PROXY_TIMEOUT": "soon", "PODVM_AMI_ID": "mine", "PODVM_INSTANCE_TYPS": "x"})
    assert (done.returncode, done.stdout) == (1, "")
    for told in ("PROXY_TIMEOUT: 'soon'", "PODVM_AMI_ID: 'mine'", "did you mean PODVM_INSTANCE_TYPES?"):
        assert told in done.stderr


def test_every_problem_of_the_cloud_is_told_at_once(environ: dict[str, str]) -> None:
    done = config("check", **environ | {"PODVM_INSTANCE_TYPE": "zz9.large", "SSH_KP_NAME": "nobody"})
    assert done.returncode == 1
    assert "PODVM_INSTANCE_TYPE: 'zz9.large' is no instance type" in done.stderr
    assert "SSH_KP_NAME: 'nobody' is no key pair" in done.stderr


def test_problems_of_both_directories_are_told_at_once(environ: dict[str, str]) -> None:
    done = config("check", **environ | {"CAA_CONFIG_DIR": "/run/no-config", "CAA_SECRET_DIR": "/run/no-secret"})
    assert done.returncode == 1
    assert "CAA_CONFIG_DIR: '/run/no-config'" in done.stderr
    assert "CAA_SECRET_DIR: '/run/no-secret'" in done.stderr


def test_keys_of_mounted_directories_are_checked_like_others(environ: dict[str, str], tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "config", {"AWS_ENDPOINT_URL": environ.pop("AWS_ENDPOINT_URL"), "TAGS": "a=b"})
    assert config("check", **environ | {"CAA_CONFIG_DIR": str(mounted.path)}).returncode == 0
    mounted.write({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    done = config("check", **environ | {"CAA_CONFIG_DIR": str(mounted.path)})
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


def test_show_tells_values_and_where_they_came_from_and_masks_secrets(environ: dict[str, str], tmp_path: Path) -> None:
    config_map = Mounted(tmp_path / "config", {"TAGS": "team=blue", "PAUSE_IMAGE": "pause", "CAA_LOG_LEVL": "DEBUG"})
    secret = Mounted(tmp_path / "secret", SECRETS | {"SSH_KP_NAME": "also-hidden"})
    environ |= {"CAA_CONFIG_DIR": str(config_map.path), "CAA_SECRET_DIR": str(secret.path), "CAA_RUN_DIR": "/run/two"}
    environ |= {"CAA_LEDGER_URL": "postgresql://caa:hunter2@db/caa", "INITDATA": "H4sI"}
    keys, warnings = shown(environ)
    assert keys["TAGS"] == ("team=blue", "ConfigMap")
    assert keys["CAA_CLUSTER_ID"] == ("emulated", "environment")
    assert keys["PROXY_TIMEOUT"] == ("5m", "default")
    assert keys["CAA_API_SOCKET"] == ("/run/two/caa.sock", "default")
    assert keys["AWS_SECRET_ACCESS_KEY"] == ("********", "Secret")
    assert keys["SSH_KP_NAME"] == ("********", "Secret")
    assert keys["CAA_LEDGER_URL"] == keys["INITDATA"] == ("********", "environment")
    assert keys["NODE_NAME"] == ("worker", "environment")
    assert "LIBVIRT_URI" not in keys
    assert any("did you mean CAA_LOG_LEVEL?" in one for one in warnings)
    assert any(one.startswith("PAUSE_IMAGE has no effect") for one in warnings)
    for told in (config("show", **environ), config("show", "--json", **environ), config("check", **environ)):
        assert not any(secret in told.stdout + told.stderr for secret in ("hunter2", *SECRETS.values(), "also-hidden"))


def test_show_works_when_the_configuration_does_not(environ: dict[str, str]) -> None:
    keys, _ = shown(environ | {"PROXY_TIMEOUT": "soon", "PODVM_AMI_ID": ""})
    assert keys["PROXY_TIMEOUT"] == ("soon", "environment")
    assert keys["PODVM_AMI_ID"] == ("", "default")
    assert "CLOUD_PROVIDER" in shown({"CLOUD_PROVIDER": "nowhere"})[0]


def test_other_commands_find_the_service_by_the_mounted_keys(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "config", {"CAA_RUN_DIR": "/run/mounted-elsewhere"})
    done = subprocess.run(
        [sys.executable, "-m", "caa.cli.main", "sandbox", "list"],
        env={"PATH": os.environ["PATH"], "CAA_CONFIG_DIR": str(mounted.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "/run/mounted-elsewhere/caa.sock" in done.stderr


def test_a_quota_that_is_used_up_is_told_with_what_is_left_and_stops_no_service(
    account: Account, environ: dict[str, str]
) -> None:
    account.emulator.quota(on_demand=5)
    for _ in range(2):
        account.launch()
    done = config("check", **environ | {"PODVM_INSTANCE_TYPES": "m6a.large,c6a.xlarge,g5.xlarge"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("caa: PODVM_INSTANCE_TYPES: c6a.xlarge, m6a.large: the quota of on-demand instances")
    assert "is 5 vCPUs in us-east-1, and 1 are left" in done.stderr
    assert "g5.xlarge" not in done.stderr  # of another family, and it fits
    with podworld.pod_service(account, account.emulator.url):
        pass


def test_without_the_right_to_read_quotas_the_rest_is_checked(account: Account, environ: dict[str, str]) -> None:
    refusal = b'{"__type": "AccessDeniedException", "Message": "no"}'
    with FaultProxy(account.emulator.url) as proxy:
        proxy.add(Fault.STATUS, Phase.BEFORE, body="QuotaCode", status=400, reply=refusal)
        done = config("check", **environ | account.emulator.environ(proxy.url))
    assert done.returncode == 0
    assert "caa: warning: what is left of the account's quotas is not known" in done.stderr
    assert "GetServiceQuota" in done.stderr
