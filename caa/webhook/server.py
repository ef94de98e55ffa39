"""The webhook's HTTPS server, whose certificate is exchanged while it serves."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import tempfile
from pathlib import Path

import httpx2
import uvicorn
from lightkube import ApiError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from caa.clock import Clock
from caa.webhook.certificates import Certificates, Pki
from caa.webhook.review import BadReviewError, answer

log = logging.getLogger(__name__)

# How soon a replica sees what another renewed; a renewal leaves ten days for it.
LOOK_SECONDS = 60.0
# A review holds the pod twice, and an object has 1.5 MiB at most in etcd.
LARGEST_BYTES = 8 << 20
_PASSING = (ApiError, httpx2.HTTPError, OSError)


def build_app(runtime_class: str) -> Starlette:
    """The application, without TLS."""

    async def mutate(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BYTES:
                return PlainTextResponse("too large", 413)
        try:
            return JSONResponse(answer(bytes(body), runtime_class))
        except BadReviewError as error:
            return PlainTextResponse(str(error), 400)

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/mutate-v1-pod", mutate, methods=["POST"]),
            Route("/livez", healthy),
            Route("/readyz", healthy),
        ]
    )


class Tls:
    """One context for the server's life. New connections get the certificate that was taken last."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._taken: Pki | None = None

    def take(self, pki: Pki) -> None:
        """Serve with it from now on."""
        if pki == self._taken:
            return
        # OpenSSL reads keys from files only: this one is ours alone and gone at once.
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:  # noqa: S108
            path = Path(directory) / "tls.pem"
            path.touch(mode=0o600)
            path.write_text(pki.key + pki.certificate)
            self.context.load_cert_chain(path)
        self._taken = pki


async def keep_current(certificates: Certificates, tls: Tls, clock: Clock) -> None:
    """Take over what is renewed, for ever. What the API server does not answer is asked again later."""
    while True:
        await clock.sleep(LOOK_SECONDS)
        try:
            tls.take(await certificates.current())
        except _PASSING as error:
            log.warning("the webhook's certificates could not be looked at: %s", error)


async def first(certificates: Certificates, clock: Clock) -> Pki:
    """What to begin with; waits for an API server that does not answer."""
    while True:
        try:
            return await certificates.current()
        except _PASSING as error:
            log.warning("no certificates yet: %s", error)
        await clock.sleep(1.0)


async def serve(host: str, port: int, runtime_class: str, certificates: Certificates, clock: Clock) -> None:
    """Until SIGTERM. Not ready before the API server trusts the certificate."""
    tls = Tls()
    tls.take(await first(certificates, clock))
    config = uvicorn.Config(
        build_app(runtime_class), host=host, port=port, lifespan="off", ws="none", log_config=None,
        access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    config.load()
    config.ssl = tls.context
    keeper = asyncio.create_task(keep_current(certificates, tls, clock))
    try:
        log.info("sizing pods of the class %s on port %d", runtime_class, port)
        await uvicorn.Server(config).serve()
    finally:
        keeper.cancel()
