"""What the real service tells an API server, of pods whose VMs run on an emulated EC2."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from caa.kubernetes.api import KubernetesApi
from caa.kubernetes.objects import FINALIZER, RESOURCE
from caa.kubernetes.reports import BEFORE_LAUNCH_SECONDS
from providers.base import ConfigError
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagelab import make_disk
from tests.clouds.podworld import NODE, TYPE, alive, launches, pod_service, service_directory, service_environ
from tests.clouds.test_service_image import unready_service, wait_until_it_listens
from tests.kube.apiserver import KubeApiServer, eventually
from tests.kube.test_manifests import NODE as NODE_ROLE
from tests.kube.test_manifests import rights
from tests.lab.service import ServiceProcess, new_id

# The long one is tried on a clock of the test's own in test_long_outage.py.
OUTAGE_SECONDS = 300 if os.environ.get("CAA_SOAK") else 0
STARTED = ["OfferingChosen", "Launching", "PodVMRunning"]


def started(service: ServiceProcess, pod: str) -> str:
    sandbox_id = new_id()
    service.create(sandbox_id, pod)
    service.start_sandbox(sandbox_id)
    return sandbox_id


def test_a_pod_s_life_is_told_and_its_peer_pod_is_there_before_the_cloud_is_asked(
    account: Account, proxy: FaultProxy, kube: KubeApiServer, service: ServiceProcess
) -> None:
    uid = kube.add_pod("web")
    sandbox_id = started(service, "web")
    (launch,) = launches(account, proxy)
    (written,) = [call for call in kube.do("called") if (call["verb"], call["resource"]) == ("create", "peerpods")]
    assert written["at"] < launch.at
    eventually(lambda: kube.reasons("web"), lambda seen: seen == STARTED)
    (instance,) = alive(account)
    (peer_pod,) = eventually(kube.peer_pods, lambda seen: bool(seen) and bool(seen[0]["spec"]["instanceID"]))
    assert peer_pod["spec"] == {"cloudProvider": "aws", "instanceID": instance}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": True}
    assert peer_pod["metadata"]["ownerReferences"] == [owner]
    assert peer_pod["metadata"]["finalizers"] == [FINALIZER]
    first = kube.events("web")[0]
    assert (first["involvedObject"]["uid"], first["type"]) == (uid, "Normal")
    assert TYPE in first["message"]
    # The Pod goes: its PeerPod stays until nothing of the VM is left.
    kube.do("remove", resource="pods", namespace="default", name="web")
    assert kube.peer_pods()[0]["metadata"]["deletionTimestamp"]
    service.stop_sandbox(sandbox_id)
    eventually(kube.peer_pods, lambda seen: not seen)
    assert not alive(account)
    eventually(lambda: kube.capacity(NODE).get(RESOURCE), lambda seen: seen == "7")
    # The PeerPod is gone with its finalizer; that it is to go is asked after that.
    calls = eventually(
        lambda: {(call["verb"], call["resource"]) for call in kube.do("called")},
        lambda seen: seen >= rights(NODE_ROLE),
    )
    assert calls == rights(NODE_ROLE)


def test_a_fallback_says_why_and_a_failure_says_what_the_start_was_told(
    account: Account, proxy: FaultProxy, kube: KubeApiServer, service: ServiceProcess
) -> None:
    first, second, third = account.seed.zones
    account.emulator.capacity({"zone": first})
    kube.add_pod("lucky")
    started(service, "lucky")
    eventually(lambda: kube.reasons("lucky"), lambda seen: seen[-1:] == ["PodVMRunning"])
    assert kube.reasons("lucky") == ["OfferingChosen", "OfferingRefused", "FallbackOffering", *STARTED[1:]]
    refused, fallback = kube.events("lucky")[1:3]
    assert (refused["type"], fallback["type"]) == ("Warning", "Normal")
    assert second in fallback["message"]
    assert refused["message"] in fallback["message"]

    account.emulator.capacity({"zone": second}, {"zone": third})
    kube.add_pod("unlucky")
    sandbox_id = new_id()
    service.create(sandbox_id, "unlucky")
    problem = service.begin_start(sandbox_id).json()
    eventually(lambda: kube.reasons("unlucky"), lambda seen: seen[-1:] == [problem["reason"]])
    last = kube.events("unlucky")[-1]
    assert (last["reason"], last["type"]) == ("NoCapacity", "Warning")
    assert last["message"] == problem["detail"][:1024]
    eventually(kube.peer_pods, lambda seen: len(seen) == 1)  # that of the other


def test_another_pod_of_the_same_name_is_not_told_of_a_sandbox_that_was_there_before_it(
    kube: KubeApiServer, service: ServiceProcess
) -> None:
    kube.add_pod("db-0", created="2999-01-01T00:00:00Z")
    kube.add_pod("other")
    sandbox_id = started(service, "db-0")
    started(service, "other")
    eventually(lambda: kube.reasons("other"), lambda seen: seen == STARTED)
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, 30)
    assert kube.events("db-0") == []
    owners = [one["metadata"]["ownerReferences"][0]["name"] for one in kube.peer_pods()]
    assert owners == ["other"]


def test_a_pod_that_waits_for_the_image_is_told_so(
    account: Account, proxy: FaultProxy, kube: KubeApiServer, tmp_path: Path
) -> None:
    upload = proxy.add(Fault.DELAY, Phase.BEFORE, method="PUT", seconds=5.0, times=None)
    kube.add_pod("web")
    with unready_service(account, proxy, make_disk(tmp_path / "disk.raw"), **kube.environ()) as service:
        wait_until_it_listens(service)
        sandbox_id = new_id()
        service.create(sandbox_id, "web")
        refused = service.begin_start(sandbox_id).json()
        (told,) = eventually(lambda: kube.events("web"), bool)
        assert (told["reason"], told["type"], told["message"]) == ("ImageBuilding", "Normal", refused["detail"])
        upload.seconds = 0.0  # no earlier, or the image may be there before the pod
        service.wait_ready()
        service.start_sandbox(sandbox_id)
        eventually(lambda: kube.reasons("web"), lambda seen: seen == ["ImageBuilding", *STARTED])
        # Whoever looks after the node sees it as well, for nothing says in which ConfigMap the configuration is.
        eventually(lambda: kube.reasons(NODE), lambda seen: {"ImageBuilding", "ImageReady"} <= set(seen))
        for one in kube.events(NODE):
            assert (one["involvedObject"]["kind"], one["metadata"]["namespace"]) == ("Node", "default")


def test_a_service_that_cannot_tell_where_the_api_server_is_says_so_and_ends(account: Account, tmp_path: Path) -> None:
    keys = {"CAA_KUBERNETES": "true", "KUBECONFIG": str(tmp_path / "missing")}
    with service_directory() as directory:
        service = ServiceProcess(directory, account.emulator.environ() | service_environ(account, **keys))
        service.start()
        assert service.process is not None
        assert service.process.wait(60) == 1, service.log_tail()
        last = service.log_tail(1)
    assert "CAA_KUBERNETES: 'true' is not allowed here: where the API server is cannot be told" in last
    assert "missing not found" in last


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not one that can be read"),
        ("token: &s3cret [", "not one that can be read: ParserError"),
        ("clusters: []", "not one that can be read: KeyError"),
        ("{clusters: [], contexts: []}", "No current context"),
        ("{clusters: [], contexts: [], current-context: nowhere}", "'nowhere' not found"),
    ],
)
def test_a_kubeconfig_that_leads_nowhere_is_told_without_what_it_holds(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(ConfigError) as refused:
        KubernetesApi()
    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_sandboxes_go_on_while_the_api_server_is_down_and_it_catches_up_even_after_a_crash(
    account: Account, proxy: FaultProxy, kube: KubeApiServer, service: ServiceProcess
) -> None:
    kube.add_pod("before")
    before = started(service, "before")
    eventually(kube.peer_pods, lambda seen: bool(seen) and bool(seen[0]["spec"]["instanceID"]))
    kube.do("set_down", down=True)
    kube.add_pod("during")
    started(service, "during")
    service.stop_sandbox(before)
    service.wait_for_state(before, {"stopped"}, 30)
    time.sleep(OUTAGE_SECONDS)
    service.kill()
    kube.do("set_down", down=False)
    service.start()
    service.wait_ready()
    eventually(lambda: kube.reasons("during"), lambda seen: seen == STARTED)
    # The one that ended unheard is released, and the other one's is written.
    (peer_pod,) = eventually(
        kube.peer_pods, lambda seen: [one["metadata"]["ownerReferences"][0]["name"] for one in seen] == ["during"]
    )
    assert peer_pod["spec"]["instanceID"] in alive(account)
    # Those that it was not told before the outage.
    eventually(lambda: kube.reasons("before"), lambda seen: len(seen) >= len(STARTED))
    assert kube.reasons("before") == STARTED


def test_of_an_api_server_that_does_not_answer_one_start_waits_two_seconds_and_the_next_none(
    account: Account, proxy: FaultProxy, kube: KubeApiServer
) -> None:
    with pod_service(account, proxy.url, **kube.environ()) as service:
        kube.do("set_silent", silent=True)
        took: list[float] = []
        # After the first any number, for a start may take so long by itself on a busy machine.
        while len(took) < 2 or (min(took[1:]) >= BEFORE_LAUNCH_SECONDS and len(took) < 10):
            pod = f"pod-{len(took)}"
            kube.add_pod(pod)
            begun = time.monotonic()
            started(service, pod)
            took.append(time.monotonic() - begun)
        assert min(took[1:]) < BEFORE_LAUNCH_SECONDS <= took[0]
        # Whichever start waited has said so, and how that ended.
        assert service.log_file.read_text().count("is written later: no answer in time") == 1
        kube.do("set_silent", silent=False)
        for number in range(len(took)):
            eventually(partial(kube.reasons, f"pod-{number}"), lambda seen: seen == STARTED)
        eventually(kube.peer_pods, lambda seen: len(seen) == len(took))


def test_an_answer_that_passes_is_tried_again_and_nothing_is_told_twice(
    kube: KubeApiServer, service: ServiceProcess
) -> None:
    for code in (401, 409, 429, 500, 503):
        pod = f"pod-{code}"
        kube.add_pod(pod)
        kube.do("refuse", code=code, resource="peerpods", times=1)
        # A Pod's event that is there already answers 409 too.
        kube.do("refuse", code=code, resource="events", times=0 if code == 409 else 1)
        sandbox_id = started(service, pod)
        eventually(partial(kube.reasons, pod), lambda seen: seen == STARTED)
        service.stop_sandbox(sandbox_id)
        eventually(kube.peer_pods, lambda seen: not seen)
        assert kube.reasons(pod) == STARTED


def test_without_the_definition_of_peer_pods_and_without_rights_pods_still_start(
    kube: KubeApiServer, service: ServiceProcess
) -> None:
    kube.do("without", kind="peerpods")
    kube.do("refuse", code=403, resource="events", times=1)
    kube.add_pod("web")
    started(service, "web")
    eventually(lambda: kube.reasons("web"), lambda seen: seen[-1:] == ["PodVMRunning"])
    assert kube.reasons("web") == STARTED[1:]
    log = service.log_file.read_text()
    assert log.count("is the definition of PeerPod installed?") == 1
    assert log.count("the API server refuses events") == 1
