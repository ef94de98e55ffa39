"""A pod VM is sent what its own pod pulls images with, and that is in no log and no event."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import pytest

from caa.agentproxy.volumes import SANDBOX_UID
from caa.guest.userdata import parse
from caa.kubernetes.registryauths import PullSecret, registry_auths
from caa.kubernetes.whichpod import is_that_pod
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import pod_service
from tests.kube.apiserver import KubeApiServer, eventually
from tests.kube.patient import patient_service
from tests.kube.test_manifests import NODE, PULL_SECRETS, rights, rules
from tests.lab.service import ServiceProcess, new_id
from tests.unit.test_podevents import sandbox

CONFIG_JSON, DOCKERCFG = "kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def pull_secret(name: str, auths: Any, kind: str = CONFIG_JSON) -> PullSecret:
    document = json.dumps({"auths": auths} if kind == CONFIG_JSON else auths)
    key = ".dockerconfigjson" if kind == CONFIG_JSON else ".dockercfg"
    return PullSecret(name, kind, {key: encoded(document)})


class World:
    """A service, the API server, and what pod VMs were sent."""

    def __init__(self, kube: KubeApiServer, proxy: FaultProxy, service: ServiceProcess) -> None:
        self.kube = kube
        self.proxy = proxy
        self.service = service

    def secret(self, made: PullSecret, namespace: str = "default") -> None:
        body = {"metadata": {"name": made.name}, "type": made.type, "data": dict(made.data)}
        self.kube.do("add", resource="secrets", namespace=namespace, body=body)

    def account(self, *secrets: str, name: str = "default") -> None:
        body = {"metadata": {"name": name}, "imagePullSecrets": [{"name": one} for one in secrets]}
        self.kube.do("add", resource="serviceaccounts", namespace="default", body=body)

    def start(self, pod: str, *secrets: str, account: str = "default") -> str:
        spec = {
            "serviceAccountName": account,
            "imagePullSecrets": [{"name": one} for one in secrets],
            "containers": [{"name": "main"}],
        }
        body = {"metadata": {"name": pod, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}
        self.kube.do("add", resource="pods", namespace="default", body=body)
        sandbox_id = new_id()
        self.service.create(sandbox_id, pod)
        self.service.start_sandbox(sandbox_id)
        return sandbox_id

    def sent(self) -> dict[str, str]:
        """The registries' credentials in the newest launch's user data."""
        bodies = [one.body for one in self.proxy.records if one.action == "RunInstances"]
        (data,) = parse_qs(next(body for body in reversed(bodies) if b"DryRun=true" not in body).decode())["UserData"]
        files = {str(file.path): file.content for file in parse(base64.b64decode(data))}
        found = files.get("/run/peerpod/auth.json")
        return {} if found is None else {name: one["auth"] for name, one in json.loads(found)["auths"].items()}

    def told(self) -> str:
        """All that people may read."""
        events = json.dumps(self.kube.do("listed", resource="events"))
        with self.service.rest() as client:
            trail = client.get("/v1/events").text
        return self.service.log_file.read_text() + events + trail


@pytest.fixture
def world(account: Account, proxy: FaultProxy, kube: KubeApiServer) -> Iterator[World]:
    kube.do("allow_only", rules=rules(NODE, PULL_SECRETS))
    with patient_service(account, proxy.url, CAA_PULL_SECRETS="true", **kube.environ()) as service:
        yield World(kube, proxy, service)


def test_the_secrets_of_the_pod_and_its_service_account_are_sent_and_no_others_are_read(
    world: World, account: Account
) -> None:
    world.secret(pull_secret("of-account", {"quay.io": {"auth": encoded("a:old")}, "one.example": {"auth": "YTpi"}}))
    world.secret(pull_secret("of-pod", {"quay.io": {"username": "a", "password": "s3cret-of-pod"}}, DOCKERCFG))
    world.secret(pull_secret("of-nobody", {"two.example": {"auth": encoded("x:y")}}))
    world.account("of-account", name="builder")
    world.start("web", "of-pod", account="builder")
    assert world.sent() == {"quay.io": encoded("a:s3cret-of-pod"), "one.example": "YTpi"}
    calls = [(one["verb"], one["resource"], one["name"]) for one in world.kube.do("called")]
    assert [name for _, kind, name in calls if kind in ("secrets", "serviceaccounts")] == [
        "builder",
        "of-account",
        "of-pod",
    ]
    assert rights(PULL_SECRETS) <= {(verb, kind) for verb, kind, _ in calls} <= rights(NODE, PULL_SECRETS)
    assert "s3cret-of-pod" not in world.told()
    assert encoded("a:s3cret-of-pod") not in world.told()
    world.start("other")
    assert world.sent() == {}


def test_what_cannot_be_used_is_named_to_the_pod_which_starts_all_the_same(world: World, account: Account) -> None:
    world.secret(PullSecret("broken", CONFIG_JSON, {".dockerconfigjson": encoded("{ s3cret")}))
    world.secret(pull_secret("good", {"quay.io": {"auth": "YTpi"}}))
    world.account("missing")
    world.start("web", "broken", "good")
    assert world.sent() == {"quay.io": "YTpi"}
    warnings = eventually(
        lambda: [one["message"] for one in world.kube.events("web") if one["reason"] == "LeftOut"],
        lambda seen: len(seen) == 2,
    )
    assert warnings == [
        "Secret missing, which is to be used to pull images, is not there",
        f"Secret broken cannot be read as image pull secret (its type is {CONFIG_JSON})",
    ]
    assert "s3cret" not in world.told()


def test_without_the_right_a_pod_starts_without_them_and_is_told(world: World, account: Account) -> None:
    world.account("good")
    world.secret(pull_secret("good", {"quay.io": {"auth": "YTpi"}}))
    world.kube.do("allow_only", rules=rules(NODE))
    world.start("web")
    assert world.sent() == {}
    said = eventually(
        partial(world.kube.events, "web"), lambda seen: bool(seen) and seen[-1]["reason"] == "PodVMRunning"
    )
    (left_out,) = [one["message"] for one in said if one["reason"] == "LeftOut"]
    assert 'cannot get resource "serviceaccounts"' in left_out


def test_a_pod_does_not_wait_for_an_api_server_that_does_not_answer(
    account: Account, proxy: FaultProxy, kube: KubeApiServer
) -> None:
    with pod_service(account, proxy.url, CAA_PULL_SECRETS="true", **kube.environ()) as service:
        kube.do("set_silent", silent=True)
        sandbox_id = new_id()
        service.create(sandbox_id, "db")
        service.start_sandbox(sandbox_id)
        kube.do("set_silent", silent=False)
        trail = [one["message"] for one in service.events(sandbox_id) if one["kind"] == "LeftOut"]
        assert trail == ["the image pull secrets could not be read: no answer in time"]


@pytest.mark.parametrize(
    ("entry", "auth"),
    [
        ({"auth": "YTpi"}, "YTpi"),
        ({"auth": "YTpi", "username": "no", "password": "no"}, "YTpi"),
        ({"username": "a", "password": "b:c"}, encoded("a:b:c")),
        ({"identitytoken": "token"}, None),
        ({}, None),
    ],
)
def test_an_entry_is_what_guests_know(entry: dict[str, str], auth: str | None) -> None:
    auths, problems = registry_auths([pull_secret("one", {"quay.io": entry})])
    assert (auths, problems) == ({} if auth is None else {"quay.io": auth}, [])


@pytest.mark.parametrize(
    "secret",
    [
        PullSecret("one", "Opaque", {".dockerconfigjson": encoded('{"auths":{}}')}),
        PullSecret("one", CONFIG_JSON, {}),
        PullSecret("one", CONFIG_JSON, {".dockerconfigjson": "s3cret"}),
        PullSecret("one", CONFIG_JSON, {".dockerconfigjson": encoded('["s3cret"]')}),
        PullSecret("one", CONFIG_JSON, {".dockerconfigjson": encoded('{"auths":["s3cret"]}')}),
        pull_secret("one", {"quay.io": "s3cret"}),
        pull_secret("one", {"quay.io": {"auth": "s3cret"}}),
        pull_secret("one", {"quay.io": {"auth": encoded("s3cret")}}),
    ],
)
def test_a_secret_of_no_use_is_named_without_what_it_holds(secret: PullSecret) -> None:
    auths, (problem,) = registry_auths([secret])
    assert not auths
    assert problem.startswith("Secret one cannot be read as image pull secret")
    assert "s3cret" not in problem


def test_a_pod_is_the_sandbox_s_by_its_uid_or_else_by_its_age() -> None:
    one = sandbox()
    known = dataclasses.replace(one, annotations={SANDBOX_UID: "mine"})
    old, new = one.created_at, one.created_at + timedelta(minutes=2)
    assert is_that_pod({"uid": "mine", "created": new}, known)
    assert not is_that_pod({"uid": "theirs", "created": old}, known)
    assert is_that_pod({"uid": "any", "created": old}, one)
    assert not is_that_pod({"uid": "any", "created": new}, one)
