"""The REST interface as a service to test: the real application on real sockets over a real ledger.

Only the lifecycle is ours. It keeps to the ledger's rules, asks no cloud, and a start ends as the annotation
`test/start` says: "ok" (the default), "hang" until cancelled, or an error's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from caa.api.reader import LedgerReader
from caa.api.rest.app import build_app
from caa.api.rest.server import RestServer
from caa.audit import Audit
from caa.auditing import Fixed
from caa.clock import SystemClock
from caa.errors import CallError, ConflictError, DeadlineError, InvalidInputError, NotFoundError, StartFailedError
from caa.explain import Explanation, explain
from caa.images.image import PodVmImage
from caa.images.watch import ImageWatch
from caa.ledger import Ledger, SandboxExists, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.metadata.service import MetadataService
from caa.metadata.tokens import Tokens
from caa.reload import Status
from caa.sandbox import Attempt, AttemptState, CreateRequest, Event, Sandbox, SandboxState, attempt_token
from caa.settings import Settings, load
from caa.sizing import Policy, requirements
from caa.unavailable import Unavailable
from caa.web.actions import OperatorActions, action_router
from caa.web.login import browser_login
from caa.web.page import Page, page_router
from providers.base import Offering

USER_DATA = b"#cloud-config with a private key"
NAMESPACE, NAME = "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name"
BORN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
# Bound of every wait for another thread or process; none takes a tenth of it.
PATIENCE_S = 20.0

START_ERRORS: Mapping[str, Callable[[], Exception]] = {
    "failed": lambda: StartFailedError("no capacity in any zone", reason="InsufficientInstanceCapacity"),
    "deadline": lambda: DeadlineError("the agent did not answer in time"),
    "refused": lambda: CallError("no instance type fits the pod", reason="NoInstanceType"),
    "defect": lambda: RuntimeError("secret-in-a-traceback"),
}


OFFERINGS = [
    Offering("m6a.large", "eu-1a", 2, 8192),
    Offering("m6a.large", "eu-1b", 2, 8192),
    Offering("m6a.xlarge", "eu-1a", 4, 16384),
    Offering("m6g.large", "eu-1a", 2, 8192, arch="arm64"),
    Offering("g4dn.xlarge", "eu-1a", 4, 16384, gpus=1, gpu_model="T4"),
]
POLICY = Policy("m6a.large", "ami-1", ("ami-2",), {("m6a.xlarge", ""): 0.1728})
UNAVAILABLE = [
    Unavailable("a", "m6a.large", "eu-1a", "on-demand", BORN, BORN + timedelta(seconds=180), False, "NoneLeft", "sorry")
]


async def described(instance_id: str) -> Mapping[str, object]:
    """What the cloud says of an instance."""
    return {"uuid": instance_id, "mac": "52:54:00:00:00:07", "image": "podvm"}


class LedgerLifecycle:
    """The three verbs over a ledger alone."""

    def __init__(self, ledger: Ledger, pods_dir: Path) -> None:
        self._ledger = ledger
        self._pods_dir = pods_dir
        self._born = BORN
        self.starts: list[tuple[str, float | None]] = []
        self.gone: list[str] = []
        """Ids whose start was cancelled."""
        self.stop_gate = threading.Event()
        self.stop_gate.set()

    async def create(self, request: CreateRequest) -> Sandbox:
        if NAME not in request.annotations:
            raise InvalidInputError(NAME, f"annotation {NAME} is missing; it must name the pod")
        self._born += timedelta(seconds=1)
        sandbox = Sandbox(
            id=request.id,
            cluster="c1",
            node=request.annotations.get("test/node", "node-1"),
            pod_namespace=request.annotations[NAMESPACE],
            pod_name=request.annotations[NAME],
            door=request.door,
            annotations=request.annotations,
            netns_path=request.netns_path,
            socket_path=str(self._pods_dir / request.id / "agent.ttrpc"),
            state=SandboxState.CREATED,
            created_at=self._born,
            changed_at=self._born,
        )
        event = Event(request.id, self._born, "Created", "the sandbox was recorded")
        try:
            return await asyncio.to_thread(self._ledger.add_sandbox, sandbox, event=event)
        except SandboxExists as error:
            return error.existing

    async def start(self, sandbox_id: str, *, timeout: float | None = None) -> Sandbox:
        self.starts.append((sandbox_id, timeout))
        sandbox = self._ledger.sandbox(sandbox_id)
        if sandbox is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id} on this node")
        if sandbox.state is not SandboxState.CREATED:
            raise ConflictError(f"sandbox {sandbox_id} is {sandbox.state} and cannot be started")
        ending = sandbox.annotations.get("test/start", "ok")
        if ending == "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.gone.append(sandbox_id)
                raise
        if ending in START_ERRORS:
            raise START_ERRORS[ending]()
        starting = self._ledger.save_sandbox(replace(sandbox, state=SandboxState.STARTING))
        attempt = Attempt(
            sandbox_id=sandbox_id,
            number=1,
            name="podvm-web-01234567",
            token=attempt_token("c1", sandbox_id, 1),
            offering=Offering("m6a.large", "eu-1a", 2, 8192),
            image="ami-1",
            user_data=USER_DATA,
            state=AttemptState.INTENDED,
            created_at=self._born,
        )
        attempt = self._ledger.add_attempt(attempt, sandbox_version=starting.version)
        self._ledger.save_attempt(
            replace(attempt, state=AttemptState.ACCEPTED, instance_id="i-1", addresses=("10.0.0.7",))
        )
        event = Event(sandbox_id, self._born, "Running", "the agent answered", attempt=1)
        return self._ledger.save_sandbox(replace(starting, state=SandboxState.RUNNING), event=event)

    async def explain(self, annotations: Mapping[str, str]) -> Explanation:
        return explain(requirements(annotations), OFFERINGS, POLICY, "x86_64", UNAVAILABLE, BORN)

    async def stop(self, sandbox_id: str) -> Sandbox | None:
        await asyncio.to_thread(self.stop_gate.wait, PATIENCE_S)
        sandbox = self._ledger.sandbox(sandbox_id)
        if sandbox is None or sandbox.state is SandboxState.STOPPING:
            return sandbox
        return self._ledger.save_sandbox(replace(sandbox, state=SandboxState.STOPPING))


class SwitchableHealth:
    """Well until told otherwise."""

    def __init__(self) -> None:
        self.alive = True
        self.begun = True
        self.unready: list[str] = []

    def live(self) -> bool:
        return self.alive

    def ready(self) -> list[str]:
        return self.unready

    def started(self) -> bool:
        return self.begun


class PageImages:
    """The images on the page; a test may exchange them."""

    key = "PODVM_AMI_ID"
    image_id = ""

    def __init__(self) -> None:
        self.shown: list[PodVmImage] = []
        self.retried = 0

    async def images(self) -> list[PodVmImage]:
        return self.shown

    async def retry(self) -> PodVmImage:
        self.retried += 1
        return self.shown[0]


class Service:
    """A running REST interface and what stands behind it."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self.lifecycle = LedgerLifecycle(ledger, settings.pods_dir)
        self.health = SwitchableHealth()
        self.status = Status(1, BORN, ())
        """Of the configuration; a test may exchange it."""
        images = ImageWatch(settings, {}, {}, None, ledger, LedgerThreads(), SystemClock())
        metadata = MetadataService(
            ledger, LedgerThreads(), described, lambda: settings, Tokens(b"k" * 32), SystemClock()
        )
        self.audit = Audit(BORN, ())
        """What an audit finds; a test may exchange it."""
        self.fixed = 0
        """How often somebody had it put right."""
        self.app = build_app(self.lifecycle, LedgerReader(ledger), self.health, self, images, metadata, self, self)
        self.images = PageImages()
        page = Page(
            LedgerReader(ledger),
            self.health,
            self.images,
            SystemClock(),
            "node-1",
            "aws",
            {("m6a.large", ""): 0.0864},
            lambda: self.audit,
        )
        self.app.include_router(page_router(page))
        self.app.include_router(action_router(OperatorActions(self.lifecycle.stop, self.fix, self.images.retry)))
        self.rest = RestServer(self.app, settings, browser_login(settings.operator_token_file))

    async def look(self) -> Audit:
        return self.audit

    async def fix(self) -> list[Fixed]:
        self.fixed += 1
        return [Fixed(finding, "", "left alone") for finding in self.audit.differences]

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        return b"caa_ready 1.0\n", "text/plain; charset=utf-8"

    @property
    def socket(self) -> str:
        return str(self.settings.api_socket)

    def client(self) -> httpx.Client:
        """A client on the unix socket."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=self.socket), base_url="http://caa", timeout=PATIENCE_S)

    @property
    def tcp_url(self) -> str:
        return f"{'https' if self.settings.api_tls else 'http'}://{self.rest.tcp_address}"


def settings_in(directory: Path, **keys: str) -> Settings:
    """Settings with all but the pods directory below `directory`; that one must be short, and stays unmade."""
    base = {"CLOUD_PROVIDER": "libvirt", "CAA_STATE_DIR": str(directory), "CAA_RUN_DIR": str(directory / "run")}
    return load(base | {"PODS_DIR": "/run/caa-test/pods"} | keys)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Service]:
    """Serve from an event loop in a thread until the block ends."""
    upgrade(settings.ledger_url)
    ledger = open_ledger(settings.ledger_url)
    service = Service(settings, ledger)
    up: Future[asyncio.AbstractEventLoop] = Future()
    down = asyncio.Event()

    async def run() -> None:
        try:
            await service.rest.start()
        except BaseException as error:
            up.set_exception(error)
            return
        up.set_result(asyncio.get_running_loop())
        await down.wait()
        await service.rest.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        loop = up.result(PATIENCE_S)
        try:
            yield service
        finally:
            service.lifecycle.stop_gate.set()
            loop.call_soon_threadsafe(down.set)
    finally:
        thread.join(PATIENCE_S)
        ledger.close()


def sandbox_body(sandbox_id: str, pod: str = "shop/web", **annotations: str) -> dict[str, object]:
    """What POST /v1/sandboxes takes."""
    namespace, name = pod.split("/")
    return {"id": sandbox_id, "annotations": {NAMESPACE: namespace, NAME: name, **annotations}}
