"""What the fault tests need of an emulated cloud, and which clouds there are.

A cloud brings its emulator, what its requests are called, and how to look at it past the service. The tests bring the
kills, the faults and the rules of what must hold, which are the same for every cloud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from tests.clouds.faultproxy import FaultProxy

# Each with the class that emulates it.
CLOUDS = {
    "aws": "tests.faults.aws:EmulatedAws",
    "azure": "tests.faults.azure:EmulatedAzure",
    "ibmcloud": "tests.faults.ibm:EmulatedIbm",
}


# What every cloud's instances are called where they are counted beside their parts.
VMS = "VMs"


@dataclass(frozen=True)
class SeenInstance:
    """An instance as the cloud has it, in whatever state."""

    id: str
    sandbox_id: str
    attempt: str
    alive: bool  # not ended, nor ending
    running: bool
    ending: bool  # on its way out, and with it what came with it


@dataclass(frozen=True)
class Kinds:
    """Patterns of request names by what they are for."""

    launch: str
    terminate: str
    list: str
    look_up: str

    def of(self, kind: str) -> str:
        """By the name that a history gives it."""
        return {"launch": self.launch, "terminate": self.terminate, "list": self.list, "look up": self.look_up}[kind]


class EmulatedCloud(Protocol):
    """One emulated cloud, as a context manager that runs its process. Conditions are for all nodes."""

    @property
    def operations(self) -> Mapping[str, Counter[str]]:
        """Requests that change something or look something up, by name, of start, stop, supersede, fallback and round.

        Each is what the first such operation of a process sends; a fallback's first two offerings have no capacity.
        """
        ...

    @property
    def kinds(self) -> Kinds:
        """What its requests are called."""
        ...

    @property
    def throttled(self) -> Mapping[str, Any]:
        """Of the fault proxy: the reply that says "too many calls"."""
        ...

    def __enter__(self) -> EmulatedCloud: ...

    def __exit__(self, *_: object) -> None: ...

    def set_up(self) -> None:
        """Empty the cloud, and give it a network and the usual conditions: a moment until an instance runs, a longer
        one until its agent answers, and one instance type whose first two offerings cannot be had."""
        ...

    def environ(self, proxy: FaultProxy, *, scarce: bool) -> dict[str, str]:
        """What a service that reaches the cloud by the proxy is configured by; `scarce`: with the type just named."""
        ...

    def guests(self, port: int) -> AbstractContextManager[object]:
        """The guests of its instances, at this port."""
        ...

    def proxy(self) -> FaultProxy:
        """A way to the cloud that knows its requests by their names."""
        ...

    def changes(self, request: str) -> bool:
        """Whether a request of this name changes something."""
        ...

    def instances(self, cluster: str, node: str) -> list[SeenInstance]:
        """All that this node ever launched and the cloud still knows; asked of the cloud itself."""
        ...

    def duplicates(self) -> list[str]:
        """What was made twice though it was asked for once, as far as names and tokens tell."""
        ...

    def left_behind(self, cluster: str, node: str) -> Mapping[str, list[str]]:
        """What came with instances of this node and is still there though its instance is not: names by kind.

        Every kind that comes with an instance is there, and empty when nothing is left.
        """
        ...

    def made(self) -> Mapping[str, int]:
        """How many instances (VMS) and how many of each of those kinds there ever were, of all nodes."""
        ...

    def keeping(self, *kinds: str) -> None:
        """From now on what is of these kinds of `left_behind` outlives its instance, whatever was asked."""
        ...

    def no_capacity(self, zones: int) -> None:
        """None of anything in the first so many zones from now on, and endless capacity in the others."""
        ...

    def stale(self, calls: int = 0, seconds: float = 0.0, terminate: bool = False) -> None:
        """How long lists do not know a new instance; with `terminate` its end cannot be asked for either."""
        ...


def emulated(name: str) -> EmulatedCloud:
    """A cloud by the name of its provider."""
    module, _, kind = CLOUDS[name].partition(":")
    made: Callable[[], EmulatedCloud] = getattr(import_module(module), kind)
    return made()
