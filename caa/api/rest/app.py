"""The REST front door as an ASGI application: routes, errors and the description of both."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

import caa
from caa.api.reader import LedgerReader
from caa.api.rest import problems
from caa.api.rest.auditing import Auditor, TrailEvent, audit_router
from caa.api.rest.configuration import Reload, config_router
from caa.api.rest.images import Images, image_router
from caa.api.rest.metadata import Metadata, metadata_router
from caa.api.rest.metrics import Metrics, metrics_router
from caa.api.rest.routers import Health, Lifecycle, health_router, sandbox_router, sizing_router

_DESCRIPTION = (
    "Peer pod sandboxes of this worker node: what runs, and the three verbs Kata's shim has. Errors are RFC 9457."
)


class RestApi(FastAPI):
    """FastAPI whose description names the one error format this service has."""

    def openapi(self) -> dict[str, Any]:
        """OpenAPI 3.1, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            # What no route names as its model: errors, and the lines of a stream.
            for model in (problems.Problem, TrailEvent):
                described = model.model_json_schema(ref_template="#/components/schemas/{model}")
                schema.setdefault("components", {}).setdefault("schemas", {})[model.__name__] = described
        assert self.openapi_schema is not None
        return self.openapi_schema


def build_app(
    lifecycle: Lifecycle,
    reader: LedgerReader,
    health: Health,
    reload: Reload,
    images: Images,
    metadata: Metadata,
    auditor: Auditor,
    metrics: Metrics,
) -> FastAPI:
    """The application. It keeps no state of its own and may be served on several sockets at once."""
    app = RestApi(
        title="Cloud API adaptor",
        version=caa.__version__,
        description=_DESCRIPTION,
        # The interactive pages load scripts from a content delivery network.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    app.include_router(sandbox_router(lifecycle, reader))
    app.include_router(metadata_router(metadata, reader))
    app.include_router(sizing_router(lifecycle))
    app.include_router(config_router(reload))
    app.include_router(image_router(images))
    app.include_router(audit_router(auditor, reader))
    app.include_router(metrics_router(metrics))
    app.include_router(health_router(health))
    return app
