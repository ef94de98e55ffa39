"""The Azure provider: pod VMs as virtual machines.

Exactly once: a VM's name is the key, and every part of it is named after it and written in the same PUT. A launch looks
first whether the VM is there, for a PUT of what is there would be refused as soon as one word of it differs. Owner tags
are part of the PUT, so a VM without owner cannot be.

Nobody waits for ARM's operation: it ends when the guest told Azure that it is ready, which is long after the agent in
it answers. The interface with its address is there within seconds, and what became of the operation stands in the VM.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from providers.azure import checks
from providers.azure.catalog import Catalog
from providers.azure.client import Arm
from providers.azure.errors import refusal_of
from providers.azure.names import REQUEST, Names, is_of, name_in, owner_in, parts_of
from providers.azure.parameters import USER_DATA_LIMIT, check_user_data, virtual_machine
from providers.azure.settings import AzureKeys
from providers.base import (
    ApiClass,
    Instance,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    Offering,
    OfferingRefusedError,
    OwnerScope,
    Problem,
    ProviderError,
    Rate,
    ThrottledError,
)
from providers.keys import read_keys
from providers.remembered import Remembered

log = logging.getLogger(__name__)

# BOSH and others saw lists without what was just made, for seconds; nobody gives a bound. As on EC2.
LAG_SECONDS = 30.0
# Microsoft's compute throttling page: of a subscription in a region 1500 PUTs and DELETEs of VMs at once, and 500 more
# each minute. (Another bucket is each VM's own, 12 at once and 4 a minute, which one launch never meets first.)
LIMITS: Mapping[ApiClass, Rate] = {
    ApiClass.LAUNCH: Rate(1500, 500 / 60),
    ApiClass.TERMINATE: Rate(1500, 500 / 60),
}
# Sizes and zones change a few times a year, restrictions of a subscription rather less often.
OFFERINGS_SECONDS = 600.0
# One call each; so many are under way in one thread before the next look at who else waits.
TERMINATE_BATCH = 8
# Azure takes RSA keys of 2048 bits and more.
_KEY_BITS = 2048
# After these the VM runs: its guest never told Azure that it is ready, as a pod VM need not.
_RUNS_ALL_THE_SAME = ("OSProvisioningTimedOut", "OSProvisioningClientError", "OSProvisioningInternalError")

_STATES = {
    "creating": InstanceState.PENDING,
    "updating": InstanceState.RUNNING,
    "succeeded": InstanceState.RUNNING,
    "deleting": InstanceState.TERMINATING,
    "failed": InstanceState.FAILED,
    "canceled": InstanceState.FAILED,
}


def create(environ: Mapping[str, str]) -> AzureProvider:
    """Build the provider from its keys. Raises ConfigError. Nothing is asked of Azure yet."""
    return AzureProvider(read_keys(AzureKeys, environ))


class AzureProvider:
    """One region of one subscription. Keeps clients and caches."""

    name = "azure"
    # A list is one call for each 100 VMs of the resource group; ARM's own pollers look as often, and Karpenter's.
    watch_interval = 3.0
    lag = LAG_SECONDS
    terminate_batch = TERMINATE_BATCH
    limits = LIMITS
    user_data_limit = USER_DATA_LIMIT

    def __init__(self, keys: AzureKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._arm = Arm(keys)
        self._catalog = Catalog(self._arm, keys, clock)
        self._lock = threading.Lock()
        self._offerings = Remembered(self._catalog.offerings, OFFERINGS_SECONDS, clock)
        self._ssh_key = ""

    @property
    def account(self) -> str:
        """The subscription's part in the region."""
        return f"azure/{self._keys.subscription_id.lower()}/{self._keys.region}"

    @property
    def default_type(self) -> str:
        """AZURE_INSTANCE_SIZE."""
        return self._keys.size

    @property
    def default_image(self) -> str:
        """AZURE_IMAGE_ID."""
        return self._keys.image_id

    def image_arch(self, image: str) -> str:
        """As its gallery has it; asked once for each image."""
        return self._catalog.image(image or self._keys.image_id).arch

    def offerings(self) -> Sequence[Offering]:
        """The configured sizes in the configured zones and markets."""
        return self._offerings.get()

    def launch(self, request: LaunchRequest) -> Instance:
        """A GET, and where there is no such VM one PUT; the VM is returned as soon as ARM accepted it.

        A refusal is told only when no earlier call of the same request came through. The quota is looked at before:
        ARM would refuse the PUT, but count it.
        """
        check_user_data(request)
        made = self._made_earlier(request)
        if made is not None:
            return made
        keys = self._keys
        self._catalog.check_quota(request.offering)
        body = virtual_machine(request, keys, self._catalog.image(request.image or keys.image_id), self._any_key())
        try:
            call = ("virtual_machines", "create_or_update", keys.resource_group, request.name, body)
            vm, _, request_id = self._arm.begin(*call, about=self._about(request))
        except (InvalidRequestError, OfferingRefusedError):
            # Somebody's earlier PUT of the same name came through between the two calls.
            made = self._made_earlier(request)
            if made is None:
                raise
            return made
        return replace(self._instance(vm, {}, {}), request_id=request_id)

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """Lists of the resource group's VMs and interfaces, joined; of a VM that failed also why."""
        group = self._keys.resource_group
        vms = [
            vm for vm in self._arm.listed("compute", "virtual_machines", group) if is_of(vm.get("tags") or {}, scope)
        ]
        if not vms:
            return []
        cards = {
            card["name"]: card
            for card in self._arm.listed("network", "network_interfaces", group)
            if is_of(card.get("tags") or {}, scope)
        }
        public = {}
        if self._keys.use_public_ip:
            public = {
                one["id"].lower(): str(one.get("properties", {}).get("ipAddress") or "")
                for one in self._arm.listed("network", "public_ip_addresses", group)
            }
        return [self._settled(self._instance(vm, cards.get(Names(vm["name"]).interface, {}), public), vm) for vm in vms]

    def describe(self, instance_id: str) -> Mapping[str, Any]:
        """The VM as ARM has it, its interface in the place of the reference to it."""
        name = name_in(instance_id)
        vm = self._arm.get(
            "compute", "virtual_machines", self._keys.resource_group, name, about={"instance": instance_id}
        )
        vm.get("properties", {}).pop("userData", None)
        try:
            card = self._arm.get("network", "network_interfaces", self._keys.resource_group, Names(name).interface)
        except MissingError:
            return vm
        vm["properties"].setdefault("networkProfile", {})["networkInterfaces"] = [card]
        return vm

    def terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        """One DELETE each; disk, interface and address go with the VM.

        Only lists lag: what ARM accepted it knows by its id. A VM that it does not know is gone, and that is success.
        """
        failed: dict[str, ProviderError] = {}
        for instance_id in instance_ids:
            try:
                self._delete(name_in(instance_id))
            except MissingError:
                continue
            except ThrottledError as error:
                # The others would be refused as well, and asking makes the penalty longer.
                return failed | dict.fromkeys(instance_ids[instance_ids.index(instance_id) :], error)
            except ProviderError as error:
                failed[instance_id] = error
        return failed

    def _delete(self, name: str) -> None:
        about = {"instance": f"VM {name}", "name": name}
        group = self._keys.resource_group
        _, status, _ = self._arm.begin("virtual_machines", "delete", group, name, about=about)
        if status == 204:
            raise MissingError("InstanceMissing", f"there is no VM {name} in the resource group {group}")

    def discard(self, request: LaunchRequest) -> None:
        """By computed names, for what no list shows may be there all the same. The VM first, which holds the others."""
        names, group = Names(request.name), self._keys.resource_group
        try:
            self._delete(names.vm)
        except MissingError:
            self._arm.delete_network("network_interfaces", names.interface)
            if self._keys.use_public_ip:
                self._arm.delete_network("public_ip_addresses", names.public_ip)
            self._arm.begin("disks", "delete", group, names.disk, about={"name": names.disk})

    def check(self) -> list[Problem]:
        """Everything that can be seen to be wrong, all at once, with nothing taken from a cache."""
        return checks.problems(self._arm, self._keys, Catalog(self._arm, self._keys, self._clock))

    def shortages(self) -> list[Problem]:
        """vCPU quotas of the region, of the families of all configured sizes, and of spot VMs."""
        return checks.shortages(self._keys, Catalog(self._arm, self._keys, self._clock))

    def close(self) -> None:
        """Close the connections."""
        self._arm.close()

    def _made_earlier(self, request: LaunchRequest) -> Instance | None:
        """The VM that an earlier call of this very request made. Raises InvalidRequestError for another one's."""
        about = self._about(request)
        try:
            vm = self._arm.get("compute", "virtual_machines", self._keys.resource_group, request.name, about=about)
        except MissingError:
            return None
        if (vm.get("tags") or {}).get(REQUEST) != request.digest:
            text = f"the name {request.name} is in use already, by a VM that is not of this request"
            raise InvalidRequestError("NameTaken", text)
        return self._settled(self._instance(vm, {}, {}), vm)

    def _settled(self, instance: Instance, vm: Mapping[str, Any]) -> Instance:
        """What a failed VM really is: one that runs, or one that Azure gave up on, and why."""
        if instance.state is not InstanceState.FAILED:
            return instance
        try:
            view = self._arm.get(
                "compute", "virtual_machines", self._keys.resource_group, instance.name, operation="instance_view"
            )
        except MissingError:
            return replace(instance, state=InstanceState.TERMINATING)
        statuses = view.get("statuses") or []
        codes = {str(one.get("code", "")): str(one.get("message", "")) for one in statuses}
        why = next((code for code in codes if code.startswith("ProvisioningState/failed")), "")
        code = why.rpartition("/")[2]
        if code in _RUNS_ALL_THE_SAME and "PowerState/running" in codes:
            return replace(instance, state=InstanceState.RUNNING)
        about = {
            "type": instance.instance_type,
            "zone": instance.zone or "(any)",
            "region": self._keys.region,
            "market": "spot" if vm.get("properties", {}).get("priority") == "Spot" else "on-demand",
            "subnet": self._keys.subnet_id,
        }
        return replace(instance, refusal=refusal_of(code, codes.get(why, ""), about))

    def _about(self, request: LaunchRequest) -> dict[str, str]:
        """What a refusal may name."""
        return {
            "name": request.name,
            "instance": f"VM {request.name}",
            "type": request.offering.instance_type,
            "zone": request.offering.zone or "(any)",
            "market": request.offering.market.value,
            "image": request.image or self._keys.image_id,
        }

    def _any_key(self) -> str:
        """A public key, which Azure asks for. Nobody has its private half."""
        with self._lock:
            if not self._ssh_key:
                private = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
                kind = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
                self._ssh_key = private.public_key().public_bytes(*kind).decode()
            return self._ssh_key

    def _instance(self, vm: Mapping[str, Any], card: Mapping[str, Any], public: Mapping[str, str]) -> Instance:
        """With public addresses only those are given, as soon as there are any: the private ones cannot be reached."""
        about: Mapping[str, Any] = vm.get("properties") or {}
        private, shown = _addresses(card, public)
        security = card.get("properties", {}).get("networkSecurityGroup") or {}
        return Instance(
            id=_canonical(vm["id"]),
            name=vm["name"],
            state=_STATES.get(str(about.get("provisioningState", "creating")).lower(), InstanceState.PENDING),
            owner=owner_in(vm.get("tags") or {}),
            addresses=shown if self._keys.use_public_ip else private,
            instance_type=about.get("hardwareProfile", {}).get("vmSize", ""),
            zone=(vm.get("zones") or [""])[0],
            created_at=_time(about.get("timeCreated")),
            image=_image(about.get("storageProfile", {}).get("imageReference") or {}),
            groups=(security["id"],) if security.get("id") else (),
            public_addresses=shown,
        )


def _addresses(card: Mapping[str, Any], public: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Private and public ones."""
    configured = [one.get("properties", {}) for one in card.get("properties", {}).get("ipConfigurations") or []]
    private = [one.get("privateIPAddress", "") for one in configured]
    shown = [public.get(str((one.get("publicIPAddress") or {}).get("id", "")).lower(), "") for one in configured]
    return tuple(filter(None, private)), tuple(filter(None, shown))


def _canonical(resource_id: str) -> str:
    """ARM writes the resource group's name now in this case, now in that; the id must be one."""
    parts = parts_of(resource_id)
    return (
        f"/subscriptions/{parts['subscriptions'].lower()}/resourceGroups/{parts['resourcegroups'].lower()}"
        f"/providers/Microsoft.Compute/virtualMachines/{parts['virtualmachines']}"
    )


def _image(reference: Mapping[str, str]) -> str:
    kinds = ("id", "communityGalleryImageId", "sharedGalleryImageId")
    return next((reference[kind] for kind in kinds if reference.get(kind)), "")


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
