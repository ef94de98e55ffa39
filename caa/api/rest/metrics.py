"""The route that Prometheus reads."""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter, Request, Response

from caa.api.rest.routers import errors


class Metrics(Protocol):
    """The metrics: `caa.metrics.Metrics`."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything, and its content type."""
        ...


def metrics_router(metrics: Metrics) -> APIRouter:
    """The metrics."""
    router = APIRouter(tags=["service"])

    @router.get(
        "/metrics",
        operation_id="metrics",
        response_class=Response,
        responses={
            200: {
                "description": "In Prometheus' text format, or OpenMetrics where that is asked for.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **errors(401, 503),
        },
    )
    async def show(request: Request) -> Response:
        """Counters, gauges and histograms of this node."""
        body, content_type = await metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return router
