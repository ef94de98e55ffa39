"""The resources of one resource group, and what VMs do as time goes by.

Written after ARM's published behaviour: names are keys, a PUT of what is there must not change it, a VM's interface,
disk and public address are made with it and end with it, operations end later than their resources are there.
"""

from __future__ import annotations

import ipaddress
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.clouds.azure import catalog
from tests.clouds.azure.conditions import Conditions
from tests.clouds.azure.errors import ArmError, not_found

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP = "pods"
LOCATION = "westeurope"
_USER_DATA_LIMIT = 64 * 1024
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
Resource = dict[str, Any]
# What costs money, by the last but one word of a resource's id in lower case.
COUNTED = {
    "virtualmachines": "vms",
    "networkinterfaces": "interfaces",
    "disks": "disks",
    "publicipaddresses": "public_ips",
}
_GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"


def path_of(service: str, kind: str, name: str) -> str:
    """A resource's id."""
    return f"{_GROUP}/Microsoft.{service}/{kind}/{name}"


NETWORK = path_of("Network", "virtualNetworks", "net")
SUBNET = f"{NETWORK}/subnets/pods"
NSG = path_of("Network", "networkSecurityGroups", "pods")
# Images of another subscription, for which nobody here needs more than to read.
ELSEWHERE = "/subscriptions/99999999-aaaa-bbbb-cccc-dddddddddddd/resourceGroups/shared/providers/Microsoft.Compute"
DEFINITIONS = {
    "x64": (path_of("Compute", "galleries", "g") + "/images/x64", "x64", "ConfidentialVmSupported"),
    "plain": (path_of("Compute", "galleries", "g") + "/images/plain", "x64", "TrustedLaunchSupported"),
    "arm64": (path_of("Compute", "galleries", "g") + "/images/arm64", "Arm64", ""),
    "specialized": (path_of("Compute", "galleries", "g") + "/images/specialized", "x64", "TrustedLaunchSupported"),
    "elsewhere": (f"{ELSEWHERE}/galleries/g/images/arm64", "Arm64", ""),
}


@dataclass
class Life:
    """What ARM does not show of a VM, or only as time goes by."""

    made_at: float
    user_data: str
    failure: tuple[str, str] | None
    hidden_calls: int
    hidden_until: float
    deleted_at: float | None = None
    runs: bool = False  # though its operation failed


@dataclass
class Group:
    """Everything there is. Resources by their id in lower case."""

    conditions: Conditions
    resources: dict[str, Resource] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    bodies: dict[str, Any] = field(default_factory=dict)  # of the PUT that made a VM
    made: dict[str, list[str]] = field(default_factory=dict)  # a VM's name -> its vmIds, ever
    ever: Counter[str] = field(default_factory=Counter)  # of each kind of COUNTED, how many were made
    version: int = 0
    _answering: frozenset[str] = frozenset()
    _free: list[str] = field(
        default_factory=lambda: [str(ip) for ip in list(ipaddress.ip_network("127.50.0.0/20").hosts())[4:]]
    )

    def seed(self) -> None:
        """A network, a security group, and images."""
        subnet = {"name": "pods", "id": SUBNET, "properties": {"addressPrefix": "127.50.0.0/20"}}
        self._add(NETWORK, {"location": LOCATION, "properties": {"subnets": [subnet]}})
        self._add(NSG, {"location": LOCATION, "properties": {"securityRules": []}})
        for name, (path, arch, security) in DEFINITIONS.items():
            state = "Specialized" if name == "specialized" else "Generalized"
            about = {"architecture": arch, "hyperVGeneration": "V2", "osState": state, "osType": "Linux"}
            features = [{"name": "SecurityType", "value": security}] if security else []
            self._add(path, {"location": LOCATION, "properties": about | {"features": features}})
            self._add(f"{path}/versions/1.0.0", {"location": LOCATION, "properties": {}})

    def _add(self, path: str, body: Resource) -> Resource:
        made = {"id": path, "name": path.rpartition("/")[2], "type": _type(path), **body}
        made["properties"] = {"provisioningState": "Succeeded", **made["properties"]}
        self.resources[path.lower()] = made
        if kind := _kind(path):
            self.ever[kind] += 1
        return made

    # Requests

    def get(self, path: str) -> Resource:
        """One resource."""
        found = self.resources.get(path.lower())
        if found is None:
            raise not_found(path)
        return found

    def listed(self, kind: str) -> list[Resource]:
        """All of a kind; what lists do not know yet is left out."""
        prefix = f"{_GROUP}/{kind}/".lower()
        found = [one for path, one in self.resources.items() if path.startswith(prefix)]
        return [one for one in found if not self._hidden(one["id"].lower())]

    def _hidden(self, key: str) -> bool:
        life = self.lives.get(key)
        if life is None:
            return False
        hidden = life.hidden_calls > 0 or self.conditions.clock.now() < life.hidden_until
        life.hidden_calls = max(0, life.hidden_calls - 1)
        return hidden

    def put_vm(self, path: str, body: Resource) -> tuple[int, Resource]:
        """Make a VM, or find it as it is."""
        key, name = path.lower(), path.rpartition("/")[2]
        before = self.resources.get(key)
        if before is not None:
            if self.lives[key].deleted_at is not None:
                raise ArmError(409, "OperationNotAllowed", f"The VM '{name}' is being deleted.")
            if self.bodies[key] != body:
                raise ArmError(409, "PropertyChangeNotAllowed", "Changing property is not allowed.")
            return 200, before
        about, size, zone, market = self._checked(body)
        if not self.conditions.take(self.conditions.capacity, size, zone, market):
            raise ArmError(
                409,
                "SkuNotAvailable",
                f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is "
                f"currently not available in location '{LOCATION}'.",
            )
        self._check_quota(size, market)
        fails = not self.conditions.take(self.conditions.failing, size, zone, market)
        code = "ZonalAllocationFailed" if zone else "AllocationFailed"
        text = f"Allocation failed. We do not have sufficient capacity for the requested VM size {size}."
        failure = (code, text) if fails else None
        return 201, self._make(path, body, about, failure)

    def _checked(self, body: Resource) -> tuple[Resource, str, str, str]:
        about = body["properties"]
        size, zone = about["hardwareProfile"]["vmSize"], (body.get("zones") or [""])[0]
        if size not in catalog.SIZES:
            raise ArmError(400, "InvalidParameter", f"The value '{size}' provided for the VM size is not valid.")
        image = about["storageProfile"]["imageReference"]["id"]
        if image.lower() not in self.resources:
            raise ArmError(404, "GalleryImageNotFound", f"The gallery image {image} is not available in {LOCATION}.")
        card = about["networkProfile"]["networkInterfaceConfigurations"][0]
        subnet = card["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"]
        if subnet.lower() != SUBNET.lower():
            raise ArmError(400, "InvalidResourceReference", f"Resource {subnet} was not found.")
        if len(about.get("userData", "")) > _USER_DATA_LIMIT:
            raise ArmError(400, "InvalidParameter", "User data is limited to 64 KB.")
        secure = about.get("securityProfile", {}).get("securityType") == "ConfidentialVM"
        if secure and not catalog.SIZES[size][5]:
            raise ArmError(400, "BadRequest", f"The VM size '{size}' is not supported for a confidential VM.")
        definition = self.resources[image.lower().partition("/versions/")[0]]
        if definition["properties"]["osState"] == "Specialized":
            if "osProfile" in about:
                raise ArmError(400, "InvalidParameter", "Parameter 'osProfile' is not allowed.")
        elif not about["osProfile"]["linuxConfiguration"]["ssh"]["publicKeys"][0]["keyData"].startswith("ssh-rsa "):
            raise ArmError(400, "InvalidParameter", "The SSH key is not valid.")
        return about, size, zone, "spot" if about.get("priority") == "Spot" else "on-demand"

    def _check_quota(self, size: str, market: str) -> None:
        for name, used in self.usages(size, market).items():
            limit = self.conditions.quota.get(name)
            if limit is not None and used + catalog.vcpus(size) > limit:
                raise ArmError(
                    409,
                    "OperationNotAllowed",
                    f"Operation could not be completed as it results in exceeding approved {name} Cores quota. Current "
                    f"Limit: {limit}, Current Usage: {used}.",
                )

    def usages(self, size: str, market: str) -> dict[str, int]:
        """vCPUs in use, by each quota that a VM of this kind counts in."""
        names = ["lowPriorityCores"] if market == "spot" else ["cores", catalog.SIZES[size][0]]
        return {name: self.used(name) for name in names}

    def used(self, quota: str) -> int:
        """vCPUs in use of a quota."""
        total = 0
        for key in self.lives:
            about = self.resources[key]["properties"]
            size, spot = about["hardwareProfile"]["vmSize"], about.get("priority") == "Spot"
            in_it = spot if quota == "lowPriorityCores" else not spot and quota in ("cores", catalog.SIZES[size][0])
            total += catalog.vcpus(size) if in_it else 0
        return total

    def _make(self, path: str, body: Resource, about: Resource, failure: tuple[str, str] | None) -> Resource:
        key, name = path.lower(), path.rpartition("/")[2]
        now, stale = self.conditions.clock.now(), self.conditions.staleness
        shown = {one: value for one, value in about.items() if one not in ("userData", "networkProfile")}
        card = about["networkProfile"]["networkInterfaceConfigurations"][0]
        card_id = path_of("Network", "networkInterfaces", card["name"])
        vm = self._add(
            path,
            {
                "location": body["location"],
                "tags": body.get("tags", {}),
                **({"zones": body["zones"]} if "zones" in body else {}),
                "properties": {
                    **shown,
                    "vmId": str(uuid.uuid4()),
                    "provisioningState": "Creating",
                    "timeCreated": (_EPOCH + timedelta(seconds=now)).isoformat(),
                    "networkProfile": {
                        "networkInterfaces": [
                            {"id": card_id, "properties": {"primary": True, **_option(card["properties"])}}
                        ]
                    },
                },
            },
        )
        self.lives[key] = Life(now, about.get("userData", ""), failure, stale.calls, now + stale.seconds)
        self.bodies[key] = body
        self.made.setdefault(name, []).append(vm["properties"]["vmId"])
        self._make_card(card_id, card, vm)
        disk = path_of("Compute", "disks", about["storageProfile"]["osDisk"]["name"])
        about = {"diskState": "Attached", "osType": "Linux", "creationData": {"createOption": "FromImage"}}
        self._add(disk, {"location": LOCATION, "tags": body.get("tags", {}), "managedBy": path, "properties": about})
        return vm

    def _make_card(self, card_id: str, card: Resource, vm: Resource) -> None:
        address: Resource = {"privateIPAddress": self._free.pop(0), "subnet": {"id": SUBNET}, "primary": True}
        asked = card["properties"]["ipConfigurations"][0]["properties"].get("publicIPAddressConfiguration")
        if asked:
            public = path_of("Network", "publicIPAddresses", asked["name"])
            shown = address["privateIPAddress"].replace("127.50.", "127.51.")
            about = {"ipAddress": shown, "ipConfiguration": {"id": f"{card_id}/ipConfigurations/primary"}}
            about["publicIPAllocationMethod"] = asked["properties"]["publicIPAllocationMethod"]
            about |= _option(asked.get("properties", {}))
            self._add(public, {"location": LOCATION, "tags": asked.get("tags", {}), "properties": about})
            address["publicIPAddress"] = {"id": public}
        properties: Resource = {
            "ipConfigurations": [
                {"id": f"{card_id}/ipConfigurations/primary", "name": "primary", "properties": address}
            ],
            "primary": True,
            "macAddress": "00-0D-3A-00-00-01",
            "virtualMachine": {"id": vm["id"]},
        }
        if "networkSecurityGroup" in card["properties"]:
            properties["networkSecurityGroup"] = card["properties"]["networkSecurityGroup"]
        self._add(card_id, {"location": LOCATION, "tags": card.get("tags", {}), "properties": properties})

    def delete(self, path: str) -> int:
        """Begin the end of a resource; 204 when there is none."""
        key = path.lower()
        found = self.resources.get(key)
        if found is None or (self.conditions.staleness.terminate and self._hidden(key)):
            return 204
        if key in self.lives:
            life = self.lives[key]
            if life.deleted_at is None:
                life.deleted_at = self.conditions.clock.now()
                found["properties"]["provisioningState"] = "Deleting"
            return 202
        if found.get("managedBy") or found["properties"].get("virtualMachine"):
            raise ArmError(400, "NicInUse", f"{path} is in use by a VM.")
        self._remove(key)
        return 202

    def _remove(self, key: str) -> None:
        gone = self.resources.pop(key)
        for one in gone.get("properties", {}).get("ipConfigurations") or []:
            self._free.append(one["properties"]["privateIPAddress"])

    def view(self, path: str) -> Resource:
        """A VM's instance view."""
        vm = self.get(path)
        state, life = vm["properties"]["provisioningState"], self.lives[path.lower()]
        power = {"code": "PowerState/running", "level": "Info", "displayStatus": "VM running"}
        if state == "Failed" and life.failure:
            code, message = life.failure
            failed = {"code": f"ProvisioningState/failed/{code}", "level": "Error", "message": message}
            return {"statuses": [failed, power] if life.runs else [failed]}
        return {"statuses": [{"code": f"ProvisioningState/{state.lower()}", "level": "Info"}, power]}

    # VMs as time goes by

    def settle(self) -> None:
        """Bring every VM to what it is now. Before every look and after every change."""
        now, delays = self.conditions.clock.now(), self.conditions.delays
        for key in list(self.lives):
            life, vm = self.lives[key], self.resources[key]
            if life.deleted_at is not None:
                if now - life.deleted_at >= delays.shutting_down:
                    self._forget(key)
            elif vm["properties"]["provisioningState"] == "Creating":
                ready = delays.pending if life.failure else delays.pending + delays.boot + self.conditions.guest_ready
                if now - life.made_at >= ready:
                    vm["properties"]["provisioningState"] = "Failed" if life.failure else "Succeeded"
        answering = frozenset(key for key, life in self.lives.items() if self._answers(life, now))
        if answering != self._answering:
            self._answering = answering
            self.version += 1

    def _answers(self, life: Life, now: float) -> bool:
        delays = self.conditions.delays
        return not life.failure and life.deleted_at is None and now - life.made_at >= delays.pending + delays.boot

    def _forget(self, key: str) -> None:
        """A VM is gone, and of its parts those whose option says so. The others are free for another VM."""
        about = self.resources[key]["properties"]
        reference = about["networkProfile"]["networkInterfaces"][0]
        card = reference["id"].lower()
        disk = path_of("Compute", "disks", about["storageProfile"]["osDisk"]["name"]).lower()
        public = self.resources[card]["properties"]["ipConfigurations"][0]["properties"].get("publicIPAddress")
        if self._goes(card, reference["properties"]):
            self._remove(card)
            if public:
                self._detached(public["id"].lower())
        else:
            del self.resources[card]["properties"]["virtualMachine"]
        if self._goes(disk, about["storageProfile"]["osDisk"]):
            self._remove(disk)
        else:
            del self.resources[disk]["managedBy"]
            self.resources[disk]["properties"]["diskState"] = "Unattached"
        self._remove(key)
        del self.lives[key]
        self.bodies.pop(key)

    def _detached(self, key: str) -> None:
        """A public address whose interface is gone."""
        about = self.resources[key]["properties"]
        if self._goes(key, about):
            self._remove(key)
        else:
            del about["ipConfiguration"]

    def _goes(self, key: str, about: Resource) -> bool:
        """Without the option ARM detaches."""
        return about.get("deleteOption") == "Delete" and _kind(key) not in self.conditions.keeping

    def guests(self) -> dict[str, str]:
        """Address, private or public -> id of the VM whose guest answers there now."""
        found = {}
        for key in sorted(self._answering):
            card = self.resources[
                self.resources[key]["properties"]["networkProfile"]["networkInterfaces"][0]["id"].lower()
            ]
            address = card["properties"]["ipConfigurations"][0]["properties"]
            found[address["privateIPAddress"]] = key
            if "publicIPAddress" in address:
                found[self.resources[address["publicIPAddress"]["id"].lower()]["properties"]["ipAddress"]] = key
        return found

    def counters(self) -> dict[str, Any]:
        """How many there are of what costs money, and what was ever made."""
        kinds = Counter(_kind(path) for path in self.resources)
        return {**{kind: kinds[kind] for kind in COUNTED.values()}, "made": self.made}

    def unused(self) -> dict[str, list[Resource]]:
        """Interfaces, disks and addresses whose VM is not there: by kind, each as it is."""
        found: dict[str, list[Resource]] = {kind: [] for kind in COUNTED.values() if kind != "vms"}
        for path, one in self.resources.items():
            kind, about = _kind(path), one.get("properties", {})
            if kind == "public_ips":
                card = (about.get("ipConfiguration") or {}).get("id", "").partition("/ipConfig")[0].lower()
                about = self.resources.get(card, {}).get("properties", {})
            user = one.get("managedBy") or (about.get("virtualMachine") or {}).get("id", "")
            if kind in found and user.lower() not in self.resources:
                found[kind].append(one)
        return found


def _type(path: str) -> str:
    """Namespace and kinds: every other word of what follows "providers"."""
    namespace, *words = path.rpartition("/providers/")[2].split("/")
    return "/".join([namespace, *words[::2]])


def _kind(path: str) -> str:
    """Of what is counted; "" for all else."""
    return COUNTED.get(path.lower().split("/")[-2], "")


def _option(asked: Resource) -> Resource:
    """What becomes of a part when its VM goes, if that was said."""
    return {"deleteOption": asked["deleteOption"]} if "deleteOption" in asked else {}
