"""The keys of the pod VM image's disk: where it comes from and how it is built. Read when an image is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caa.settingtypes import AbsolutePath
from providers.keys import Flag, Keys


def _yes_or_no(value: Any) -> Any:
    """The incumbent's ConfigMaps have both spellings."""
    words = {"yes": "true", "no": "false"}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


class ImageKeys(Keys):
    """What `caa image build` and the service build images from."""

    image_source: str = Field(
        "",
        alias="PODVM_IMAGE_URI",
        description="The disk that pod VM images are made from: oci::<image>[:tag|@digest][::<path>], "
        "https://…#sha256=<hex>, or a file's absolute path (raw, qcow2, VHD). Without it a Debian is built here.",
    )
    image_arch: Literal["amd64", "arm64", "s390x"] = Field(
        "amd64", alias="CAA_IMAGE_ARCH", description="The architecture that the disk must be for."
    )
    registry_auth_file: AbsolutePath | None = Field(
        None,
        alias="REGISTRY_AUTH_FILE",
        description="Pull secrets for PODVM_IMAGE_URI, a file as Docker and Podman write it. Not readable by others.",
    )
    payload: AbsolutePath | None = Field(
        None,
        alias="PODVM_PAYLOAD",
        description="Directory or tar archive laid over the root of pod VM images that are built here, such as with "
        "a kata-agent; without one the image has a stand-in agent.",
    )
    image_verity: Flag = Field(
        False,
        alias="CAA_IMAGE_VERITY",
        description="The root is read-only, each block checked by dm-verity, and what is written to it is kept in "
        "memory: of images that are built here. A disk from elsewhere must have such a root.",
    )
    boot_fips: Annotated[Flag, BeforeValidator(_yes_or_no)] = Field(
        False,
        alias="BOOT_FIPS",
        description="Images that are built here start the kernel in FIPS mode; a disk from elsewhere must do so. "
        "May be yes or no.",
    )
