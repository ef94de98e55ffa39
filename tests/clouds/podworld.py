"""The AWS path whole, for scenario tests and benches: emulated EC2, its guests, and `caa serve` as real processes.

FakeGuests <- EC2 emulator <- FaultProxy (records and breaks requests) <- caa serve -> caa proxy -> FakeGuests
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx

from caa.api.hypervisor import SERVICE, CreateVMRequest
from caa.ttrpc.client import call_once
from providers.aws.tags import owner_in, tags_of
from providers.base import LaunchRequest, Offering, Owner
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy, Record
from tests.lab.forkserver import ForkedService, ForkServer
from tests.lab.service import ServiceProcess, new_id, pod_annotations, running, running_service

CLUSTER = "emulated"
NODE = "worker"
TYPE = "m6a.large"
# A pattern of the fault proxy: launches, without the dry run of the configuration check.
LAUNCHES = "Action=RunInstances(?!.*DryRun=true)"
# What a burst of starts may wait for its turn at an API that takes two launches a second.
REST_SECONDS = 900.0


def service_environ(account: Account, **keys: str) -> dict[str, str]:
    """The keys of a service on the seeded account, without those of the AWS SDK; `keys` add or replace."""
    seed = account.seed
    return {
        "CLOUD_PROVIDER": "aws",
        "PODVM_AMI_ID": seed.images["x86_64"],
        "PODVM_INSTANCE_TYPE": TYPE,
        "AWS_SUBNET_IDS": ",".join(seed.subnets.values()),
        "AWS_SG_IDS": seed.security_group,
        "SSH_KP_NAME": seed.key_name,
        "DISABLECVM": "true",
        "CAA_CLUSTER_ID": CLUSTER,
        "NODE_NAME": NODE,
        "PEERPODS_LIMIT_PER_NODE": "-1",
        **keys,
    }


@contextlib.contextmanager
def service_directory() -> Iterator[Path]:
    """Short enough that agent sockets can be bound below it."""
    directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def pod_service(account: Account, url: str, **keys: str) -> Iterator[ServiceProcess]:
    """A service that reaches EC2 at `url`, ready; `keys` as in `service_environ`."""
    environ = account.emulator.environ(url) | service_environ(account, **keys)
    with service_directory() as directory, running_service(directory, environ) as service:
        yield service


@contextlib.contextmanager
def forked_service(forks: ForkServer, environ: dict[str, str]) -> Iterator[ServiceProcess]:
    """A service with these keys of its cloud, ready; started quickly."""
    own = {"CAA_CLUSTER_ID": CLUSTER, "NODE_NAME": NODE, "PEERPODS_LIMIT_PER_NODE": "-1"}
    with service_directory() as directory, running(ForkedService(forks, directory, own | environ)) as service:
        yield service


def started(service: ServiceProcess, pod: str = "web", annotations: dict[str, str] | None = None) -> str:
    """The id of a sandbox that runs."""
    sandbox_id = new_id()
    service.create(sandbox_id, pod, annotations)
    service.start_sandbox(sandbox_id)
    return sandbox_id


# What happened at EC2


@dataclass(frozen=True)
class Launch:
    """One RunInstances that arrived, whatever became of it. `at` as `Record.at`."""

    instance_type: str
    zone: str
    market: str
    token: str
    at: float


def launches(account: Account, proxy: FaultProxy) -> list[Launch]:
    """Those that the proxy got so far, dry runs aside, in order of arrival."""
    zones = {subnet: zone for zone, subnet in account.seed.subnets.items()}
    return [_launch(record, zones) for record in proxy.records if _is_launch(record)]


def _is_launch(record: Record) -> bool:
    return record.action == "RunInstances" and b"DryRun=true" not in record.body


def _launch(record: Record, zones: dict[str, str]) -> Launch:
    body = {key: values[0] for key, values in parse_qs(record.body.decode()).items()}
    return Launch(
        instance_type=body["InstanceType"],
        zone=zones[body["NetworkInterface.1.SubnetId"]],
        market=body.get("InstanceMarketOptions.MarketType", "on-demand"),
        token=body["ClientToken"],
        at=record.at,
    )


def alive(account: Account, node: str = "") -> dict[str, str]:
    """Instance id -> sandbox id ("" without one) of the instances of a node, or all, that are not on their way out."""
    gone = ("shutting-down", "terminated")
    found = {}
    for page in account.ec2.get_paginator("describe_instances").paginate():
        for reservation in page["Reservations"]:
            for one in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}
                owner = owner_in(tags)
                if one["State"]["Name"] not in gone and (not node or (owner is not None and owner.node == node)):
                    found[one["InstanceId"]] = owner.sandbox_id if owner else ""
    return found


def owner_tags(cluster: str, node: str, sandbox_id: str) -> list[dict[str, Any]]:
    """TagSpecifications of an instance that this owner made."""
    owner = Owner(cluster, node, sandbox_id, "default", "somebody", 1)
    request = LaunchRequest("podvm-of-somebody", new_id(), owner, Offering(TYPE, "", 2, 8192), b"")
    return [{"ResourceType": "instance", "Tags": tags_of(request, ())}]


def duplicates(counters: dict[str, Any]) -> int:
    """Instances beyond the first of a token, from the emulator's counters. A token stands for one attempt."""
    return sum(len(ids) - 1 for ids in counters["tokens"].values())


def throttled(counters: dict[str, Any]) -> Counter[str]:
    """Refused calls for their number, by action."""
    found: Counter[str] = Counter()
    for key, count in counters["errors"].items():
        action, _, code = key.partition(" ")
        if code == "RequestLimitExceeded":
            found[action] += count
    return found


# Many callers at once


@contextlib.asynccontextmanager
async def callers(service: ServiceProcess, count: int) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client for `count` callers, each with connections of its own, as separate programs have them."""
    # No connection is kept for a second request: the service closes idle ones, maybe just when the request comes.
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    # A unix socket whose queue is full refuses at once, and the client then knocks again.
    transport = httpx.AsyncHTTPTransport(uds=str(service.api_socket), verify=False, limits=limits, retries=5)
    async with httpx.AsyncClient(transport=transport, base_url="http://caa", timeout=REST_SECONDS) as client:
        yield client


@dataclass(frozen=True)
class Burst:
    """Sandboxes created, and then started all at once. `answers` are those of the starts, in order of `ids`."""

    ids: list[str]
    answers: list[httpx.Response]
    create_seconds: float
    start_seconds: float  # until the last answer

    @property
    def statuses(self) -> Counter[int]:
        """Starts by HTTP status."""
        return Counter(answer.status_code for answer in self.answers)

    @property
    def refusal(self) -> str:
        """What one of the starts that failed was told."""
        return next((answer.text for answer in self.answers if not answer.is_success), "")


def start_at_once(services: Collection[ServiceProcess], count: int) -> Burst:
    """Create `count` sandboxes on each service over REST; when all are there, start them all at once."""
    return asyncio.run(_start_at_once(services, count))


async def _start_at_once(services: Iterable[ServiceProcess], count: int) -> Burst:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(callers(service, count)) for service in services]
        made = [(client, new_id()) for client in clients for _ in range(count)]
        begun = time.monotonic()
        created = await asyncio.gather(*(_create(*one) for one in made))
        between = time.monotonic()
        refused = [answer.text for answer in created if not answer.is_success]
        assert not refused, refused[0]
        answers = await asyncio.gather(*(client.post(f"/v1/sandboxes/{one}/start") for client, one in made))
        return Burst([one for _, one in made], answers, between - begun, time.monotonic() - between)


async def _create(client: httpx.AsyncClient, sandbox_id: str) -> httpx.Response:
    annotations = pod_annotations(f"pod-{sandbox_id[:12]}")
    return await client.post("/v1/sandboxes", json={"id": sandbox_id, "annotations": annotations})


def stop_at_once(service: ServiceProcess, ids: Collection[str]) -> None:
    """Ask for the end of all of them over REST; returns when each was answered."""

    async def run() -> list[httpx.Response]:
        async with callers(service, len(ids)) as client:
            return await asyncio.gather(*(client.post(f"/v1/sandboxes/{one}/stop") for one in ids))

    refused = [answer.text for answer in asyncio.run(run()) if not answer.is_success]
    assert not refused, refused[0]


def create_as_shim(service: ServiceProcess, pod: str, annotations: dict[str, str] | None = None) -> str:
    """CreateVM with more annotations than the nine that are always there; the new sandbox's id."""
    sandbox_id = new_id()
    request = CreateVMRequest(
        id=sandbox_id, annotations=pod_annotations(pod) | (annotations or {}), network_namespace_path=""
    )
    asyncio.run(call_once(str(service.hypervisor_socket), SERVICE, "CreateVM", request.encode()))
    return sandbox_id
