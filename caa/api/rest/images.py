"""The routes of pod VM images that are built here."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from fastapi import APIRouter
from pydantic import Field

from caa.api.rest.routers import errors
from caa.api.rest.schemas import Model
from caa.images.image import OPEN_STATES, ImageState, PodVmImage, described


class Images(Protocol):
    """`caa.images.watch.ImageWatch`."""

    @property
    def key(self) -> str: ...

    @property
    def image_id(self) -> str: ...

    async def images(self) -> list[PodVmImage]: ...

    async def retry(self) -> PodVmImage: ...


class ImageView(Model):
    """An image that was built for this cluster, or is being built."""

    id: str = Field(description="Of the build; not the cloud's.")
    image: str | None = Field(description="The cloud's id; null until the image is there.")
    state: ImageState
    account: str = Field(description="Where it is, such as aws/eu-west-1.")
    source: str = Field(description="What it was made from.")
    digest: str | None = Field(description="sha256 of the disk.")
    arch: str | None
    phase: str | None = Field(description="Of a build: source, convert, upload, import, register or switch.")
    step: str | None = Field(description="What is done of the phase just now, such as fetch or install packages.")
    percent: int | None = Field(description="Of the phase; null when that cannot be told.")
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: int
    seconds_remaining: int | None
    attempts: int
    failures: int = Field(description="In a row.")
    retry_at: datetime | None
    reason: str | None = Field(description="A stable CamelCase word for why it failed.")
    failure: str | None
    resources: dict[str, str] = Field(description="What it brought: kind to the cloud's id.")
    measurements: dict[str, str] = Field(description="Digests for attestation, by name.")
    created_at: datetime
    changed_at: datetime


class ImageStatus(Model):
    """Which image pod VMs boot, and the one that is being built."""

    key: str = Field(description="The configuration key that names the image; empty where none can be built.")
    ready: ImageView | None = Field(description="The image of ours in use; null when the configuration names one.")
    building: ImageView | None = Field(description="What is being built, or failed.")


class ImageList(Model):
    """Every image that was built for this cluster, oldest first."""

    images: list[ImageView]


def image_router(images: Images) -> APIRouter:
    """Pod VM images."""
    router = APIRouter(prefix="/v1", tags=["images"])

    @router.get("/images", operation_id="listImages", responses=errors(401, 503))
    async def list_images() -> ImageList:
        """Every image that was built for this cluster, those that are gone included."""
        return ImageList(images=[_view(image) for image in await images.images()])

    @router.get("/image/status", operation_id="getImageStatus", responses=errors(401, 503))
    async def status() -> ImageStatus:
        """Which image pod VMs boot, and how far the one is that is being built."""
        found = await images.images()
        ready = next((one for one in found if one.state is ImageState.READY), None)
        building = next((one for one in found if one.state in OPEN_STATES), None)
        return ImageStatus(
            key=images.key, ready=_view(ready) if ready else None, building=_view(building) if building else None
        )

    @router.post("/image/retry", operation_id="retryImage", status_code=202, responses=errors(401, 404, 503))
    async def retry() -> ImageView:
        """Build the image that failed once more."""
        return _view(await images.retry())

    return router


def _view(image: PodVmImage) -> ImageView:
    return ImageView(**described(image))
