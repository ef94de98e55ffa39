"""The IBM Cloud provider: pod VMs as VPC virtual server instances.

Exactly once: the API has no token, but an instance's name is unique in its region. A launch whose name is taken looks
that instance up, and adopts it when this very request made it. What tells that, and whose an instance is, is part of
the create call (see `owner`), so an instance without owner cannot be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from providers.base import (
    ApiClass,
    CapacityError,
    ConfigError,
    Instance,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    Offering,
    OfferingRefusedError,
    Owner,
    OwnerScope,
    Problem,
    ProviderError,
    Rate,
    UnknownOutcomeError,
)
from providers.ibmcloud import checks
from providers.ibmcloud.catalog import Catalog
from providers.ibmcloud.client import PAGE, Vpc
from providers.ibmcloud.errors import NAME_TAKEN, given_up
from providers.ibmcloud.owner import instance_tags, is_of, owner_in, user_tags
from providers.ibmcloud.parameters import USER_DATA_LIMIT, Place, check_place, check_request, instance_prototype
from providers.ibmcloud.place import LABELS, WorkerPlace
from providers.ibmcloud.settings import IbmCloudKeys
from providers.ibmcloud.tagger import Tagger
from providers.keys import read_keys
from providers.remembered import Remembered

# No list of the VPC API is known to lag: a made instance is in the next one. This is for one that was under way.
LAG_SECONDS = 5.0
# IBM Cloud publishes no rates of the VPC API. It says "too many requests" with the time to wait, which is heeded.
LIMITS: Mapping[ApiClass, Rate] = {}
# New profiles appear a few times a year; a changed configuration makes a new provider.
OFFERINGS_SECONDS = 600.0
# One call each; so many are under way in one thread before the next look at who else waits.
TERMINATE_BATCH = 8
# What a card has before it has an address.
_NO_ADDRESS = ("", "0.0.0.0")  # noqa: S104  no address to listen at

_STATES = {
    "pending": InstanceState.PENDING,
    "starting": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "restarting": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
    "deleting": InstanceState.TERMINATING,
    "failed": InstanceState.FAILED,
}


def create(environ: Mapping[str, str]) -> IbmCloudProvider:
    """Build the provider from its keys, and the node's labels if they are given. Raises ConfigError.

    Nothing is asked of IBM Cloud yet.
    """
    labels = {label: environ[label] for label in LABELS if environ.get(label)}
    return IbmCloudProvider(read_keys(IbmCloudKeys, environ), labels)


class IbmCloudProvider:
    """One region of one account. Keeps a client and caches."""

    name = "ibmcloud"
    # A list is a page for each 100 instances of the resource group, all nodes together; the address of a new instance
    # comes with the launch mostly, so this only decides how soon its death is seen.
    watch_interval = 2.0
    lag = LAG_SECONDS
    terminate_batch = TERMINATE_BATCH
    limits = LIMITS
    user_data_limit = USER_DATA_LIMIT

    def __init__(
        self,
        keys: IbmCloudKeys,
        labels: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not keys.default_profile:
            text = "is required, or IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST."
            raise ConfigError([Problem("IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME", text)])
        self._keys = keys
        self._clock = clock
        self._place = WorkerPlace(keys, labels or {})
        self._vpc = Vpc(keys, self._place)
        self._catalog = Catalog(self._vpc, keys, self._place)
        self._tagger = Tagger(self._vpc.tag, clock)
        self._offerings = Remembered(self._catalog.offerings, OFFERINGS_SECONDS, clock)

    @property
    def account(self) -> str:
        """The region. Nodes that share a ledger are taken to share the IBM Cloud account."""
        return f"ibmcloud/{self._place.region()}"

    @property
    def default_type(self) -> str:
        """IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME, else the first of the list."""
        return self._keys.default_profile

    @property
    def default_image(self) -> str:
        """IBMCLOUD_PODVM_IMAGE_ID; "" when it has several, of which a launch takes the one for its architecture."""
        return self._keys.image_ids[0] if len(self._keys.image_ids) == 1 else ""

    def image_arch(self, image: str) -> str:
        """As the API has it; asked once for each image. "" for configured images of several architectures."""
        return self._catalog.image(image).arch if image else self._catalog.image_arch()

    def offerings(self) -> Sequence[Offering]:
        """The configured profiles in the zones of the configured subnets."""
        return self._offerings.get()

    def launch(self, request: LaunchRequest) -> Instance:
        """One create call, or another where a dedicated host is full and a group of hosts is configured as well.

        A refusal is told only when no earlier call of the same request came through: the instance of one whose answer
        was lost has the name, or has taken the last of a quota. It is looked up by its name, and adopted.
        """
        check_request(request)
        try:
            return self._launched(request)
        except (InvalidRequestError, OfferingRefusedError) as refusal:
            return self._made_earlier(request, refusal)

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """One call for each 100 instances of the resource group."""
        found: list[Instance] = []
        crns = []
        for one in self._listed(scope):
            owner = owner_in(one, scope)
            if owner:
                found.append(_instance(one, owner))
                crns.append(one["crn"])
        self._tagger.seen(crns, instance_tags(scope, self._keys.tags))
        return found

    def describe(self, instance_id: str) -> Mapping[str, Any]:
        """As the API has it, which never gives user data back."""
        return self._vpc.read("get_instance", {"instance": f"instance {instance_id}"}, id=instance_id)

    def terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        """A call for each; interface and volume go with their instance."""
        failed: dict[str, ProviderError] = {}
        for instance_id in instance_ids:
            try:
                self._vpc.call("delete_instance", {"instance": f"instance {instance_id}"}, id=instance_id)
            except ProviderError as error:
                failed[instance_id] = error
        return failed

    def discard(self, request: LaunchRequest) -> None:
        """Remove a volume or interface of the launch's name that nothing uses."""
        own = set(user_tags(request, ()))
        for one in self._vpc.pages("list_volumes", "volumes", name=request.name, limit=PAGE):
            if own <= set(one.get("user_tags") or ()) and not one.get("volume_attachments"):
                self._remove("delete_volume", one["id"])
        group = self._keys.resource_group_id or None
        listing = self._vpc.pages(
            "list_virtual_network_interfaces", "virtual_network_interfaces", resource_group_id=group, limit=PAGE
        )
        for one in listing:
            if one["name"] == request.name and not one.get("target"):
                self._remove("delete_virtual_network_interfaces", one["id"])

    def check(self) -> list[Problem]:
        """Everything that can be seen to be wrong, all at once, with nothing taken from a cache."""
        return checks.problems(self._vpc, self._keys, Catalog(self._vpc, self._keys, self._place))

    def shortages(self) -> list[Problem]:
        """Nothing: IBM Cloud has no API that tells quotas or what is used of them."""
        return []

    def close(self) -> None:
        """Close the connections."""
        self._tagger.close()
        self._vpc.close()

    def _launched(self, request: LaunchRequest) -> Instance:
        *others, last = self._catalog.targets(request.offering.zone)
        for target in others:
            try:
                return self._asked(request, target)
            except CapacityError:
                continue  # nothing was made, and the name is free still
        return self._asked(request, last)

    def _asked(self, request: LaunchRequest, target: str) -> Instance:
        place = self._at(request, target)
        check_place(place)
        prototype = instance_prototype(request, self._keys, place)
        made, request_id = self._vpc.launch(self._about(request, place), prototype)
        if not made.get("id"):
            raise UnknownOutcomeError(
                "NoAnswer", f"IBM Cloud answered the launch of {request.name!r} without an instance"
            )
        return replace(_instance(made, request.owner), request_id=request_id)

    def _at(self, request: LaunchRequest, target: str) -> Place:
        catalog, offering = self._catalog, request.offering
        profile = catalog.profile(offering.instance_type)
        subnet = catalog.subnet_for(offering.zone, request.token)
        return Place(
            image=catalog.image(request.image) if request.image else catalog.image_for(profile.arch),
            profile=profile,
            subnet=subnet,
            groups=catalog.security_groups(subnet.vpc),
            target=target,
        )

    def _made_earlier(self, request: LaunchRequest, refusal: ProviderError) -> Instance:
        """The instance that an earlier call of this very request made. Raises the refusal if there is none."""
        named = list(self._vpc.pages("list_instances", "instances", name=request.name, limit=PAGE))
        for one in named:
            if is_of(one, request):
                return _instance(one, request.owner)
        if named or refusal.reason != NAME_TAKEN:
            raise refusal
        raise UnknownOutcomeError(
            "NotVisibleYet", f"the name {request.name!r} is in use, and no instance of it is listed yet: {refusal}"
        ) from refusal

    def _listed(self, scope: OwnerScope) -> Iterator[dict[str, Any]]:
        group = self._keys.resource_group_id or None
        about = {"instance": f"resource group of {scope.node}"}
        return self._vpc.pages("list_instances", "instances", about, resource_group_id=group, limit=PAGE)

    def _remove(self, operation: str, one: str) -> None:
        try:
            self._vpc.call(operation, {"instance": one}, id=one)
        except MissingError:
            return

    def _about(self, request: LaunchRequest, place: Place) -> dict[str, str]:
        """What a refusal may name."""
        return {
            "name": request.name,
            "type": request.offering.instance_type,
            "zone": request.offering.zone,
            "image": place.image.id,
            "subnet": place.subnet.id,
            "vpc": self._keys.vpc_id or place.subnet.vpc,
            "groups": ",".join(place.groups) or "(not set)",
            "key": self._keys.ssh_key_id or "(not set)",
            "resource_group": self._keys.resource_group_id or "(not set)",
            "target": place.target or "(not set)",
        }


def _instance(found: Mapping[str, Any], owner: Owner) -> Instance:
    """An instance as lists and the create call tell it."""
    attachment = found.get("primary_network_attachment") or {}
    address = (attachment.get("primary_ip") or {}).get("address", "")
    created = found.get("created_at", "")
    state = _STATES.get(found.get("status", ""), InstanceState.FAILED)
    profile, zone = (found.get("profile") or {}).get("name", ""), (found.get("zone") or {}).get("name", "")
    ended = state in (InstanceState.FAILED, InstanceState.STOPPED)
    return Instance(
        id=found["id"],
        name=found.get("name", ""),
        state=state,
        owner=owner,
        addresses=() if address in _NO_ADDRESS else (address,),
        instance_type=profile,
        zone=zone,
        created_at=datetime.fromisoformat(created) if created else None,
        image=(found.get("image") or {}).get("id", ""),
        refusal=given_up(found.get("status_reasons") or (), {"type": profile, "zone": zone}) if ended else None,
    )
