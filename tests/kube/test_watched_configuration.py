"""A service that reads its ConfigMap and Secret at the API server, on the emulated EC2."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import TYPE, pod_service, service_directory, service_environ
from tests.kube.apiserver import KubeApiServer, eventually
from tests.lab.mounted import Mounted
from tests.lab.service import ServiceProcess, checked, new_id

SPACE, CONFIG, SECRET = "peerpods", "peer-pods-cm", "peer-pods-secret"
PASSWORD = "in-no-log-and-in-no-event"
# Of the ConfigMap, and not in the environment.
OURS = ("PODVM_INSTANCE_TYPE", "AWS_SUBNET_IDS", "AWS_SG_IDS", "PODVM_AMI_ID")


class World:
    """A service and the two objects."""

    def __init__(self, kube: KubeApiServer, account: Account, proxy: FaultProxy) -> None:
        self.kube = kube
        self.account = account
        self.proxy = proxy
        self.data = {key: value for key, value in service_environ(account).items() if key in OURS}
        kube.do("namespace", name=SPACE)
        self.put(**self.data, PROXY_TIMEOUT="")
        # The Secret loses to the ConfigMap, and wins over the environment.
        secrets = {"AWS_SECRET_ACCESS_KEY": PASSWORD, "PODVM_INSTANCE_TYPE": "m6a.4xlarge", "TAGS": "from=secret"}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in secrets.items()}
        kube.do("add", resource="secrets", namespace=SPACE, body={"metadata": {"name": SECRET}, "data": data})

    def keys(self) -> dict[str, str]:
        """Of the environment."""
        return {**dict.fromkeys(OURS, ""), **self.kube.environ(), "CAA_CONFIG_NAMESPACE": SPACE, "TAGS": "from=nowhere"}

    def put(self, **data: str) -> None:
        """Make the ConfigMap."""
        self.kube.do("add", resource="configmaps", namespace=SPACE, body={"metadata": {"name": CONFIG}, "data": data})

    def change(self, **data: str | None) -> None:
        """As its owner."""
        self.kube.do("change", resource="configmaps", namespace=SPACE, name=CONFIG, patch={"data": data})

    def events(self) -> list[tuple[str, str, str]]:
        """Of the ConfigMap: reason, type, message."""
        found = self.kube.events(CONFIG)
        assert all(one["metadata"]["namespace"] == SPACE for one in found)
        return [(one["reason"], one["type"], one["message"]) for one in found]


@pytest.fixture
def world(kube: KubeApiServer, account: Account, proxy: FaultProxy) -> World:
    return World(kube, account, proxy)


@pytest.fixture
def service(world: World) -> Iterator[ServiceProcess]:
    with pod_service(world.account, world.proxy.url, **world.keys()) as service:
        yield service


def status(service: ServiceProcess) -> dict[str, Any]:
    with service.rest() as client:
        return dict(checked(client.get("/v1/config/status")))


def generation(service: ServiceProcess, wanted: int) -> None:
    eventually(lambda: status(service)["generation"], lambda seen: seen == wanted)


def started(service: ServiceProcess) -> str:
    """A sandbox."""
    sandbox_id = new_id()
    service.create(sandbox_id, "web")
    service.start_sandbox(sandbox_id)
    return sandbox_id


def types(world: World) -> list[str]:
    """Of the instances that there are."""
    return sorted(one["InstanceType"] for one in world.account.instances())


def test_a_change_applies_at_once_and_a_wrong_one_is_refused_with_an_event_that_tells_no_secret(
    world: World, service: ServiceProcess
) -> None:
    assert status(service)["directories"] == [f"ConfigMap {SPACE}/{CONFIG}", f"Secret {SPACE}/{SECRET}"]
    started(service)
    (instance,) = world.account.instances()
    assert instance["InstanceType"] == TYPE
    assert {"Key": "from", "Value": "secret"} in instance["Tags"]

    world.change(PODVM_INSTANCE_TYPE="m6a.xlarge")
    generation(service, 2)
    started(service)
    assert types(world) == ["m6a.large", "m6a.xlarge"]

    world.change(PROXY_TIMEOUT="soon")
    (refused,) = eventually(lambda: [one for one in world.events() if one[1] == "Warning"], bool)
    assert refused[0] == "ConfigurationRefused"
    assert "PROXY_TIMEOUT: 'soon' is not allowed" in refused[2]
    assert status(service)["generation"] == 2
    # What is wrong in the Secret is told by its key alone.
    wrong = base64.b64encode(b"wrong-value-of-a-secret").decode()
    world.kube.do("change", resource="secrets", namespace=SPACE, name=SECRET, patch={"data": {"VXLAN_PORT": wrong}})
    told = eventually(world.events, lambda seen: "VXLAN_PORT" in seen[-1][2])
    assert "VXLAN_PORT: '********' is not allowed" in told[-1][2]
    world.kube.do("change", resource="secrets", namespace=SPACE, name=SECRET, patch={"data": {"VXLAN_PORT": None}})
    world.change(PROXY_TIMEOUT="4m")
    generation(service, 3)
    told = eventually(world.events, lambda seen: seen[-1][0] == "ConfigurationApplied")
    assert told[-1] == ("ConfigurationApplied", "Normal", "PROXY_TIMEOUT changed")
    everything = service.log_file.read_text() + json.dumps(world.kube.do("listed", resource="events"))
    for secret in (PASSWORD, "wrong-value-of-a-secret", wrong):
        assert secret not in everything


def test_no_change_is_lost_when_the_watch_breaks_the_history_is_gone_or_the_server_refuses_and_is_away(
    world: World, service: ServiceProcess
) -> None:
    kube = world.kube
    eventually(lambda: kube.do("watching"), lambda seen: seen == 2)
    kube.do("break_watches")
    world.change(TAGS="n=1")
    generation(service, 2)
    eventually(lambda: kube.do("watching"), lambda seen: seen == 2)
    kube.do("expire")
    kube.do("break_watches", how="close")
    world.change(TAGS="n=2")
    generation(service, 3)
    for code in (429, 403):
        kube.do("refuse", code=code, resource="configmaps", times=2, retry_after=1)
        kube.do("break_watches")
        world.change(TAGS=f"n={code}")
        generation(service, status(service)["generation"] + 1)
    # Away: sandboxes are started by what was told last.
    kube.do("set_down", down=True)
    world.change(TAGS="n=away", PODVM_INSTANCE_TYPE="m6a.xlarge")
    before = status(service)["generation"]
    started(service)
    assert types(world) == [TYPE]
    kube.do("set_down", down=False)
    generation(service, before + 1)
    started(service)
    assert types(world) == [TYPE, "m6a.xlarge"]


def test_the_command_shows_where_each_key_is_from(world: World, account: Account) -> None:
    environ = os.environ | account.emulator.environ() | service_environ(account, **world.keys())
    command = [sys.executable, "-m", "caa.cli.main", "config", "show", "--json"]
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    keys = {one["key"]: (one["value"], one["source"]) for one in json.loads(shown)["keys"]}
    assert keys["PODVM_INSTANCE_TYPE"] == (TYPE, "ConfigMap")
    assert keys["TAGS"] == ("********", "Secret")
    assert keys["CAA_CONFIG_NAMESPACE"] == (SPACE, "environment")
    assert PASSWORD not in shown


def test_without_its_config_map_a_service_goes_on_with_what_it_had(world: World, service: ServiceProcess) -> None:
    world.kube.do("remove", resource="configmaps", namespace=SPACE, name=CONFIG)
    refused = eventually(lambda: status(service)["refused"], bool)
    assert refused["problems"][0]["message"] == f"'{SPACE}': there is no ConfigMap {CONFIG}"
    started(service)
    assert types(world) == [TYPE]
    world.put(**world.data, TAGS="made=anew")
    generation(service, 2)


def test_a_service_that_begins_while_the_api_server_is_away_takes_what_is_mounted_or_ends(
    world: World, account: Account, proxy: FaultProxy, tmp_path: Path
) -> None:
    world.kube.do("set_down", down=True)
    environ = account.emulator.environ(proxy.url) | service_environ(account, **world.keys())
    with service_directory() as directory:
        service = ServiceProcess(directory, environ)
        service.start()
        assert service.process is not None
        assert service.process.wait(60) == 1, service.log_tail()
        assert "CAA_CONFIG_NAMESPACE" in service.log_tail(1)
        assert "the API server cannot be reached" in service.log_tail(1)
    mounted = Mounted(tmp_path / "config", world.data)
    with contextlib.ExitStack() as stack:
        keys = world.keys() | {"CAA_CONFIG_DIR": str(mounted.path)}
        service = stack.enter_context(pod_service(account, proxy.url, **keys))
        started(service)
        # Those who ask the service need no API server, mounted or not.
        socket = {"CAA_API_SOCKET": str(service.api_socket), "CAA_CONFIG_DIR": ""}
        command = [sys.executable, "-m", "caa.cli.main", "sandbox", "list"]
        listed = subprocess.run(command, env=os.environ | environ | socket, capture_output=True, text=True, check=True)
        assert "web" in listed.stdout
        world.change(PODVM_INSTANCE_TYPE="m6a.xlarge")
        world.kube.do("set_down", down=False)
        generation(service, 2)
        started(service)
        assert types(world) == [TYPE, "m6a.xlarge"]


def test_the_namespace_is_of_no_use_without_kubernetes(world: World, account: Account, proxy: FaultProxy) -> None:
    keys = world.keys() | {"CAA_KUBERNETES": "false"}
    environ = account.emulator.environ(proxy.url) | service_environ(account, **keys)
    with service_directory() as directory:
        service = ServiceProcess(directory, environ)
        service.start()
        assert service.process is not None
        assert service.process.wait(60) == 1, service.log_tail()
        assert "CAA_KUBERNETES: is required to be true when CAA_CONFIG_NAMESPACE is set" in service.log_tail(1)
