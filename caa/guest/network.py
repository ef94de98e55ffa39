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
    """The network of the pod, from the `pod-network` object of apf.json; None where there is none to build.

    `metadata` is the object `caa-metadata`: what of the cloud's metadata is passed on to the pod.
    """

    def __init__(self, document: Mapping[str, object] | None, metadata: object = None) -> None:
        self._document = document
        self._metadata = metadata
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
        if self._metadata and not self._failure:
            self._pass_metadata_on()

    def _pass_metadata_on(self) -> None:
        """Without it, the pod's requests go through the tunnel to the worker, which refuses them."""
        from caa.guest.metadata import Relay, read_config
        from caa.podnetwork.podvm import POD_NAMESPACE

        config = read_config(self._metadata)
        if config is None:
            return
        try:
            Relay(config, POD_NAMESPACE).start()
        except Exception as error:  # a pod can do without
            log(f"instance metadata: {error or type(error).__name__}")

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
