"""The emulated IBM Cloud for the fault tests."""

from __future__ import annotations

import uuid
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from providers.base import OwnerScope
from providers.ibmcloud.owner import owner_in
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.ibm.emulator import IbmEmulator
from tests.faults.cloud import VMS, EmulatedCloud, Kinds, SeenInstance

TYPE = "bx2-2x8"
# Only its third offering can be had.
SCARCE_TYPE = "cx2-2x4"
# As in IBM Cloud an instance is not there at once, and its agent later still: time for what is asked meanwhile.
PENDING_SECONDS = 0.05
BOOT_SECONDS = 0.25
# Nor is it gone at once: a service that restarts finds it on its way out.
ENDING_SECONDS = 2.0
# What comes with an instance, or could: as it is called here, and in the API. The provider asks for no floating IP.
_PARTS = {"interfaces": "virtual_network_interfaces", "volumes": "volumes", "floating IPs": "floating_ips"}

# What the first start of a process looks up before it can launch.
_LOOKUPS = Counter(GetSubnet=3, ListInstanceProfiles=1, GetImage=1)
_START = _LOOKUPS + Counter(CreateInstance=1)


class EmulatedIbm(EmulatedCloud):
    """One emulator for all nodes."""

    operations: ClassVar = {
        "start": _START,
        "stop": Counter(DeleteInstance=1),
        "supersede": _START + Counter(DeleteInstance=1),
        # A launch that is refused is looked up by its name: an earlier call of it may have come through.
        "fallback": _START + Counter(CreateInstance=2, FindInstances=2),
        "round": Counter(ListInstances=1),  # of reconcile, while a sandbox runs
    }
    kinds = Kinds(
        launch="^CreateInstance$",
        terminate="^DeleteInstance$",
        list="^ListInstances$",
        look_up="^(GetSubnet|GetImage|ListInstanceProfiles|FindInstances|Token)$",
    )
    throttled: ClassVar = {
        "status": 429,
        "reply": b'{"errors":[{"code":"too_many_requests","message":"-"}],"trace":"-"}',
        "content_type": "application/json",
    }

    def __enter__(self) -> EmulatedIbm:
        self._emulator = IbmEmulator().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._emulator.__exit__(None, None, None)

    def set_up(self) -> None:
        self._emulator.reset()
        self._seed = self._emulator.seed()
        self._emulator.delays(pending=PENDING_SECONDS, boot=BOOT_SECONDS, shutting_down=ENDING_SECONDS)
        self._emulator.capacity(*({"instance_type": SCARCE_TYPE, "zone": zone} for zone in self._seed.zones[:2]))

    def environ(self, proxy: FaultProxy, *, scarce: bool) -> dict[str, str]:
        return self._emulator.environ(proxy.url) | {
            "CLOUD_PROVIDER": "ibmcloud",
            "IBMCLOUD_PODVM_IMAGE_ID": self._seed.images["x86_64"],
            "IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME": SCARCE_TYPE if scarce else TYPE,
            "IBMCLOUD_VPC_SUBNET_IDS": ",".join(self._seed.subnets.values()),
            "IBMCLOUD_SECURITY_GROUP_IDS": self._seed.security_group,
            "IBMCLOUD_SSH_KEY_ID": self._seed.key,
            # One for each node, as its own list then is short however many nodes there were before.
            "IBMCLOUD_RESOURCE_GROUP_ID": uuid.uuid4().hex,
        }

    def guests(self, port: int) -> AbstractContextManager[object]:
        return FakeGuests(self._emulator.control_url, port)

    def proxy(self) -> FaultProxy:
        return self._emulator.proxy()

    def changes(self, request: str) -> bool:
        return request in ("CreateInstance", "DeleteInstance")

    def instances(self, cluster: str, node: str) -> list[SeenInstance]:
        scope = OwnerScope(cluster, node)
        owned = [(one, owner_in(one, scope)) for one in self._emulator.overview()["instances"]]
        return [_seen(one, owner.sandbox_id, owner.attempt) for one, owner in owned if owner]

    def duplicates(self) -> list[str]:
        """A name stands for one attempt, whatever became of its first instance."""
        made = self._emulator.overview()["made"]
        return [f"name {name} stands for {ids}" for name, ids in made.items() if len(ids) > 1]

    def left_behind(self, cluster: str, node: str) -> dict[str, list[str]]:
        """Of whichever node: nobody makes such here."""
        unused = self._emulator.overview()["unused"]
        return {ours: unused[theirs] for ours, theirs in _PARTS.items()}

    def made(self) -> dict[str, int]:
        ever = self._emulator.overview()["ever"]
        return {ours: ever.get(theirs, 0) for ours, theirs in {VMS: "instances", **_PARTS}.items()}

    def keeping(self, *kinds: str) -> None:
        self._emulator.keeping(*(_PARTS[kind] for kind in kinds))

    def no_capacity(self, zones: int) -> None:
        self._emulator.capacity(*({"zone": zone} for zone in self._seed.zones[:zones]))

    def stale(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        self._emulator.staleness(calls=calls, seconds=seconds, terminate=terminate)
        # A start here is over before the next list comes, unless its agent takes as long.
        boot = seconds if terminate else BOOT_SECONDS
        self._emulator.delays(pending=PENDING_SECONDS, boot=boot, shutting_down=ENDING_SECONDS)


def _seen(one: dict[str, Any], sandbox_id: str, attempt: int) -> SeenInstance:
    status = one["status"]
    return SeenInstance(
        one["id"],
        sandbox_id,
        str(attempt),
        alive=status != "deleting",
        running=status == "running",
        ending=status == "deleting",
    )
