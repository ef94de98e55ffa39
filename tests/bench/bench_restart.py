"""`caa serve` comes back to a node with 1,000 running sandboxes: how soon it is ready, and that nobody notices.

`python -m tests.bench.bench_restart [--count N]` prints one JSON object a line and ends with 1 when a bound is broken.

Ledger, instances and proxy are filled as a service that ran before would have left them: rows through the ledger's own
writes, instances through the provider, sockets through the proxy's control. The guests are not there, for a restart
asks none of them anything. The sandboxes are of the REST door, which nobody need be connected to.

What EC2 takes to list the instances is not the service's doing; it is measured in the same run, and the bound is that
and 3 s.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from caa.agentproxy.control import ProxyControl
from caa.agentproxy.spawn import ensure_proxy
from caa.clock import SystemClock
from caa.guestconfig import APF_PATH, GuestFile, TlsProfile, apf_json, cloud_config
from caa.ledger import Ledger, open_ledger, upgrade
from caa.pki import NodeKeys
from caa.sandbox import (
    Attempt,
    AttemptState,
    Door,
    Sandbox,
    SandboxState,
    attempt_token,
    instance_name,
    launch_request,
)
from providers.aws.provider import AwsProvider, create
from providers.aws.tags import filters_of
from providers.base import Instance, Offering, OwnerScope
from tests.bench.account import allow_files, emulated_account
from tests.bench.report import Report, cpu_seconds, peak_rss, waited_seconds
from tests.clouds.aws.account import Account, instances_of
from tests.clouds.podworld import CLUSTER, NODE, TYPE, service_directory, service_environ
from tests.lab.service import READY_SECONDS, ServiceProcess, accepts, new_id, pod_annotations

# What is promised.
OWN_SECONDS = 3.0
LIST_CALLS = 5

ROUNDS = 3
# Rounds are five seconds apart; the emulator is slow to list a thousand.
ROUNDS_SECONDS = 120.0
# boto's clients take threads; the emulator does one thing at a time.
THREADS = 4


def seed(account: Account, service: ServiceProcess, count: int) -> None:
    """Make what a service with `count` running sandboxes leaves when it is killed."""
    service.state_dir.mkdir(mode=0o700, parents=True)
    keys = NodeKeys(service.state_dir / "tls", SystemClock())
    url = f"sqlite:///{service.state_dir / 'ledger.db'}"
    upgrade(url)
    ledger = open_ledger(url)
    provider = create(service.environ)
    try:
        zones = account.seed.zones
        rows = [_intended(ledger, keys, service, number, zones[number % len(zones)]) for number in range(count)]
        with ThreadPoolExecutor(THREADS) as pool:
            instances = list(pool.map(lambda row: _launched(provider, *row), rows))
        for (sandbox, attempt), instance in zip(rows, instances, strict=True):
            _running(ledger, sandbox, attempt, instance)
    finally:
        provider.close()
        ledger.close()
    asyncio.run(_fill_proxy(service, keys, rows))


def _intended(
    ledger: Ledger, keys: NodeKeys, service: ServiceProcess, number: int, zone: str
) -> tuple[Sandbox, Attempt]:
    """A sandbox that is starting, and its attempt."""
    now = datetime.now(UTC)
    sandbox_id, pod = new_id(), f"web-{number}"
    created = Sandbox(
        id=sandbox_id,
        cluster=CLUSTER,
        node=NODE,
        pod_namespace="default",
        pod_name=pod,
        door=Door.REST,
        annotations=pod_annotations(pod),
        netns_path="",
        socket_path=str(service.run_dir / "pods" / sandbox_id / "agent.ttrpc"),
        state=SandboxState.CREATED,
        created_at=now,
        changed_at=now,
    )
    added = ledger.add_sandbox(created)
    sandbox = ledger.save_sandbox(dataclasses.replace(added, state=SandboxState.STARTING))
    name = instance_name(pod, sandbox_id, 1)
    document = apf_json(
        pod_namespace="default",
        pod_name=pod,
        identity=keys.issue(name),
        client_ca=keys.client_certificate,
        tls=TlsProfile(),
    )
    attempt = Attempt(
        sandbox_id=sandbox_id,
        number=1,
        name=name,
        token=attempt_token(CLUSTER, sandbox_id, 1),
        offering=Offering(TYPE, zone, 2, 8192),
        image="",
        user_data=cloud_config([GuestFile(APF_PATH, document)]),
        state=AttemptState.INTENDED,
        created_at=now,
    )
    return sandbox, ledger.add_attempt(attempt, sandbox_version=sandbox.version)


def _launched(provider: AwsProvider, sandbox: Sandbox, attempt: Attempt) -> Instance:
    return provider.launch(launch_request(sandbox, attempt))


def _running(ledger: Ledger, sandbox: Sandbox, attempt: Attempt, instance: Instance) -> None:
    accepted = dataclasses.replace(
        attempt, state=AttemptState.ACCEPTED, instance_id=instance.id, addresses=instance.addresses
    )
    ledger.save_attempt(accepted)
    ledger.save_sandbox(dataclasses.replace(sandbox, state=SandboxState.RUNNING, changed_at=datetime.now(UTC)))


async def _fill_proxy(service: ServiceProcess, keys: NodeKeys, rows: list[tuple[Sandbox, Attempt]]) -> None:
    await ensure_proxy(service.run_dir, service.state_dir)
    control = ProxyControl(service.run_dir)
    for sandbox, attempt in rows:
        await control.open(
            sandbox.id,
            sandbox.socket_path,
            attempt.name,
            str(keys.ca_file),
            str(keys.client_cert_file),
            str(keys.client_key_file),
        )


def listing_seconds(account: Account) -> float:
    """What a client without the service takes for the service's list of all instances: the median of three."""
    states = ["pending", "running", "stopping", "stopped", "shutting-down"]
    filters = [*filters_of(OwnerScope(CLUSTER, NODE)), {"Name": "instance-state-name", "Values": states}]
    times = []
    for _ in range(3):
        begun = time.monotonic()
        pages = account.ec2.get_paginator("describe_instances").paginate(
            Filters=filters, PaginationConfig={"PageSize": 1000}
        )
        assert sum(len(instances_of(page)) for page in pages)
        times.append(time.monotonic() - begun)
    return statistics.median(times)


def list_pages(counters: dict[str, Any]) -> int:
    """DescribeInstances that were answered with a page; the configuration check makes one that is a dry run."""
    errors: dict[str, int] = counters["errors"]
    refused = sum(number for key, number in errors.items() if key.startswith("DescribeInstances "))
    return int(counters["calls"].get("DescribeInstances", 0)) - refused


def run(account: Account, service: ServiceProcess, count: int, report: Report) -> None:
    """Seed, start, and look for as long as three rounds take."""
    emulator = account.emulator
    begun = time.monotonic()
    seed(account, service, count)
    report.line("seeding", time.monotonic() - begun, "s", sandboxes=count)
    assert emulator.counters()["states"] == {"running": count}
    listing = listing_seconds(account)
    report.line("a list without the service", listing, "s", sandboxes=count)

    before = emulator.counters()
    begun = time.monotonic()
    service.start()
    while not accepts(service.api_socket):
        assert time.monotonic() - begun < READY_SECONDS, service.log_tail()
        time.sleep(0.02)
    doors = time.monotonic() - begun
    service.wait_ready()
    ready = time.monotonic() - begun
    assert service.process is not None
    own, waited = cpu_seconds(service.process.pid), waited_seconds(service.process.pid)
    after = emulator.counters()
    calls = Counter(after["calls"]) - Counter(before["calls"])
    report.line("ready", ready, "s", at_most=listing + OWN_SECONDS, sandboxes=count)
    report.line("ready without what a list takes", ready - listing, "s", at_most=OWN_SECONDS, sandboxes=count)
    # Imports and the check of the configuration come before the doors open, proxy and first round after.
    report.line("doors open", doors, "s", sandboxes=count)
    report.line("processor time until ready", own, "s", waited_for_a_processor=round(waited, 3), sandboxes=count)
    report.line("list calls until ready", list_pages(after) - list_pages(before), at_most=LIST_CALLS, sandboxes=count)
    report.line("API calls until ready", calls.total(), sandboxes=count, calls=dict(sorted(calls.items())))

    _wait_for_lists(account, list_pages(after) + ROUNDS * -(-count // 1000))
    states = Counter(one["state"] for one in service.sandboxes())
    report.line("sandboxes that no longer run", count - states["running"], at_most=0, states=dict(states))
    counters = emulator.counters()
    report.line("instances that no longer run", count - counters["states"].get("running", 0), at_most=0)
    report.line("TerminateInstances calls", counters["calls"].get("TerminateInstances", 0), at_most=0)
    launched = counters["calls"]["RunInstances"] - before["calls"]["RunInstances"]
    # The check of the configuration makes one, which is a dry run.
    report.line("RunInstances calls beyond a dry run", launched - 1, at_most=0)
    proxied = asyncio.run(ProxyControl(service.run_dir).list())
    report.line("sandboxes that the proxy lost", count - len(proxied), at_most=0)
    report.line("peak RSS of caa serve", peak_rss(service.process.pid) / 1e6, "MB", sandboxes=count)


def _wait_for_lists(account: Account, pages: int) -> None:
    """Until so many pages were listed: nobody but reconcile rounds lists on a node where nothing starts."""
    deadline = time.monotonic() + ROUNDS_SECONDS
    while (seen := list_pages(account.emulator.counters())) < pages:
        assert time.monotonic() < deadline, f"{seen} pages were listed within {ROUNDS_SECONDS:g} s, not {pages}"
        time.sleep(0.2)


def main() -> int:
    """Measure and print; returns 1 when a promise is not kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    allow_files(arguments.count)
    report = Report()
    with emulated_account() as account, service_directory() as directory:
        environ = account.emulator.environ() | service_environ(account)
        os.environ.update(environ)  # boto, which seeds the instances, finds the emulator there alone
        service = ServiceProcess(directory, environ)
        try:
            run(account, service, arguments.count, report)
        finally:
            service.shut_down()
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
