"""The route that shows what a pod sees of its VM's metadata."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from fastapi import APIRouter
from pydantic import Field

from caa.api.rest.routers import KnownId, Reader, errors
from caa.api.rest.schemas import Model
from caa.errors import NotFoundError
from caa.metadata.service import Seen
from caa.sandbox import Sandbox


class Metadata(Protocol):
    """Who answers pods: `caa.metadata.service.MetadataService`."""

    async def seen(self, sandbox: Sandbox) -> Seen:
        """What the sandbox's pod sees. Raises ConflictError."""
        ...


class MetadataView(Model):
    """What a pod reads at 169.254.169.254 and fd00:ec2::254."""

    mode: Literal["pod", "vm", "off"] = Field(description="Who answers the pod: this service, its VM, or nobody.")
    dialect: Literal["aws", "azure", "ibmcloud"] = Field(description="Whose service the answers are like.")
    served: bool = Field(description="Whether this service answers the pod now; false for a sandbox of another node.")
    answers: dict[str, Any] = Field(
        description="What the pod reads, by path: text for aws, JSON for the others. Empty unless the mode is `pod`."
    )


def metadata_router(metadata: Metadata, reader: Reader) -> APIRouter:
    """Instance metadata, as pods see it."""
    router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])

    @router.get("/{id}/metadata", operation_id="getSandboxMetadata", responses=errors(401, 404, 409, 422, 503))
    async def seen(sandbox_id: KnownId) -> MetadataView:
        """What the sandbox's pod sees of its VM at the metadata addresses."""
        record = await reader.sandbox(sandbox_id)
        if record is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id}")
        found = await metadata.seen(record.sandbox)
        return MetadataView(mode=found.mode, dialect=found.dialect, served=found.served, answers=dict(found.document))

    return router
