"""`caa audit` on the emulated EC2: what somebody did behind the service's back is found, told and put right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import CLUSTER, NODE, alive, owner_tags, pod_service
from tests.lab.service import ServiceProcess, checked, new_id

# The reconciler ends an orphan after 30 s and a sandbox without instance after 10. An audit of what differs takes four
# seconds, so a loaded machine has time for two before the one and for one before the other.
SECRET = "in-no-event-at-all"


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with pod_service(account, proxy.url, AWS_SECRET_ACCESS_KEY=SECRET) as service:
        yield service


def caa(service: ServiceProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caa.cli.main", "audit", *arguments]
    return subprocess.run(command, env=service.environ, capture_output=True, text=True, timeout=60)


def start_one(service: ServiceProcess, pod: str) -> tuple[str, str]:
    """Sandbox and instance."""
    sandbox_id = new_id()
    service.create(sandbox_id, pod)
    return sandbox_id, service.start_sandbox(sandbox_id)["instance"]["id"]


def found(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    """Findings by verdict."""
    audit = json.loads(done.stdout)
    by_verdict: dict[str, list[dict[str, Any]]] = {}
    for finding in audit.get("audit", audit)["findings"]:
        by_verdict.setdefault(finding["verdict"], []).append(finding)
    return by_verdict


def wait_for_a_round(service: ServiceProcess) -> None:
    """Until the reconciler has seen everything that is there now, and noted it."""

    def looked() -> float:
        with service.rest() as client:
            return samples(client.get("/metrics").text).get("caa_audit_timestamp_seconds", 0.0)

    # The next one may be half over, and is told of before it notes what it saw.
    for _ in range(3):
        before = looked()
        deadline = time.monotonic() + 60
        while looked() == before:
            assert time.monotonic() < deadline, service.log_tail()
            time.sleep(0.1)


def test_nothing_differs_after_a_normal_start(account: Account, service: ServiceProcess) -> None:
    start_one(service, "web")
    account.launch(TagSpecifications=owner_tags("another-cluster", NODE, new_id()))
    account.launch()  # without any tags
    done = caa(service, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert {verdict: len(findings) for verdict, findings in found(done).items()} == {"match": 1}
    shown = caa(service)
    assert shown.stdout == "1 match, 0 pending, 0 orphan, 0 missing, 0 drifted\n"


def test_each_planted_difference_is_found_and_only_what_is_ours_is_put_right(
    account: Account, service: ServiceProcess
) -> None:
    _, kept = start_one(service, "kept")
    changed, changed_instance = start_one(service, "changed")
    regrouped, regrouped_instance = start_one(service, "regrouped")
    vanished, vanished_instance = start_one(service, "vanished")
    wait_for_a_round(service)
    foreign, nobody = account.launch(TagSpecifications=owner_tags("another-cluster", NODE, new_id())), new_id()
    # EC2 changes the type of a stopped instance only; the emulator does not ask.
    other = account.ec2.create_security_group(GroupName="other", Description="other", VpcId=account.one(kept)["VpcId"])
    account.ec2.modify_instance_attribute(InstanceId=changed_instance, InstanceType={"Value": "m6a.4xlarge"})
    account.ec2.modify_instance_attribute(InstanceId=regrouped_instance, Groups=[other["GroupId"]])
    done = caa(service, "--json")
    assert done.returncode == 4, done.stdout + done.stderr
    verdicts = found(done)
    assert {one["instance_id"] for one in verdicts["match"]} == {kept, vanished_instance}
    drifted = {one["sandbox_id"]: one["differences"] for one in verdicts["drifted"]}
    assert drifted.keys() == {changed, regrouped}
    assert drifted[changed] == [{"what": "type", "expected": "m6a.large", "found": "m6a.4xlarge"}]
    ((groups,),) = [drifted[regrouped]]
    assert (groups["what"], groups["expected"]) == ("groups", account.seed.security_group)
    assert other["GroupId"] in groups["found"]
    assert foreign not in done.stdout

    orphan = account.launch(TagSpecifications=owner_tags(CLUSTER, NODE, nobody))
    shown = caa(service)
    assert shown.returncode == 4
    for text in (orphan, "type is m6a.4xlarge, not m6a.large", "default/changed"):
        assert text in shown.stdout

    account.terminate(vanished_instance)
    fixed = caa(service, "--fix", "--json")
    assert fixed.returncode == 4, "what drifted stays"
    findings = [(one["finding"], bool(one["done"])) for one in json.loads(fixed.stdout)["fixed"]]
    assert Counter((one["verdict"], one["sandbox_id"], one["instance_id"], ended) for one, ended in findings) == {
        ("orphan", nobody, orphan, True): 1,
        ("missing", vanished, vanished_instance, True): 1,
        ("drifted", changed, changed_instance, False): 1,
        ("drifted", regrouped, regrouped_instance, False): 1,
    }
    assert set(found(fixed)) <= {"match", "drifted", "pending"}
    service.wait_for_state(vanished, {"failed"}, 60)
    assert set(alive(account)) == {kept, changed_instance, regrouped_instance, foreign}
    (told,) = trail(service, "--kind", "OrphanTerminated")
    assert told["data"]["instance"] == orphan
    assert told["data"]["by"] == "REST unix socket"


def trail(service: ServiceProcess, *arguments: str) -> list[dict[str, Any]]:
    done = caa(service, "export", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_step_of_a_sandboxs_life_is_in_the_trail_with_who_asked_and_what_ec2_said(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    first_zone = account.seed.zones[0]
    account.emulator.capacity({"zone": first_zone})
    by_rest, instance = start_one(service, "web")
    by_shim = new_id()
    service.create_vm(by_shim, "shop")
    service.start_vm(by_shim)
    service.stop_vm(by_shim)
    service.wait_for_state(by_shim, {"stopped"}, 60)
    events = {event["kind"]: event for event in trail(service, "--sandbox", by_rest)}
    assert list(events)[:3] == ["Created", "StartRequested", "LaunchIntended"]
    assert events["StartRequested"]["data"]["by"] == "REST unix socket"
    refused = events["InsufficientInstanceCapacity"]
    assert (refused["data"]["outcome"], refused["data"]["zone"]) == ("refused", first_zone)
    accepted = events["LaunchAccepted"]
    assert accepted["data"]["instance"] == instance
    assert accepted["attempt"] == 2
    for told in (refused, accepted):
        assert told["data"]["request_id"]
        assert told["data"]["seconds"] >= 0
        assert (told["cluster"], told["node"]) == (CLUSTER, NODE)
    intended = trail(service, "--sandbox", by_rest, "--kind", "LaunchIntended")
    assert intended[0]["data"]["why"].startswith("the pod asks for nothing")
    assert re.search(rf"passed over: m6a.large.*{first_zone}", intended[1]["data"]["why"])
    assert intended[1]["data"]["image"] == account.seed.images["x86_64"]
    shims = trail(service, "--sandbox", by_shim)
    assert {event["kind"] for event in shims} >= {"Created", "Running", "StopRequested", "InstanceTerminated", "Ended"}
    for event in shims:
        if event["kind"] in ("Created", "StartRequested", "StopRequested"):
            assert event["data"]["by"].startswith("ttrpc (pid ")
    everything = trail(service)
    assert [event["id"] for event in everything] == sorted(event["id"] for event in everything)
    assert "ServiceStarted" in {event["kind"] for event in everything if not event["sandbox_id"]}
    later = trail(service, "--after", str(everything[-2]["id"]))
    assert later == everything[-1:]
    assert trail(service, "--until", everything[0]["at"]) == []


def test_a_service_that_cannot_list_instances_says_so(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    from tests.clouds.faultproxy import Fault, Phase

    proxy.add(Fault.STATUS, Phase.BEFORE, body="Action=DescribeInstances(&|$)", status=503, times=None)
    done = caa(service, "--json")
    assert done.returncode == 1
    assert "cannot list instances now" in done.stderr
    nowhere = {**service.environ, "CAA_RUN_DIR": "/run/nowhere"}
    command = [sys.executable, "-m", "caa.cli.main", "audit"]
    assert subprocess.run(command, env=nowhere, capture_output=True, timeout=60).returncode == 3
    assert subprocess.run([*command, "--fxi"], env=nowhere, capture_output=True, timeout=60).returncode == 2


def samples(text: str) -> dict[str, float]:
    """Value by metric and labels, of Prometheus' text format."""
    rows = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def test_metrics_tell_of_a_real_run(account: Account, proxy: FaultProxy, service: ServiceProcess) -> None:
    first_zone, second_zone = account.seed.zones[:2]
    account.emulator.capacity({"zone": first_zone})
    sandbox_id, _ = start_one(service, "web")
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, 60)
    start_one(service, "shop")
    with service.rest() as client:
        answer = client.get("/metrics")
        text = answer.text
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert openmetrics.text.endswith("# EOF\n")
        checked(client.get("/v1/version"))
    now = samples(text)
    place = 'provider="aws",instance_type="m6a.large",zone="{}",market="on-demand"'.replace
    second = place("{}", second_zone)
    assert now['caa_sandboxes{state="running"}'] == 1
    assert now['caa_sandboxes{state="stopped"}'] == 1
    assert now['caa_starts_total{outcome="running",provider="aws",reason=""}'] == 2
    assert now[label("caa_start_seconds_count", second)] == 2
    for phase in ("choose", "launch", "address", "boot", "agent"):
        assert now[label("caa_start_phase_seconds_count", f'phase="{phase}",{second}')] == 2
    assert now['caa_fallbacks_total{provider="aws"}'] == 1
    assert now[label("caa_launch_attempts_total", f'{second},outcome="accepted",reason=""')] == 2
    refused = f'{place("{}", first_zone)},outcome="refused",reason="InsufficientInstanceCapacity"'
    assert now[label("caa_launch_attempts_total", refused)] == 1
    assert now['caa_cloud_calls_total{api="launch",outcome="ok",provider="aws"}'] == 2
    assert now['caa_cloud_calls_total{api="launch",outcome="refused",provider="aws"}'] == 1
    assert now['caa_cloud_calls_total{api="terminate",outcome="ok",provider="aws"}'] == 1
    assert now['caa_offerings_unavailable{provider="aws"}'] == 1
    assert now['caa_limiter_waiting{api="launch",provider="aws"}'] == 0
    assert now["caa_configuration_generation"] == 1
    assert now["caa_ready"] == 1
    assert sandbox_id not in text


def label(name: str, labels: str) -> str:
    """As the library writes it: labels by their names."""
    return f"{name}{{{','.join(sorted(labels.split(',')))}}}"
