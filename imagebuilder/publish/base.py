"""The publisher contract: how a raw disk becomes an image of a cloud, over any number of crashes, exactly once.

A publisher knows one cloud. Whatever it makes has a name that follows from the disk's content, and tags that say whose
it is, both set in the call that makes it. So a publisher that comes after a crash finds what there is by name and tag,
and what one forgot to write down is found all the same. It keeps nothing itself: what it must remember it hands to
`Work`, which writes it down before it returns.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from providers.base import InvalidRequestError

PHASES = ("source", "convert", "upload", "import", "register", "switch")
"""What a build goes through, in order. Not every cloud wants another format, nor copies the disk itself (`import`)."""

# Below the prefix that all tags of ours have.
TAG_IMAGE = "peerpods.caa/image"
TAG_CLUSTER = "peerpods.caa/cluster"

# 64 bits of the digest: enough that no two images of a cluster ever meet, short enough for every cloud's names.
_DIGEST_CHARACTERS = 16
# 63 less "podvm-", the digest, and a hash that tells clusters apart whose names had to be changed.
_LABEL_CHARACTERS = 63 - 6 - 17 - 7


class Content(Protocol):
    """The disk to publish: `imagebuilder.sources.Disk`."""

    @property
    def path(self) -> Path:
        """Raw and sparse."""
        ...

    @property
    def size(self) -> int:
        """Bytes, holes included."""
        ...

    @property
    def arch(self) -> str:
        """amd64, arm64 or s390x."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of the raw content, hex."""
        ...


@dataclass(frozen=True, slots=True)
class ImageName:
    """What an image and everything that came with it is called. The same disk in the same cluster: the same name."""

    cluster: str
    digest: str

    def __str__(self) -> str:
        return f"podvm-{self.cluster}-{self.digest[:_DIGEST_CHARACTERS]}"

    @property
    def label(self) -> str:
        """The same where names are made of lower-case letters, digits and hyphens, and have at most 63 of them."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.cluster.lower()).strip("-")[:_LABEL_CHARACTERS].strip("-")
        if plain != self.cluster:  # so that no two clusters have one
            plain += "-" + hashlib.sha256(self.cluster.encode()).hexdigest()[:6]
        return f"podvm-{plain}-{self.digest[:_DIGEST_CHARACTERS]}"

    @property
    def tags(self) -> dict[str, str]:
        """Of all that is made. Nothing without them is ever deleted."""
        return {"Name": str(self), TAG_CLUSTER: self.cluster, TAG_IMAGE: self.digest}


class Work(Protocol):
    """One build under way: what a publisher may know of it, and where it writes down what it did.

    Every method may raise what ends the build: the lease is lost, somebody cancelled, the phase took too long.
    """

    @property
    def token(self) -> str:
        """Unique to this build, for idempotency tokens. Stays the same over crashes and hand-overs."""
        ...

    @property
    def resources(self) -> Mapping[str, str]:
        """What `note` wrote down: kind -> the cloud's id."""
        ...

    @property
    def blocks(self) -> bytes:
        """What `save_blocks` wrote down last; b"" at first."""
        ...

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """One of PHASES begins; `total` in bytes, if it is known, of which `done` were done before."""
        ...

    def progress(self, done: int) -> None:
        """Bytes of the phase that are done. Cheap; need not be on disk when it returns."""
        ...

    def note(self, kind: str, identity: str) -> None:
        """Write down a resource, or with "" that it is gone. On disk when it returns."""
        ...

    def save_blocks(self, blocks: bytes, done: int) -> None:
        """Write down which parts of the disk the cloud has, and the bytes of it. On disk when it returns."""
        ...

    def check(self) -> None:
        """Raise when the build must end. Called between any two steps."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait, and check."""
        ...


class Publisher(Protocol):
    """One cloud. Every method may be repeated, and called by another process than the one before."""

    key: str
    """The configuration key that names the image."""
    latest_key: str
    """The key under which the id of the newest image of ours is kept, for people; "" if there is none."""

    @property
    def account(self) -> str:
        """Where images are, such as aws/eu-west-1: the same text for all who share them. Raises ProviderError."""
        ...

    def configured(self) -> str:
        """The image that is to be used and not to be built; "" when it is for the builder to say.

        Whatever a user named is taken for there, where the cloud gives images their ids. Where people give them their
        names (libvirt), one that is missing is to be built under its name.
        """
        ...

    def check(self) -> None:
        """Raise ConfigError for what the configuration lacks. Nothing is asked of the cloud."""
        ...

    def publish(self, disk: Content, name: ImageName, work: Work) -> str:
        """Make the image and return its id, when pod VMs can be launched from it. Raises ProviderError."""
        ...

    def exists(self, image_id: str) -> bool:
        """Whether the cloud has this image, whole."""
        ...

    def in_use(self, image_id: str) -> bool:
        """Whether something that runs would break without the image."""
        ...

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """Remove the image and everything that came with it: what is noted, and what is found by name and tag.

        Only what has our tags. Absent is done. Raises ProviderError.
        """
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


def arch_of(disk: Content, names: Mapping[str, str], cloud: str) -> str:
    """The cloud's word for the disk's architecture. Raises InvalidRequestError (ArchUnsupported)."""
    if disk.arch not in names:
        raise InvalidRequestError(
            "ArchUnsupported", f"the disk is for {disk.arch!r}, and {cloud} runs {', '.join(sorted(names))} only"
        )
    return names[disk.arch]
