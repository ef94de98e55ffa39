"""The emulated EC2 for the fault tests."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from tests.clouds.aws.account import ec2_client, instances_of
from tests.clouds.aws.emulator import AwsEmulator
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy, default_action
from tests.faults.cloud import VMS, EmulatedCloud, Kinds, SeenInstance

TYPE = "m6a.large"
# Only its third offering can be had.
SCARCE_TYPE = "c6a.large"
_TAG = "peerpods.caa/"
# As in EC2 an instance is not there at once, and its agent later still: time for what is asked meanwhile.
PENDING_SECONDS = 0.05
BOOT_SECONDS = 0.25

# What the first start of a process looks up before it can launch.
_LOOKUPS = Counter(DescribeInstanceTypes=1, DescribeInstanceTypeOfferings=1, DescribeSubnets=1, DescribeImages=1)
_START = _LOOKUPS + Counter(RunInstances=1)


class EmulatedAws(EmulatedCloud):
    """One emulator for all nodes."""

    operations: ClassVar = {
        "start": _START,
        "stop": Counter(TerminateInstances=1),
        "supersede": _START + Counter(TerminateInstances=1),
        "fallback": _START + Counter(RunInstances=2),
        "round": Counter(DescribeInstances=1),  # of reconcile, while a sandbox runs
    }
    kinds = Kinds(
        launch="^RunInstances$",
        terminate="^TerminateInstances$",
        list="^DescribeInstances$",
        look_up="^Describe(Images|Subnets|InstanceTypes|InstanceTypeOfferings)$",
    )
    throttled: ClassVar = {
        "status": 503,
        "reply": b"<Response><Errors><Error><Code>RequestLimitExceeded</Code><Message>-</Message></Error></Errors>"
        b"</Response>",
    }

    def __enter__(self) -> EmulatedAws:
        self._emulator = AwsEmulator().__enter__()
        self._ec2: Any = ec2_client(self._emulator.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._ec2.close()
        self._emulator.__exit__(None, None, None)

    def set_up(self) -> None:
        self._emulator.reset()
        self._seed = self._emulator.seed()
        self._emulator.delays(pending=PENDING_SECONDS, boot=BOOT_SECONDS)
        self._emulator.capacity(*({"instance_type": SCARCE_TYPE, "zone": zone} for zone in self._seed.zones[:2]))

    def environ(self, proxy: FaultProxy, *, scarce: bool) -> dict[str, str]:
        return self._emulator.environ(proxy.url) | {
            "CLOUD_PROVIDER": "aws",
            "PODVM_AMI_ID": self._seed.images["x86_64"],
            "PODVM_INSTANCE_TYPE": SCARCE_TYPE if scarce else TYPE,
            "AWS_SUBNET_IDS": ",".join(self._seed.subnets.values()),
            "AWS_SG_IDS": self._seed.security_group,
            "SSH_KP_NAME": self._seed.key_name,
            "DISABLECVM": "true",
        }

    def guests(self, port: int) -> AbstractContextManager[object]:
        return FakeGuests(self._emulator.url, port)

    def proxy(self) -> FaultProxy:
        return FaultProxy(self._emulator.url, action=_name)

    def changes(self, request: str) -> bool:
        return not request.startswith("Describe")

    def instances(self, cluster: str, node: str) -> list[SeenInstance]:
        owner = {"cluster": cluster, "node": node}
        wanted = [{"Name": f"tag:{_TAG}{key}", "Values": [value]} for key, value in owner.items()]
        return [_seen(one) for one in instances_of(self._ec2.describe_instances(Filters=wanted))]

    def duplicates(self) -> list[str]:
        tokens = self._emulator.counters()["tokens"]
        return [f"token {token} stands for {ids}" for token, ids in tokens.items() if len(ids) > 1]

    def left_behind(self, cluster: str, node: str) -> dict[str, list[str]]:
        """Nothing can be: volumes and interfaces are parts of the instance, and end with it."""
        return {}

    def made(self) -> dict[str, int]:
        return {VMS: sum(len(ids) for ids in self._emulator.counters()["tokens"].values())}

    def keeping(self, *kinds: str) -> None:
        raise AssertionError(f"{kinds} are no kinds of what EC2 can leave")

    def no_capacity(self, zones: int) -> None:
        self._emulator.capacity(*({"zone": zone} for zone in self._seed.zones[:zones]))

    def stale(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        self._emulator.staleness(calls=calls, seconds=seconds, terminate=terminate)


def _name(method: str, url: str, body: bytes) -> str:
    """The action, told apart from its dry run, which changes nothing."""
    dry = "DryRun " if re.search(rb"(?:^|&)DryRun=true(?:&|$)", body) else ""
    return dry + default_action(method, url, body)


def _seen(one: dict[str, Any]) -> SeenInstance:
    tags = {tag["Key"]: tag["Value"] for tag in one.get("Tags", [])}
    state = one["State"]["Name"]
    return SeenInstance(
        one["InstanceId"],
        tags.get(_TAG + "sandbox-id", ""),
        tags.get(_TAG + "attempt", ""),
        alive=state not in ("shutting-down", "terminated"),
        running=state == "running",
        ending=state == "shutting-down",
    )
