"""`caa webhook`: the admission webhook of peer pods."""

from __future__ import annotations

import argparse
from collections.abc import Mapping


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.add_argument("--host", default="", help="address to listen on; all of them by default")
    parser.add_argument("--port", type=int, default=9443, help="HTTPS port")
    parser.add_argument("--runtime-class", default="kata-remote", help="the class whose pods are peer pods")
    parser.add_argument("--namespace", help="its own; that of the container's service account by default")
    parser.add_argument("--service", default="caa-webhook", help="the Service that the API server calls")
    parser.add_argument("--secret", default="caa-webhook-tls", help="Secret that the replicas' certificates are in")
    parser.add_argument("--configuration", default="caa-webhook", help="its MutatingWebhookConfiguration")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM."""
    import asyncio

    from lightkube import AsyncClient

    from caa.clock import SystemClock
    from caa.logs import set_up_logging
    from caa.webhook.certificates import Certificates
    from caa.webhook.server import serve

    set_up_logging("console", "INFO")

    async def main() -> None:
        client = AsyncClient(namespace=args.namespace)
        clock = SystemClock()
        certificates = Certificates(
            client,
            clock,
            namespace=client.namespace,
            secret=args.secret,
            service=args.service,
            configuration=args.configuration,
        )
        await serve(args.host, args.port, args.runtime_class, certificates, clock)

    asyncio.run(main())
    return 0
