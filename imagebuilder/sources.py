"""Where a pod VM's disk comes from: one line of text, as PODVM_IMAGE_URI or `caa image build --source` give it.

(nothing)                               built here by the recipe (imagebuilder.build)
/path/to/disk, file:///path/to/disk     raw, qcow2 or VHD, told by content; tar, gzip, xz unpacked
https://host/disk#sha256=<hex>          downloaded; http:// as well, for the digest is what counts
oci::<image>[:tag|@digest][::<path>]    an OCI artefact, or an image with the disk in its file system
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from imagebuilder.archive import unpack
from imagebuilder.build import build_raw
from imagebuilder.download import Wanted
from imagebuilder.errors import ImageError
from imagebuilder.files import working
from imagebuilder.formats import check_space, to_raw
from imagebuilder.rawdisk import Demands, Disk, read_disk
from imagebuilder.recipe import Recipe
from imagebuilder.steps import Progress

__all__ = ["Disk", "Progress", "Recipe", "Source", "obtain", "parse"]

ARCHES = ("amd64", "arm64", "s390x")
_FORMS = "a file's absolute path, https://…#sha256=<hex>, or oci::<image>[:tag|@digest][::<path>]"


@dataclass(frozen=True, slots=True)
class Source:
    """A source, taken apart. `kind` is build, file, http or oci; `place` a path, URL or image; the rest as needed."""

    kind: str
    place: str = ""
    path: str = ""  # of oci: "" when none was named
    sha256: str = ""  # of http

    @property
    def name(self) -> str:
        """What people know it by, without anything secret."""
        if self.kind == "http":
            parts = urlsplit(self.place)
            return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
        return self.place or "the recipe's disk"


def parse(text: str) -> Source:
    """Take the text of a source apart. Raises ImageError (InvalidSource) that says what is allowed."""
    text = text.strip()
    if not text:
        return Source("build")
    if text.startswith("oci::"):
        image, _, path = text.removeprefix("oci::").partition("::")
        return _oci(text, image, path)
    if text.startswith("bootc::"):
        raise _invalid(text, "bootc images are not built here; name a disk that bootc-image-builder made of it")
    if text.startswith(("http://", "https://")):
        return _http(text)
    if text.startswith("file://"):
        parts = urlsplit(text)
        text = unquote(parts.path) if parts.netloc in ("", "localhost") else ""
    if not text.startswith("/"):
        raise _invalid(text, f"must be {_FORMS}")
    return Source("file", text)


def _oci(text: str, image: str, path: str) -> Source:
    if not re.fullmatch(r"[\w.-]+(:\d+)?(/[\w.-]+)+(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", image, re.ASCII):
        raise _invalid(text, "must name registry and image, as in oci::quay.io/org/image:tag::/path/in/it")
    if ".." in path.split("/"):
        raise _invalid(text, "the path must not have '..' in it")
    return Source("oci", image, path)


def _http(text: str) -> Source:
    url, _, fragment = text.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    shown = Source("http", url).name
    if "@" in urlsplit(url).netloc:
        raise _invalid(shown, "must not have a user or a password in it, for it is shown to many")
    if match is None:
        raise _invalid(shown, "must end in #sha256= and the 64 hex digits of the file's digest")
    return Source("http", url, sha256=match[1].lower())


def _invalid(text: str, why: str) -> ImageError:
    return ImageError("InvalidSource", f"image source {text!r} is not allowed: {why}")


def obtain(
    source: str,
    workdir: Path,
    *,
    arch: str,
    progress: Progress,
    recipe: Recipe | None = None,
    auth_file: Path | None = None,
) -> Disk:
    """Make the disk of a source at workdir/disk.raw, and look at it. Raises ImageError; nothing new is left then.

    `recipe` is needed for the source "" (built here); its verity and fips must hold for any. `auth_file` has a
    registry's credentials in the form of Docker and Podman, for oci. In `workdir` some 3 GiB must be free to build, and
    the disk twice to fetch one.
    """
    if arch not in ARCHES:
        raise ImageError("InvalidSource", f"architecture {arch!r} is not allowed: {', '.join(ARCHES)}")
    parsed = parse(source)
    with working(workdir) as work:
        raw, measured = work / "disk.raw", dict[str, str]()
        match parsed.kind:
            case "build":
                if recipe is None:
                    raise ImageError("InvalidSource", f"an image source is required: {_FORMS}")
                measured.update(build_raw(raw, work, recipe, arch, progress))
            case kind:
                fetched = _fetch(parsed, work, arch=arch, auth_file=auth_file, progress=progress)
                unpacked = unpack(fetched, parsed.name, work / "unpacked")
                if kind != "file" and unpacked != fetched:
                    fetched.unlink()  # room for the raw disk
                to_raw(unpacked, parsed.name, raw, progress)
        demands = Demands(arch, recipe.verity, recipe.fips) if recipe else Demands(arch)
        disk = read_disk(raw, parsed.name, demands, progress)
        target = workdir / "disk.raw"
        raw.replace(target)
    return Disk(target, disk.size, disk.arch, disk.digest, {**disk.measurements, **measured})


def _fetch(source: Source, work: Path, *, arch: str, auth_file: Path | None, progress: Progress) -> Path:
    """The file that holds the disk, in whatever format and packing."""
    if source.kind == "file":
        return _file(source.place)
    # Imported here: their clients are only needed now, and oras is an extra.
    if source.kind == "oci":
        from imagebuilder import ocisource

        return ocisource.fetch(source.place, source.path, work, arch=arch, auth_file=auth_file, progress=progress)
    from imagebuilder import httpsource

    out = work / "fetched"
    wanted = Wanted(
        source.name, source.sha256, progress, lambda size: check_space(work, size, f"fetching {source.name}")
    )
    with out.open("wb") as file:
        file.writelines(httpsource.fetch(source.place, wanted))
    return out


def _file(place: str) -> Path:
    path = Path(place)
    if not path.is_file():
        found = "is a directory" if path.is_dir() else "is a device" if path.exists() else "does not exist"
        raise ImageError("SourceNotFound", f"{place} {found}; a disk's file is needed")
    return path
