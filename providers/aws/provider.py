"""The AWS provider: pod VMs as EC2 instances.

Exactly once: RunInstances carries the launch's token, and a subnet, which makes the token count in that one zone; the
attempt's zone never changes. EC2 answers a repeat with the instance it made before. Owner tags are part of the same
call, so an instance without owner cannot be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from providers.aws import checks, quotas
from providers.aws.catalog import Catalog
from providers.aws.client import Ec2
from providers.aws.metadata import WorkerMetadata
from providers.aws.parameters import USER_DATA_LIMIT, Place, check_user_data, run_instances
from providers.aws.settings import AwsKeys
from providers.aws.tags import REQUEST, filters_of, owner_in
from providers.base import (
    ApiClass,
    Instance,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    MissingError,
    Offering,
    OwnerScope,
    Problem,
    ProviderError,
    Rate,
    UnknownOutcomeError,
)
from providers.keys import read_keys
from providers.remembered import Remembered

# EC2's answers lag behind its launches, mostly by less than a second. AWS gives no bound; after this long others who
# list instances by tag take absence for truth.
LAG_SECONDS = 30.0
# Request limits of one account in one region, as AWS's throttling page has them. (Another bucket counts instances: 1000
# at once and 2 a second, which one instance for each call never meets first.)
LIMITS: Mapping[ApiClass, Rate] = {
    ApiClass.LAUNCH: Rate(5, 2),
    ApiClass.TERMINATE: Rate(100, 5),
    ApiClass.LIST: Rate(100, 20),
}
# New types and zones appear a few times a year; a changed configuration makes a new provider.
OFFERINGS_SECONDS = 600.0
# The most that one page may have.
PAGE = 1000
# EC2 takes up to 1000 ids, and recommends fewer; others who send crowds of them stay at this.
TERMINATE_BATCH = 500

_STATES = {
    "pending": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "stopping": InstanceState.STOPPED,
    "stopped": InstanceState.STOPPED,
    "shutting-down": InstanceState.TERMINATING,
    "terminated": InstanceState.TERMINATING,
}
# EC2 lists a terminated instance for about an hour more, though nothing of it exists.
_EXISTING = [state for state in _STATES if state != "terminated"]


def create(environ: Mapping[str, str]) -> AwsProvider:
    """Build the provider from its keys. Raises ConfigError. Nothing is asked of AWS yet."""
    return AwsProvider(read_keys(AwsKeys, environ))


class AwsProvider:
    """One region of one account. Keeps a client and caches."""

    name = "aws"
    # DescribeInstances is limited to 20 calls a second for the whole account and region, all nodes together. A new
    # instance's private address comes with the launch itself, so this only decides how soon its death is seen.
    watch_interval = 2.0
    lag = LAG_SECONDS
    terminate_batch = TERMINATE_BATCH
    limits = LIMITS
    user_data_limit = USER_DATA_LIMIT

    def __init__(self, keys: AwsKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._worker = WorkerMetadata(keys)
        self._ec2 = Ec2(keys, self._worker)
        self._catalog = Catalog(self._ec2, keys, self._worker)
        self._offerings = Remembered(self._catalog.offerings, OFFERINGS_SECONDS, clock)

    @property
    def account(self) -> str:
        """The region. Nodes that share a ledger are taken to share the AWS account."""
        return f"aws/{self._ec2.region}"

    @property
    def default_type(self) -> str:
        """PODVM_INSTANCE_TYPE."""
        return self._keys.instance_type

    @property
    def default_image(self) -> str:
        """PODVM_AMI_ID."""
        return self._keys.ami_id

    def image_arch(self, image: str) -> str:
        """As EC2 has it; asked once for each image."""
        return self._catalog.image(image or self._keys.ami_id).arch

    def offerings(self) -> Sequence[Offering]:
        """The configured types in the zones of the configured subnets, in the configured markets."""
        return self._offerings.get()

    def launch(self, request: LaunchRequest) -> Instance:
        """One RunInstances. A refusal for good is told only when no earlier call of the same request came through.

        The earlier call may have been made under another configuration (a ConfigMap that changed since),
        which EC2 answers with IdempotentParameterMismatch, or with an image that is gone by now. Its instance is the
        one that was asked for, and is returned. An instance that was terminated meanwhile is returned as terminating.
        """
        check_user_data(request)
        try:
            place = self._place(request)
            parameters = run_instances(request, self._keys, place)
            reply = self._ec2.call("run_instances", self._about(request, place), **parameters)
        except InvalidRequestError as refusal:
            return self._made_earlier(request, refusal)
        if not reply.get("Instances"):
            raise UnknownOutcomeError("NoAnswer", f"EC2 answered the launch of {request.name!r} without an instance")
        made = _instance(reply["Instances"][0], public=self._keys.use_public_ip)
        return replace(made, request_id=str(reply.get("ResponseMetadata", {}).get("RequestId", "")))

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """One call for each 1000 instances of the owner."""
        states: dict[str, object] = {"Name": "instance-state-name", "Values": _EXISTING}
        return self._listed([*filters_of(scope), states], MaxResults=PAGE)

    def describe(self, instance_id: str) -> Mapping[str, Any]:
        """As DescribeInstances has it, with the reservation's id and the account's."""
        reply = self._ec2.read("describe_instances", {"instance": instance_id}, InstanceIds=[instance_id])
        for reservation in reply.get("Reservations", []):
            for found in reservation["Instances"]:
                own = {"ReservationId": reservation["ReservationId"], "OwnerId": reservation["OwnerId"]}
                described: dict[str, Any] = json.loads(json.dumps({**found, **own}, default=_plain))
                return described
        raise MissingError("InstanceMissing", f"there is no instance {instance_id} in {self._ec2.region}")

    def terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        """One TerminateInstances for all; volumes and interfaces go with them.

        EC2 ends none of them when it refuses one, so after a refusal each is asked for alone.
        """
        try:
            self._ec2.call("terminate_instances", InstanceIds=list(instance_ids))
        except (MissingError, InvalidRequestError) as refusal:
            return {instance_ids[0]: refusal} if len(instance_ids) == 1 else self._terminate_each(instance_ids)
        except ProviderError as error:
            return dict.fromkeys(instance_ids, error)
        return {}

    def _terminate_each(self, instance_ids: Sequence[str]) -> dict[str, ProviderError]:
        return {one: error for each in instance_ids for one, error in self.terminate([each]).items()}

    def discard(self, request: LaunchRequest) -> None:
        """Nothing: RunInstances makes all or nothing, and its volume and interface end with the instance."""

    def check(self) -> list[Problem]:
        """Everything that can be seen to be wrong, all at once, with nothing taken from a cache."""
        return checks.problems(self._ec2, self._keys, Catalog(self._ec2, self._keys, self._worker))

    def shortages(self) -> list[Problem]:
        """vCPU quotas of the configured types in the configured markets, against all instances of the region."""
        return quotas.shortages(self._ec2, self._keys, self._catalog.types())

    def close(self) -> None:
        """Close the connections."""
        self._ec2.close()

    def _place(self, request: LaunchRequest) -> Place:
        catalog = self._catalog
        return Place(
            image=catalog.image(request.image or self._keys.ami_id),
            subnet=catalog.subnet_for(request.offering.zone, request.token),
            groups=catalog.security_groups(),
            key_pair=catalog.key_pair(),
        )

    def _made_earlier(self, request: LaunchRequest, refusal: InvalidRequestError) -> Instance:
        """The instance that an earlier call of this very request made. Raises the refusal if there is none."""
        # Of a terminated instance EC2 soon drops the tags; that it was made with this token must do then.
        ended = refusal.reason == "IdempotentInstanceTerminated"
        found = self._by_token(request.token, only="" if ended else request.digest)
        if found:
            return found[0]
        if refusal.reason == "IdempotentParameterMismatch" and not self._by_token(request.token):
            raise UnknownOutcomeError(
                "NotVisibleYet", f"EC2 took the launch {request.name!r} before, and does not list its instance yet"
            ) from refusal
        raise refusal

    def _by_token(self, token: str, only: str = "") -> list[Instance]:
        """Instances of a launch token in any state, those that exist first; `only` those with this digest."""
        filters: list[dict[str, object]] = [{"Name": "client-token", "Values": [token]}]
        if only:
            filters.append({"Name": f"tag:{REQUEST}", "Values": [only]})
        return sorted(self._listed(filters), key=lambda i: i.state is InstanceState.TERMINATING)

    def _listed(self, filters: Iterable[Mapping[str, object]], **parameters: Any) -> list[Instance]:
        pages = self._ec2.pages("describe_instances", "Reservations", Filters=list(filters), **parameters)
        return [
            _instance(found, public=self._keys.use_public_ip)
            for reservation in pages
            for found in reservation["Instances"]
        ]

    def _about(self, request: LaunchRequest, place: Place) -> dict[str, str]:
        """What a refusal may name."""
        return {
            "type": request.offering.instance_type,
            "zone": request.offering.zone,
            "market": request.offering.market.value,
            "image": place.image.id,
            "subnet": place.subnet.id,
            "groups": ",".join(place.groups) or "(not set)",
            "key_pair": place.key_pair or "(not set)",
            "template": self._keys.launch_template,
            "profile": self._keys.iam_instance_profile or "(not set)",
            "volume_size": str(self._keys.root_volume_size),
        }


def _instance(found: Mapping[str, Any], *, public: bool) -> Instance:
    """An instance as DescribeInstances and RunInstances tell it.

    With public addresses only those are given, as soon as there are any: the private ones cannot be reached then.
    """
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    address = found.get("PublicIpAddress" if public else "PrivateIpAddress", "")
    return Instance(
        id=found["InstanceId"],
        name=tags.get("Name", ""),
        state=_STATES.get(found["State"]["Name"], InstanceState.FAILED),
        owner=owner_in(tags),
        addresses=(address,) if address else (),
        instance_type=found.get("InstanceType", ""),
        zone=found.get("Placement", {}).get("AvailabilityZone", ""),
        created_at=found.get("LaunchTime"),
        image=found.get("ImageId", ""),
        groups=_groups(found),
        public_addresses=(found["PublicIpAddress"],) if found.get("PublicIpAddress") else (),
    )


def _groups(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of every interface, and those told of the instance itself, which are its first interface's."""
    sources = [found, *found.get("NetworkInterfaces", [])]
    listed = [group for one in sources for group in one.get("SecurityGroups") or one.get("Groups") or []]
    return tuple(sorted({group["GroupId"] for group in listed}))


def _plain(value: object) -> str:
    """What JSON has no type for: of EC2's answers only times."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
