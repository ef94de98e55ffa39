"""The AWS provider: pod VMs as EC2 instances.

Exactly once: RunInstances carries the launch's token, and a subnet, which makes the token count in that one zone; the
attempt's zone never changes. EC2 answers a repeat with the instance it made before. Owner tags are part of the same
call, so an instance without owner cannot be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from providers.aws import checks
from providers.aws.catalog import Catalog
from providers.aws.client import Ec2
from providers.aws.metadata import WorkerMetadata
from providers.aws.parameters import Place, check_user_data, run_instances
from providers.aws.settings import AwsKeys
from providers.aws.tags import REQUEST, digest, filters_of, owner_in
from providers.base import (
    Instance,
    InstanceState,
    InvalidRequestError,
    LaunchRequest,
    Offering,
    OwnerScope,
    Problem,
    UnknownOutcomeError,
)
from providers.keys import read_keys

# EC2's listings lag behind its launches, mostly by less than a second. AWS gives no bound; after this long others who
# list instances by tag take absence for truth.
VISIBLE_SECONDS = 30.0
# New types and zones appear a few times a year; a mistake in the configuration is corrected with a restart.
OFFERINGS_SECONDS = 600.0
# The most that one page may have.
PAGE = 1000

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

    def __init__(self, keys: AwsKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._worker = WorkerMetadata(keys)
        self._ec2 = Ec2(keys, self._worker)
        self._catalog = Catalog(self._ec2, keys, self._worker)
        self._since = _Since(clock)
        self._offerings_lock = threading.Lock()
        self._offerings: tuple[float, Sequence[Offering]] | None = None

    def offerings(self) -> Sequence[Offering]:
        """The configured types in the zones of the configured subnets, in the configured markets."""
        with self._offerings_lock:
            if self._offerings is None or self._clock() - self._offerings[0] >= OFFERINGS_SECONDS:
                self._offerings = (self._clock(), self._catalog.offerings())
            return self._offerings[1]

    def launch(self, request: LaunchRequest) -> Instance:
        """One RunInstances. A refusal for good is told only when no earlier call of the same request came through.

        The earlier call may have been made under another configuration (a ConfigMap that changed during a restart),
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
        instance = _instance(reply["Instances"][0], public=self._keys.use_public_ip)
        self._since.note(instance.id)
        return instance

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """One call for each 1000 instances of the owner."""
        states: dict[str, object] = {"Name": "instance-state-name", "Values": _EXISTING}
        return self._listed([*filters_of(scope), states], MaxResults=PAGE)

    def terminate(self, instance_id: str) -> None:
        """TerminateInstances; volume and interface go with the instance.

        Absent is success, but not of an instance that was launched just now: EC2 may not see it yet itself.
        """
        try:
            self._ec2.call("terminate_instances", {"instance": instance_id}, InstanceIds=[instance_id])
        except InvalidRequestError as error:
            if error.reason != "InstanceMissing":
                raise
            age = self._since.age(instance_id)
            if age is not None and age < VISIBLE_SECONDS:
                raise UnknownOutcomeError(
                    "NotVisibleYet", f"EC2 accepted {instance_id} {age:.0f} s ago and does not see it yet"
                ) from error

    def discard(self, request: LaunchRequest) -> None:
        """Find what the launch made by its token, and terminate it. What is not there is waited for, by refusing.

        To send the launch again would show the instance, too, but it would make one where there was none, and while
        AWS throttles or has no capacity, or after the image or the configuration changed, it would show nothing. So
        this only looks. A launch that was sent becomes visible after a moment, hence absence counts only when the
        launch is still absent VISIBLE_SECONDS after the first look; until then the outcome is unknown. No launch of the
        request is sent after that look, for the service discards an attempt only when it has given it up. Should an
        instance appear later still, it has its owner tags, and is found by `instances` as one that nobody wants.
        """
        found = self._by_token(request.token)
        for instance in found:
            if instance.state is not InstanceState.TERMINATING:
                self.terminate(instance.id)
        if not found:
            self._wait_for_absence(request)

    def check(self) -> list[Problem]:
        """Everything that can be seen to be wrong, all at once, with nothing taken from a cache."""
        return checks.problems(self._ec2, self._keys, Catalog(self._ec2, self._keys, self._worker))

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
        found = self._by_token(request.token, only="" if ended else digest(request))
        if found:
            return found[0]
        if refusal.reason == "IdempotentParameterMismatch" and not self._by_token(request.token):
            self._wait_for_absence(request)  # an earlier call did come through: its instance must still appear
        raise refusal

    def _wait_for_absence(self, request: LaunchRequest) -> None:
        since = self._since.first(request.token)
        if since < VISIBLE_SECONDS:
            raise UnknownOutcomeError(
                "NotVisibleYet",
                f"EC2 lists no instance of the launch {request.name!r}; that counts when it has been so for "
                f"{VISIBLE_SECONDS:.0f} s ({since:.0f} s now)",
            )

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
    )


class _Since:
    """Since when something is known, in seconds; forgotten after a while."""

    _KEPT_SECONDS = 3600.0  # far longer than anybody asks for

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._noted: dict[str, float] = {}

    def note(self, key: str) -> None:
        """Known since now, unless it was noted before."""
        with self._lock:
            now = self._clock()
            self._noted.setdefault(key, now)
            for old in [k for k, at in self._noted.items() if now - at > self._KEPT_SECONDS]:
                del self._noted[old]

    def age(self, key: str) -> float | None:
        """Seconds since it was noted; None if it was not."""
        with self._lock:
            at = self._noted.get(key)
            return None if at is None else self._clock() - at

    def first(self, key: str) -> float:
        """Seconds since it was first noted, which may be now."""
        self.note(key)
        return self.age(key) or 0.0
