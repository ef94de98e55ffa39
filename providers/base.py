"""The provider contract: everything the service may ask of a cloud, and every way a cloud may refuse.

A provider knows one cloud's API and nothing else. It is synchronous, keeps nothing between calls but its
client and caches, never waits, and never retries: waiting, retrying, rate limits and the choice of the next
offering belong to the service, which runs these calls in a bounded thread pool.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


class Market(enum.StrEnum):
    """How the capacity is bought."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"


class InstanceState(enum.StrEnum):
    """What the cloud says of an instance, reduced to what the service decides by."""

    PENDING = "pending"  # accepted, not running yet; may have an address already
    RUNNING = "running"
    STOPPED = "stopped"  # exists (and may cost money), but runs nothing: a pod VM never comes back from it
    TERMINATING = "terminating"  # going away by itself; nothing left to ask for
    FAILED = "failed"  # exists, but the cloud gave up on it; must be terminated


@dataclass(frozen=True, slots=True)
class Offering:
    """What can be asked for: instance type x zone x market.

    `vcpus` and `memory_mib` are what the instance has. A `flexible` offering (libvirt) has no fixed size:
    the numbers are its defaults, and sizing replaces them with what the pod asks for.

    `unusable` is for what the cloud has and would refuse as things are: why ("does not run confidential VMs", "this
    subscription may not use it in zone 2"), in words that follow the type's name; "" for what can be launched.
    """

    instance_type: str
    zone: str
    vcpus: int
    memory_mib: int
    market: Market = Market.ON_DEMAND
    arch: str = "x86_64"
    gpus: int = 0
    gpu_model: str = ""
    flexible: bool = False
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who owns an instance. Set in the create call itself, so that no instance is ever without owner.

    `pod_namespace` and `pod_name` may be "" in what a cloud lists.
    """

    cluster: str
    node: str
    sandbox_id: str
    pod_namespace: str
    pod_name: str
    attempt: int

    @property
    def launch(self) -> tuple[str, str, str, int]:
        """What tells its launch from any other. The pod's names are for people; a cloud may have no room for them."""
        return self.cluster, self.node, self.sandbox_id, self.attempt


@dataclass(frozen=True, slots=True)
class OwnerScope:
    """Whose instances to list. Instances of any other cluster or node are never returned."""

    cluster: str
    node: str


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One launch attempt, exactly as the ledger recorded it. The same request twice makes one instance.

    `name` is unique per attempt and valid as a host name (63 characters of [a-z0-9-]). `token` is at most
    64 ASCII characters. `user_data` is the cloud-config text, sent byte for byte. `image` is the one
    this attempt must boot ("" means the provider's configured image).
    """

    name: str
    token: str
    owner: Owner
    offering: Offering
    user_data: bytes = field(repr=False)  # holds the pod VM's TLS key: never in a log or a traceback
    image: str = ""

    @property
    def digest(self) -> str:
        """What tells one request from any other, whatever the configuration was when it was sent: 64 hex digits.

        It covers user data that holds a private key, so nothing about it can be guessed from the digest.
        """
        offering = self.offering
        parts = (
            self.name,
            self.token,
            self.image,
            offering.instance_type,
            offering.zone,
            offering.market.value,
            hashlib.sha256(self.user_data).hexdigest(),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as the cloud knows it now. `id` is the cloud's own; `addresses` are IP addresses the worker can use.

    `refusal` is why the cloud gave up on an instance that it had accepted: an OfferingRefusedError where another
    offering may do, else what is wrong for good.
    `image`, `groups` (security groups) and `public_addresses` are for audits: "" and () where the cloud does not tell
    them in its list. `request_id` is the cloud's own name of the call that made it, set in the answer of `launch` only.
    """

    id: str
    name: str
    state: InstanceState
    owner: Owner | None = None
    addresses: tuple[str, ...] = ()
    instance_type: str = ""
    zone: str = ""
    created_at: datetime | None = None  # timezone-aware; None where the cloud does not say
    image: str = ""
    groups: tuple[str, ...] = ()
    public_addresses: tuple[str, ...] = ()
    request_id: str = ""
    refusal: ProviderError | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration or the cloud, found without creating anything."""

    key: str  # the setting to change, e.g. "LIBVIRT_POOL"; "" when no setting is to blame
    message: str  # a sentence naming the value and what is allowed
    image_missing: bool = False  # building the pod VM image would solve it


class Scope(enum.StrEnum):
    """How much of the offering space a refusal rules out."""

    OFFERING = "offering"  # this type in this zone in this market
    TYPE = "type"  # this type in this market, in every zone
    ZONE = "zone"  # everything in this zone
    MARKET = "market"  # everything in this market


class ApiClass(enum.StrEnum):
    """The calls that a cloud counts apart from each other."""

    LAUNCH = "launch"
    LIST = "list"
    TERMINATE = "terminate"


@dataclass(frozen=True, slots=True)
class Rate:
    """What a cloud takes of one class of calls: `burst` at once, and `per_second` in the long run."""

    burst: float
    per_second: float


class ProviderError(Exception):
    """A cloud said no, or did not say. `reason` is a stable CamelCase word; str() is a sentence for people.

    `request_id` is the cloud's own name of the call, which its support asks for; "" when it gave none.
    """

    request_id = ""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class OfferingRefusedError(ProviderError):
    """Nothing was made, and asking again soon would be in vain. Another offering may do.

    `scope` says what else would be refused as well, `seconds` for how long to take that for granted (0: not at all).
    """

    def __init__(self, reason: str, message: str, scope: Scope = Scope.OFFERING, seconds: float = 0.0) -> None:
        super().__init__(reason, message)
        self.scope = scope
        self.seconds = seconds


class CapacityError(OfferingRefusedError):
    """The cloud has none of this left now. Another offering may work; this one may work later."""


class QuotaError(OfferingRefusedError):
    """The account may have no more of this. Another family may work; waiting helps only if something else ends."""


class ThrottledError(ProviderError):
    """Too many calls. `retry_after` is the server's own word in seconds, if it gave one."""

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(reason, message)
        self.retry_after = retry_after


class DeniedError(ProviderError):
    """The credentials are wrong or lack a right. Permanent until a human acts."""


class InvalidRequestError(ProviderError):
    """The request can never work as it is: bad image, unknown network, type not offered. Permanent."""


class MissingError(ProviderError):
    """The cloud does not know this instance: it is gone, or so new that not every part of the cloud knows it yet."""


class UnavailableError(ProviderError):
    """The cloud was not reached, and certainly did nothing. Worth retrying as it is."""


class UnknownOutcomeError(ProviderError):
    """No answer, or one that does not say whether the cloud acted. Repeat with the same token; never assume."""


class Provider(Protocol):
    """One cloud. Calls block for as long as the API takes and may come from several threads at once."""

    name: str
    watch_interval: float
    """Seconds between the beginnings of two `instances` calls, at least: what this API affords."""
    lag: float
    """Seconds for which the API may not know an instance that it just made. 0 where it always does."""
    terminate_batch: int
    """The most instances that one `terminate` call takes."""
    limits: Mapping[ApiClass, Rate]
    """What the cloud takes of an account's calls, all nodes together. A class that is absent has no limit."""
    user_data_limit: int
    """Bytes of user data that the cloud takes, counted before any encoding its API asks for."""

    @property
    def account(self) -> str:
        """Whose limits, quotas and capacity these are, e.g. "aws/eu-west-1": the same text for all who share them."""
        ...

    @property
    def default_type(self) -> str:
        """The instance type of a pod that asks for none, as `offerings` has it."""
        ...

    @property
    def default_image(self) -> str:
        """The image that a request without one boots; "" where that depends on the offering."""
        ...

    def image_arch(self, image: str) -> str:
        """The architecture of an image ("": the configured one), such as x86_64; "" where any offering will do."""
        ...

    def offerings(self) -> Sequence[Offering]:
        """Everything that may be asked for, in no particular order. May be cached by the provider."""
        ...

    def launch(self, request: LaunchRequest) -> Instance:
        """Ask for one instance and return as soon as the cloud accepted. Idempotent by name and token."""
        ...

    def instances(self, scope: OwnerScope) -> list[Instance]:
        """Every instance of this owner that exists in any state, with its addresses, in as few calls as can be."""
        ...

    def describe(self, instance_id: str) -> Mapping[str, Any]:
        """The cloud's own description of one instance, as its API has it, of JSON's types. Never user data or secrets.

        Raises MissingError.
        """
        ...

    def terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        """Ask for the end of instances and everything that came with them, in as few calls as can be.

        Returns those that could not be ended, by id; MissingError for what the cloud does not know.
        """
        ...

    def discard(self, request: LaunchRequest) -> None:
        """Remove what a launch that came to no instance may have left (volumes, interfaces), by its name. Idempotent.

        Called when `instances` shows none of this request, `lag` seconds after it was last sent or later.
        """
        ...

    def check(self) -> list[Problem]:
        """Everything wrong that can be seen without creating anything, all at once."""
        ...

    def shortages(self) -> list[Problem]:
        """What of the account's quotas is so far used up that a configured type cannot be launched now.

        For people who ask; a service starts all the same, for its pods may end. Raises DeniedError when the
        credentials may not look.
        """
        ...

    def close(self) -> None:
        """Give back connections. No call may follow."""
        ...


class ConfigError(Exception):
    """The configuration cannot work. Lists every problem at once, each with its key."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(f"{p.key}: {p.message}" if p.key else p.message for p in problems))
        self.problems = tuple(problems)
