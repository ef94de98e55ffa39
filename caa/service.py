"""`caa serve`: puts the parts together, opens the doors, and closes them again.

The order matters to a machine that already runs pods: configuration and cloud are checked before anything is
made, so a typo leaves nothing behind; the doors are bound before the proxy is started, so a second service on the
node ends before it disturbs the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

import caa
from caa import configuring
from caa.agentproxy.control import ProxyControl
from caa.agentproxy.spawn import await_proxy, ensure_proxy
from caa.api.hypervisor import hypervisor_service
from caa.api.podvminfo import podvminfo_service
from caa.api.reader import LedgerReader
from caa.api.rest.app import build_app
from caa.api.rest.server import RestServer
from caa.auditing import Auditor
from caa.clock import SystemClock
from caa.cloud import Cloud
from caa.configplaces import open_objects
from caa.ending import Ending
from caa.guestconfig import TlsProfile
from caa.images.watch import ImageWatch
from caa.knownkeys import Suspect, suspects
from caa.kubernetes.port import NoPullSecrets, PullSecrets
from caa.ledger import Ledger, LedgerError, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.lifecycle import Lifecycle
from caa.limiter import Limiter
from caa.logs import set_up_logging
from caa.metadata.service import MetadataService
from caa.metadata.tokens import Tokens, node_key
from caa.metrics import Metrics
from caa.node import AgentTls, Current, Node
from caa.pki import NodeKeys
from caa.prices import Prices, read_prices
from caa.reconciler import Reconciler
from caa.reload import Reload
from caa.settings import Settings
from caa.sources import Merged, Sources
from caa.starting import Starting
from caa.threads import bound_others
from caa.ttrpc.server import Server
from caa.tunnels import Tunnels
from caa.web.actions import OperatorActions, action_router
from caa.web.login import browser_login
from caa.web.page import Page, page_router
from imagebuilder.publish import registry as publishers
from providers.base import ConfigError, OwnerScope, Problem, Provider, ProviderError

if TYPE_CHECKING:
    from caa.kubernetes.api import KubernetesApi
    from caa.kubernetes.configobjects import ConfigObjects
    from caa.kubernetes.reports import KubernetesReports

log = logging.getLogger(__name__)


def run(environ: MutableMapping[str, str]) -> int:
    """Serve until told to stop. Returns the process's exit code; what is wrong goes to stderr, key by key.

    `environ` is the process's own: it gets the mounted keys that the cloud's SDK reads there.
    """
    misspelt: Iterable[Suspect] = ()
    merged = Merged({}, {})
    try:
        objects = open_objects(environ)
        sources = Sources(environ, objects)
        merged = sources.read()
        misspelt = suspects(merged.sources, configuring.known_names())
        configuring.hand_to_sdk(merged, environ)
        configured = configuring.build(merged.values)
        set_up_logging(configured.settings.log_format, configured.settings.log_level)
        asyncio.run(_serve(configured, sources, merged, objects))
    except (ConfigError, OSError) as error:
        told = configuring.lines(merged.hidden(error.problems)) if isinstance(error, ConfigError) else [str(error)]
        for line in told:
            print(f"caa: {line}", file=sys.stderr)
        for suspect in misspelt:  # one of them may be why
            print(f"caa: warning: {suspect}", file=sys.stderr)
        return 1
    return 0


class Health:
    """What the health routes say."""

    def __init__(self, images: ImageWatch) -> None:
        self.waiting_for = ["the agent proxy", "the first reconcile round"]
        self._images = images

    def live(self) -> bool:
        """The event loop answers; nothing else may make an orchestrator kill this process."""
        return True

    def started(self) -> bool:
        """The first reconcile round is over."""
        return not self.waiting_for

    def ready(self) -> list[str]:
        """Why calls cannot be served now; empty when they can."""
        refusal = self._images.refusal()
        return [*self.waiting_for, *([str(refusal)] if refusal else [])]


async def _serve(
    configured: configuring.Configured, sources: Sources, merged: Merged, objects: ConfigObjects | None
) -> None:
    bound_others()
    settings = configured.settings
    prices = read_prices(settings.prices_file)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_only_one(settings.state_dir))
        ledger = _open_ledger(settings)
        stack.callback(ledger.close)
        ledger_threads = LedgerThreads()
        stack.push_async_callback(ledger_threads.close)
        clock = SystemClock()
        images = _images(settings, merged, ledger, ledger_threads, clock)
        stack.push_async_callback(images.close)
        configured = await _with_image(configured, images, merged.values)
        provider = await _checked(configured, images)
        limiter = Limiter(ledger.account, ledger_threads, clock, provider.account, provider.limits)
        cloud = Cloud(provider, OwnerScope(settings.cluster_id, settings.node_name), clock, limiter)
        stack.push_async_callback(cloud.close)
        current = Current(settings)
        tokens = Tokens(node_key(settings.state_dir))
        metadata = MetadataService(ledger, ledger_threads, cloud.describe, lambda: current.settings, tokens, clock)
        stack.push_async_callback(metadata.shutdown)
        tunnels = Tunnels(ledger, ledger_threads, cloud.scope, clock, settings.tunnel_settings, metadata)
        stack.push_async_callback(tunnels.close)
        node = _node(current, clock, ledger, ledger_threads, cloud, tunnels, prices, images)
        api = _kubernetes() if settings.kubernetes else None
        reports = _reports(api, node, objects) if api is not None else None
        if api is not None and reports is not None:
            stack.push_async_callback(api.close)
            images.watcher = reports.image_seen
            node = dataclasses.replace(node, reports=reports, pull_secrets=_pull_secrets(api, settings))
        ending = Ending(node)
        stack.push_async_callback(ending.close)

        async def end_other(sandbox_id: str, reason: str, message: str) -> None:
            await lifecycle.end(sandbox_id, reason, message)

        lifecycle = Lifecycle(node, Starting(node, ending, end_other), ending)
        stack.push_async_callback(lifecycle.close)
        health = Health(images)
        reload = Reload(sources, merged, node, overlay=images.overlay)
        auditor = Auditor(node, lifecycle.end)
        metrics = Metrics(
            node,
            limiter,
            audit=lambda: auditor.latest,
            configuration=lambda: reload.status,
            ready=lambda: not health.ready(),
            image_refusal=images.refusal,
        )
        node.watchers.append(metrics.on_event)
        if settings.traces_endpoint:
            _trace_starts(stack, settings, node)
        cloud.watcher, limiter.watcher = metrics.on_call, metrics.on_turn
        reader = LedgerReader(ledger)
        app = build_app(lifecycle, reader, health, reload, images, metadata, auditor, metrics)
        page = Page(reader, health, images, clock, settings.node_name, provider.name, prices, lambda: auditor.latest)
        app.include_router(page_router(page))
        app.include_router(action_router(OperatorActions(lifecycle.stop, auditor.fix, images.retry)))
        await stack.enter_async_context(_doors(settings, lifecycle, app))
        await (_revive_proxy(settings) if settings.start_proxy else await_proxy(settings.run_dir))
        health.waiting_for.remove("the agent proxy")
        reconciler = Reconciler(
            node,
            lifecycle,
            ending,
            revive_proxy=lambda: _revive_proxy(settings),
            watcher=auditor.watch,
        )
        stack.push_async_callback(reconciler.close)
        await reconciler.round()
        # What was imported until now stays for good, an SDK with some 100,000 objects. Going through it again and
        # again, the garbage collector held up the event loop for more than 100 ms.
        gc.collect()
        gc.freeze()
        health.waiting_for.clear()
        log.info("serving %s on node %s of cluster %s", provider.name, node.scope.node, node.scope.cluster)
        await node.record("", "ServiceStarted", "the service takes calls", version=caa.__version__)
        loops = [reconciler.run(), reload.run(), images.run(reload.take_over)]
        loops += [reports.run()] if reports else []
        loops += [objects.run(clock)] if objects else []
        for endless in loops:
            stack.callback(asyncio.create_task(endless).cancel)
        await _told_to_stop()
        health.waiting_for.append("the service is stopping")


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """One service for each state directory: two would each take the other's work for left-overs."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(state_dir / "serve.lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = f"{str(state_dir)!r} is in use by another `caa serve`; each needs a directory of its own"
            raise ConfigError([Problem("CAA_STATE_DIR", text)]) from None
        yield


def _open_ledger(settings: Settings) -> Ledger:
    try:
        if settings.ledger_url.startswith("sqlite"):
            upgrade(settings.ledger_url)  # a file of our own; a shared database is upgraded by `caa db upgrade`
        return open_ledger(settings.ledger_url)
    except LedgerError as error:
        raise ConfigError([Problem("CAA_LEDGER_URL", str(error))]) from error


def _images(
    settings: Settings, merged: Merged, ledger: Ledger, threads: LedgerThreads, clock: SystemClock
) -> ImageWatch:
    """What has the pod VM image built, where that is possible. Raises ConfigError."""
    cloud = settings.cloud_provider
    publisher = publishers.load(cloud, merged.values) if publishers.supported(cloud) else None
    return ImageWatch(settings, merged.values, os.environ, publisher, ledger, threads, clock)


def _trace_starts(stack: contextlib.AsyncExitStack, settings: Settings, node: Node) -> None:
    """Raises ConfigError."""
    try:
        from caa.traces import Traces
    except ImportError as error:
        text = f"needs the extra tracing: pip install 'peerpod-cloud-adaptor[tracing]' ({error})"
        raise ConfigError([Problem("CAA_TRACES_ENDPOINT", text)]) from error
    scope = node.scope
    traces = Traces(settings.traces_endpoint, provider=node.cloud.name, cluster=scope.cluster, node=scope.node)
    node.watchers.append(traces.on_event)
    stack.push_async_callback(traces.close)


async def _with_image(
    configured: configuring.Configured, images: ImageWatch, values: Mapping[str, str]
) -> configuring.Configured:
    """The configuration with the image that was built here, if it names none. Raises ConfigError."""
    try:
        await images.find()
    except ProviderError as error:
        configured.provider.close()
        raise ConfigError([Problem("CLOUD_PROVIDER", f"{configured.settings.cloud_provider!r}: {error}")]) from error
    with_image = images.overlay(values)
    if with_image is values:
        return configured
    await asyncio.to_thread(configured.provider.close)
    return configuring.build(with_image)


async def _checked(configured: configuring.Configured, images: ImageWatch) -> Provider:
    """The provider, when the cloud has what the configuration names, but for an image that can be built.

    Raises ConfigError.
    """
    settings, provider = configured.settings, configured.provider
    try:
        problems = await asyncio.to_thread(provider.check)
    except ProviderError as error:
        problems = [Problem("CLOUD_PROVIDER", f"{settings.cloud_provider!r}: {error}")]
    if problems and all(problem.image_missing for problem in problems) and images.key:
        log.info("%s", ConfigError(problems))
        images.needed = True
        return provider
    if problems:
        provider.close()
        raise ConfigError(problems)
    return provider


def _node(
    current: Current,
    clock: SystemClock,
    ledger: Ledger,
    ledger_threads: LedgerThreads,
    cloud: Cloud,
    tunnels: Tunnels,
    prices: Prices,
    images: ImageWatch,
) -> Node:
    settings = current.settings
    profile = TlsProfile(settings.tls_min_version, settings.tls_cipher_suites)
    if settings.ca_cert_file:
        tls = AgentTls(None, settings.ca_cert_file, settings.cert_file, settings.cert_key, profile)
    else:
        keys = NodeKeys(settings.state_dir / "tls", clock)
        tls = AgentTls(keys, str(keys.ca_file), str(keys.client_cert_file), str(keys.client_key_file), profile)
    return Node(
        scope=cloud.scope,
        ledger=ledger,
        ledger_threads=ledger_threads,
        cloud=cloud,
        proxy=ProxyControl(str(settings.run_dir)),
        tunnels=tunnels,
        clock=clock,
        tls=tls,
        pods_dir=settings.pods_dir,
        forwarder_port=settings.forwarder_port,
        current=current,
        prices=prices,
        built_image=images.built,
        image_refusal=images.refusal,
    )


async def _revive_proxy(settings: Settings) -> None:
    """Start the agent proxy if none answers and it is ours to start."""
    if settings.start_proxy:
        await ensure_proxy(settings.run_dir, settings.state_dir)


def _kubernetes() -> KubernetesApi:
    """The API server. Raises ConfigError."""
    try:
        from caa.kubernetes.api import KubernetesApi
    except ImportError as error:
        text = f"'true' is not allowed: {error.name} is not installed, which the extra `kubernetes` brings"
        raise ConfigError([Problem("CAA_KUBERNETES", text)]) from error
    return KubernetesApi()


def _reports(api: KubernetesApi, node: Node, objects: ConfigObjects | None) -> KubernetesReports:
    """What tells Kubernetes."""
    from caa.kubernetes.reports import KubernetesReports

    return KubernetesReports(
        api,
        node.ledger,
        node.ledger_threads,
        node.scope,
        node.cloud.name,
        lambda: node.limit,
        node.clock,
        objects.reference if objects else None,
    )


def _pull_secrets(api: KubernetesApi, settings: Settings) -> PullSecrets:
    if not settings.pull_secrets:
        return NoPullSecrets()
    from caa.kubernetes.pullsecrets import KubernetesPullSecrets

    return KubernetesPullSecrets(api)


@contextlib.asynccontextmanager
async def _doors(settings: Settings, lifecycle: Lifecycle, app: ASGIApp) -> AsyncIterator[None]:
    """Both front doors, open."""
    shim_door = Server({**hypervisor_service(lifecycle), **podvminfo_service(lifecycle)})
    rest_door = RestServer(app, settings, browser_login(settings.operator_token_file))
    try:
        await shim_door.listen(str(settings.hypervisor_socket))
    except OSError as error:
        raise ConfigError([Problem("REMOTE_HYPERVISOR_ENDPOINT", str(error))]) from error
    try:
        await rest_door.start()
        yield
    finally:
        await rest_door.stop()
        await shim_door.close(1.0)


async def _told_to_stop() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    # A second signal means now. Whatever is under way is in the ledger.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: os._exit(1))
