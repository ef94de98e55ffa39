"""What the pod network may answer instead of success. Messages are sentences for people; they hold no secrets."""

from __future__ import annotations


class PodNetworkError(Exception):
    """The tunnel, or what it stands on, is not as it must be."""


class ConfigError(PodNetworkError):
    """A pod-network object that cannot be used. Names key, value and what is allowed."""


class NoPrimaryInterface(PodNetworkError):
    """A namespace without a usable default route."""


class TunnelIdInUse(PodNetworkError):
    """Another VXLAN device of this node has the tunnel's id; repeating cannot help, another id can."""


class TeardownFailed(PodNetworkError):
    """Some steps of a teardown failed; the others were done. `failures` has one sentence for each."""

    def __init__(self, failures: list[str]) -> None:
        super().__init__("; ".join(failures))
        self.failures = tuple(failures)
