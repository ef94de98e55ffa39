"""The emulated Azure for the fault tests."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from providers.azure.names import is_of, owner_in
from providers.base import OwnerScope
from tests.clouds.azure.emulator import AzureEmulator
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.faults.cloud import VMS, EmulatedCloud, Kinds, SeenInstance

TYPE = "Standard_D2as_v5"
# Only its third offering can be had.
SCARCE_TYPE = "Standard_F2s_v2"
# As in Azure a VM is not there at once, its agent later still, and the end of ARM's operation last.
PENDING_SECONDS = 0.05
BOOT_SECONDS = 0.25
READY_SECONDS = 1.0
ENDING_SECONDS = 1.0
# What comes with a VM: as it is called here, and by the emulator.
_PARTS = {"interfaces": "interfaces", "disks": "disks", "public addresses": "public_ips"}

# What the first start of a process looks up before it can launch.
_LOOKUPS = Counter(ListSku=1, GetImage=1, GetVersion=1)
# Whether the VM is there is asked first, and the quota; the address comes with the first list. Each VM has a public
# one, for that is one more thing to leave behind.
_LISTS = Counter(ListVirtualMachine=1, ListNetworkInterface=1, ListPublicIPAddress=1)
_START = _LOOKUPS + _LISTS + Counter(GetVirtualMachine=1, ListUsages=1, PutVirtualMachine=1)


class EmulatedAzure(EmulatedCloud):
    """One emulator for all nodes."""

    operations: ClassVar = {
        "start": _START,
        "stop": Counter(DeleteVirtualMachine=1),
        "supersede": _START + Counter(DeleteVirtualMachine=1),
        # A refused PUT is followed by a look: an earlier one of the same request may have come through.
        "fallback": _START + Counter(PutVirtualMachine=2, GetVirtualMachine=4),
        "round": _LISTS,  # of reconcile, while a sandbox runs
    }
    kinds = Kinds(
        launch="^PutVirtualMachine$",
        terminate="^DeleteVirtualMachine$",
        list="^ListVirtualMachine$",
        look_up="^(ListSku|GetImage|GetVersion|ListUsages|GetVirtualMachine|ListNetworkInterface|ListPublicIPAddress)$",
    )
    throttled: ClassVar = {
        "status": 429,
        "reply": b'{"error":{"code":"TooManyRequests","message":"-"}}',
        "content_type": "application/json",
    }

    def __enter__(self) -> EmulatedAzure:
        self._emulator = AzureEmulator().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._emulator.__exit__(None, None, None)

    def set_up(self) -> None:
        self._emulator.reset()
        self._seed = self._emulator.seed()
        self._delays()
        self._emulator.capacity(*({"instance_type": SCARCE_TYPE, "zone": zone} for zone in ("1", "2")))

    def _delays(self, boot: float = BOOT_SECONDS) -> None:
        self._emulator.delays(PENDING_SECONDS, boot, ENDING_SECONDS, READY_SECONDS)

    def environ(self, proxy: FaultProxy, *, scarce: bool) -> dict[str, str]:
        seed = self._seed
        return self._emulator.environ(proxy.url) | {
            "CLOUD_PROVIDER": "azure",
            "AZURE_SUBSCRIPTION_ID": seed.subscription,
            "AZURE_RESOURCE_GROUP": seed.group,
            "AZURE_REGION": seed.region,
            "AZURE_SUBNET_ID": seed.subnet,
            "AZURE_NSG_ID": seed.nsg,
            "AZURE_IMAGE_ID": seed.images["plain"],
            "AZURE_INSTANCE_SIZE": SCARCE_TYPE if scarce else TYPE,
            "AZURE_ZONES": "1,2,3",
            "USE_PUBLIC_IP": "true",
            "DISABLECVM": "true",
        }

    def guests(self, port: int) -> AbstractContextManager[object]:
        return FakeGuests(self._emulator.control_url, port)

    def proxy(self) -> FaultProxy:
        return self._emulator.proxy()

    def changes(self, request: str) -> bool:
        return request in ("PutVirtualMachine", "DeleteVirtualMachine")

    def instances(self, cluster: str, node: str) -> list[SeenInstance]:
        scope = OwnerScope(cluster, node)
        return [_seen(one) for one in self._emulator.overview()["vms"] if is_of(one["tags"], scope)]

    def duplicates(self) -> list[str]:
        """A name stands for one attempt, whatever became of its first VM."""
        made = self._emulator.overview()["made"]
        return [f"name {name} stands for {ids}" for name, ids in made.items() if len(ids) > 1]

    def left_behind(self, cluster: str, node: str) -> dict[str, list[str]]:
        """Those without a whole owner are everybody's."""
        scope, unused = OwnerScope(cluster, node), self._emulator.overview()["unused"]
        return {
            ours: [one["name"] for one in unused[theirs] if is_of(one["tags"], scope) or owner_in(one["tags"]) is None]
            for ours, theirs in _PARTS.items()
        }

    def made(self) -> dict[str, int]:
        ever = self._emulator.overview()["ever"]
        return {ours: ever.get(theirs, 0) for ours, theirs in {VMS: "vms", **_PARTS}.items()}

    def keeping(self, *kinds: str) -> None:
        self._emulator.keeping(*(_PARTS[kind] for kind in kinds))

    def no_capacity(self, zones: int) -> None:
        self._emulator.capacity(*({"zone": str(zone)} for zone in range(1, zones + 1)))

    def stale(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        self._emulator.staleness(calls=calls, seconds=seconds, terminate=terminate)
        # A start here is over before the next list comes, unless its agent takes as long.
        self._delays(seconds if terminate else BOOT_SECONDS)


def _seen(one: dict[str, Any]) -> SeenInstance:
    owner = owner_in(one["tags"])
    deleting = one["properties"]["provisioningState"] == "Deleting"
    return SeenInstance(
        one["id"],
        owner.sandbox_id if owner else "",
        str(owner.attempt) if owner else "",
        alive=not deleting,
        # ARM calls it created when the guest said that it is ready; it runs long before.
        running=one["properties"]["provisioningState"] in ("Creating", "Succeeded"),
        ending=deleting,
    )
