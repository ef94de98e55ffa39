"""The pod's end of the tunnel: built beside everything else, and awaited by the calls that need it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from caa.guest.log import log
from caa.guest.rewrite import Work
from caa.ttrpc.frames import Code, StatusError, peek_method
from caa.ttrpc.protobuf import DecodeError

# What cannot work without the pod's network.
_NEED_NETWORK = {"CreateSandbox", "CreateContainer"}


class PodNetwork:
    """The network of the pod, from the `pod-network` object of apf.json; None where there is none to build."""

    def __init__(self, document: Mapping[str, object] | None) -> None:
        self._document = document
        self._done = threading.Event()
        self._failure = ""
        if document is None:
            self._done.set()

    def build(self) -> None:
        """Build it, once. What goes wrong is told to the calls that need it."""
        if self._done.is_set():
            return
        # Here, for the import takes its time and the port is to open first.
        from caa.podnetwork.podvm import setup_pod

        try:
            setup_pod(self._document, log)
        except Exception as error:  # whatever it is, the agent's caller must hear of it
            self._failure = str(error) or type(error).__name__
            log(f"pod network: {self._failure}")
        else:
            log("pod network: ready")
        self._done.set()

    def before(self, data: bytes, change: Callable[[bytes], bytes | Work]) -> bytes | Work:
        """`change` of the call's envelope; of a call that needs the network, when that is there."""
        if not self._needed_by(data) or (self._done.is_set() and not self._failure):
            return change(data)

        def when_ready() -> bytes:
            self._done.wait()
            if self._failure:
                raise StatusError(Code.INTERNAL, f"the pod VM has no pod network: {self._failure}")
            changed = change(data)
            return changed if isinstance(changed, bytes) else changed()

        return when_ready

    @staticmethod
    def _needed_by(data: bytes) -> bool:
        try:
            service, method = peek_method(data)
        except DecodeError:
            return False
        return service == "grpc.AgentService" and method in _NEED_NETWORK
