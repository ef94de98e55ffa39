"""One open sandbox of the proxy: its socket for the shim, the dialling of its pod VM, and its relays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from caa.agentproxy import health
from caa.agentproxy.dial import Dialled, LastError, PermanentDialError, Target, describe, dial, raise_if_permanent
from caa.agentproxy.messages import OpenRequest
from caa.agentproxy.relay import Relay
from caa.agentproxy.streams import Stream
from caa.agentproxy.tls import check_server_name, client_context
from caa.agentproxy.volumes import PodVolumes
from caa.ttrpc.frames import Code, StatusError

log = logging.getLogger(__name__)

# sun_path holds 108 bytes with its closing zero.
SOCKET_PATH_BYTES = 107
# The shim puts the path into a URL without escaping it, and cuts it at colons.
FORBIDDEN_IN_PATH = ":%?#"
# An agent that answers "not yet", or a connection that breaks before the answer: asked again after this.
ASK_AGAIN_SECONDS = 0.1
# After a failed accept (no file descriptors left), others may have been freed by then.
ACCEPT_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Reached:
    """The agent answered; times are those of the event loop."""

    address: str
    tcp_at: float
    tls_at: float
    agent_at: float


class OpenSandbox:
    """Made with the arguments of Open; listens from then on until `close`.

    Raises StatusError: INVALID_ARGUMENT when an argument is wrong, FAILED_PRECONDITION when the socket cannot be made.
    """

    def __init__(self, request: OpenRequest, redial_seconds: float) -> None:
        self.request = request
        self._loop = asyncio.get_running_loop()
        self._redial_seconds = redial_seconds
        try:
            check_socket_path(request.socket_path)
            self._context = client_context(
                request.ca_file, request.cert_file, request.key_file, request.tls_min_version, request.tls_ciphers
            )
            check_server_name(self._context, request.server_name)
            self._volumes = PodVolumes(request.pod_uid, request.volumes)
        except ValueError as error:
            raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
        self._path = Path(request.socket_path)
        self._addresses: tuple[str, ...] = ()
        self._port = 0
        self._reaching: asyncio.Task[Reached] | None = None
        self._reach_until = 0.0
        self._last_error = LastError()
        self._reached: Reached | None = None
        self._warming: asyncio.Task[Stream] | None = None  # dials, or holds, the link for the first shim connection
        self._relays: set[Relay] = set()
        self._agent_seen = False
        self._idle_since = self._loop.time()
        try:
            self._listener = _listen(self._path)
        except OSError as error:
            raise StatusError(
                Code.FAILED_PRECONDITION, f"cannot listen on socket_path {self._path}: {error.strerror or error}"
            ) from error
        self._loop.add_reader(self._listener, self._accept)

    # What the control plane sees.

    @property
    def shim_connections(self) -> int:
        """How many there are now."""
        return len(self._relays)

    @property
    def agent_seen(self) -> bool:
        """A shim was connected at some time."""
        return self._agent_seen

    @property
    def idle_seconds(self) -> float:
        """Since the last shim connection ended, or since open; 0.0 while there is one."""
        return 0.0 if self._relays else self._loop.time() - self._idle_since

    @property
    def connected(self) -> bool:
        """A link to the pod VM is up."""
        return self._warm_link() is not None or any(relay.linked for relay in self._relays)

    @property
    def address(self) -> str:
        """Where the agent answered; "" before."""
        return self._reached.address if self._reached else ""

    async def connect(self, addresses: tuple[str, ...], port: int, timeout: float) -> Reached:
        """Wait until the agent answers. Callers share one task, which goes on when they are gone.

        Raises StatusError: DEADLINE_EXCEEDED, FAILED_PRECONDITION, CANCELLED.
        """
        moved = (addresses, port) != (self._addresses, self._port)
        self._addresses, self._port = addresses, port
        if self._reached is not None and not moved and self.connected:
            return self._reached
        self._reach_until = max(self._reach_until, self._loop.time() + timeout)
        if self._reaching is None or self._reaching.done():
            self._reach_until = self._loop.time() + timeout
            self._reaching = asyncio.create_task(self._reach())
            self._reaching.add_done_callback(_see_error)
        task = self._reaching
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise self._too_late(timeout)
        if task.cancelled():
            raise StatusError(Code.CANCELLED, f"sandbox {self.request.sandbox_id} was closed while its VM was dialled")
        try:
            return task.result()
        except PermanentDialError as error:
            raise StatusError(Code.FAILED_PRECONDITION, str(error)) from error
        except TimeoutError:
            raise self._too_late(timeout) from None

    def close(self) -> None:
        """End everything and remove the socket, and its directory if that is empty then."""
        self._loop.remove_reader(self._listener)
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()
        if self._reaching is not None:
            self._reaching.cancel()
        self._drop_warm_link()
        for relay in list(self._relays):
            relay.close()

    # The pod VM.

    def _target(self) -> Target:
        return Target(self._addresses, self._port, self.request.server_name, self._context)

    async def _reach(self) -> Reached:
        while True:
            left = self._reach_until - self._loop.time()
            if left <= 0:
                raise TimeoutError
            with contextlib.suppress(TimeoutError):  # a caller who joined may have brought more time
                async with asyncio.timeout(left):
                    self._reached = await self._reach_agent()
                    return self._reached

    async def _reach_agent(self) -> Reached:
        while True:
            dialled = await dial(self._target, self._last_error)
            probe = Stream(dialled.sock)
            try:
                await health.check(probe)
                reached = Reached(dialled.address, dialled.tcp_at, dialled.tls_at, self._loop.time())
            except (OSError, health.AgentNotReadyError) as error:
                # With TLS 1.3 the VM's verdict on our certificate comes only now.
                raise_if_permanent(error, dialled.address, self._target())
                self._last_error.note(dialled.address, error)
            else:
                # Not before: a VM of one CPU would do this handshake while its caller waits for the answer.
                self._drop_warm_link()
                self._warming = asyncio.create_task(self._warm_up())
                self._warming.add_done_callback(_see_error)
                return reached
            finally:
                probe.close()
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    def _too_late(self, timeout: float) -> StatusError:
        text = f"the agent in the pod VM did not answer within {timeout:g} s; last: {self._last_error.text}"
        return StatusError(Code.DEADLINE_EXCEEDED, text)

    async def _new_link(self) -> Dialled:
        return await dial(self._target, LastError())

    async def _warm_up(self) -> Stream:
        link = Stream((await self._new_link()).sock)

        def lost(error: Exception) -> None:
            log.info("sandbox %s: the unused link to the pod VM ended: %s", self.request.sandbox_id, describe(error))

        link.on_lost = lost
        return link

    def _warm_link(self) -> Stream | None:
        task = self._warming
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return None if task.result().closed else task.result()

    def _drop_warm_link(self) -> None:
        link = self._warm_link()
        if link is not None:
            link.close()
        if self._warming is not None:
            self._warming.cancel()
            self._warming = None

    async def _open_link(self) -> Stream:
        """For a relay: the link that `connect` left, else a new one."""
        warming, self._warming = self._warming, None
        if warming is not None:
            try:
                link = await warming
            except asyncio.CancelledError:
                warming.add_done_callback(_close_result)
                raise
            except Exception as error:
                log.debug("sandbox %s: no link was left: %s", self.request.sandbox_id, describe(error))
            else:
                if not link.closed:
                    return link
        return Stream((await self._new_link()).sock)

    # The shim.

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.error("sandbox %s: cannot accept its shim: %s", self.request.sandbox_id, describe(error))
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_PAUSE_SECONDS, self._accept_again)
            return
        sock.setblocking(False)
        self._agent_seen = True
        relay = Relay(
            self.request.sandbox_id,
            Stream(sock),
            self._open_link,
            self._redial_seconds,
            self._volumes,
            self._relay_closed,
        )
        self._relays.add(relay)

    def _accept_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _relay_closed(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._idle_since = self._loop.time()


def _see_error(task: asyncio.Task[Reached] | asyncio.Task[Stream]) -> None:
    """Nobody may be waiting any more: then its error is of no interest to anybody."""
    if not task.cancelled():
        task.exception()


def _close_result(task: asyncio.Task[Stream]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def check_socket_path(path: str) -> None:
    """Raise ValueError unless a shim can dial this path."""
    allowed = f"an absolute path of at most {SOCKET_PATH_BYTES} bytes without any of {' '.join(FORBIDDEN_IN_PATH)}"
    if (
        not path.startswith("/")
        or len(os.fsencode(path)) > SOCKET_PATH_BYTES
        or any(character in path for character in FORBIDDEN_IN_PATH + "\0")
    ):
        raise ValueError(f"socket_path is {path!r}; allowed: {allowed}")


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, 0600. Only one proxy runs in a run directory, so a socket found there is stale."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "it exists and is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before listen
        listener.listen(socket.SOMAXCONN)
    except BaseException:
        listener.close()
        raise
    return listener
