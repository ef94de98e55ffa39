"""A disk from an OCI registry: an artefact that is the disk, or an image with the disk as a file of its file system.

The registry is spoken to by oras, which is loaded here only: it is an extra.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebuilder.archive import extract
from imagebuilder.download import CutError, Wanted, download, refused
from imagebuilder.errors import ImageError, PassingImageError
from imagebuilder.formats import check_space
from imagebuilder.steps import Progress

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
# Where the incumbent's builder looks in an image when no path is named.
DEFAULT_PATH = "/image/podvm.qcow2"
_TITLE = "org.opencontainers.image.title"
# A manifest is some KB of JSON; registries take 4 MiB at most.
_MAX_MANIFEST_BYTES = 4 << 20
# Silence for so long is a broken connection.
_TIMEOUT = (10.0, 30.0)
_PIECE = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class _Layer:
    digest: str
    media_type: str
    title: str


@dataclass(frozen=True, slots=True)
class _Reply:
    response: Any

    @property
    def status(self) -> int:
        return int(self.response.status_code)

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self.response.headers.items()}

    def pieces(self) -> Iterator[bytes]:
        from requests import RequestException

        try:
            yield from self.response.iter_content(_PIECE)
        except (RequestException, OSError) as error:
            raise CutError(type(error).__name__) from None


class _Repository:
    """One repository of a registry, with the credentials for it."""

    def __init__(self, image: str, auth_file: Path | None) -> None:
        try:
            import oras.logger
            from oras.provider import Registry
            from requests.adapters import HTTPAdapter
        except ImportError:
            raise ImageError("MissingTool", "sources of oci:: need the extra 'oci': pip install oras") from None
        oras.logger.setup_logger(quiet=True)  # it would print what we tell ourselves

        class Patient(HTTPAdapter):
            """Without time limits of its own requests waits for ever."""

            def send(self, *args: Any, **kwargs: Any) -> Any:
                return super().send(*args, **{**kwargs, "timeout": _TIMEOUT})

        host = image.partition("/")[0]
        insecure = host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK
        scheme = "http" if insecure else "https"

        def connect(backend: str) -> Any:
            registry = Registry(insecure=insecure, auth_backend=backend)
            registry.session.mount(f"{scheme}://", Patient())
            return registry

        self._registry = connect("token")
        self.container = self._registry.get_container(image)
        base = f"{scheme}://{self.container.registry}/v2/"
        self._url = f"{base}{self.container.api_prefix}"
        credentials = find_credentials(auth_file, f"{self.container.registry}/{self.container.api_prefix}")
        if credentials:
            if self._wants_basic(base, image):
                self.close()
                self._registry = connect("basic")
            self._registry.auth.set_basic_auth(*credentials)

    def _wants_basic(self, url: str, image: str) -> bool:
        from requests import RequestException

        try:
            with self._registry.session.get(url) as answer:
                return str(answer.headers.get("Www-Authenticate", "")).lower().startswith("basic")
        except RequestException as error:
            raise PassingImageError("SourceUnavailable", f"{image} cannot be read: {type(error).__name__}") from None

    def get(self, place: str, accept: tuple[str, ...] = (), offset: int = 0) -> Any:
        """An answer, its body still to come. Raises CutError, ImageError."""
        from requests import RequestException
        from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

        headers = {"Accept": ", ".join(accept)} if accept else {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        # Without oras' own repetitions: they take two minutes over a wrong password.
        ask = self._registry.do_request.__wrapped__
        try:
            return ask(self._registry, f"{self._url}/{place}", "GET", headers=headers, stream=True)
        # What it says when it finds no way to authenticate.
        except (MissingSchema, InvalidSchema, InvalidURL, AttributeError, KeyError):
            raise ImageError("SourceDenied", f"{self.container} may not be read with these credentials") from None
        except RequestException as error:
            raise CutError(type(error).__name__) from None
        except ValueError:
            raise ImageError("SourceDenied", f"{self.container} may not be read with these credentials") from None

    def close(self) -> None:
        """Give back the connections."""
        self._registry.session.close()


def fetch(image: str, path: str, work: Path, *, arch: str, auth_file: Path | None, progress: Progress) -> Path:
    """A file in `work` that holds the disk, in whatever format it was. Raises ImageError."""
    with closing(_Repository(image, auth_file)) as repository:
        return _fetch(repository, image, path, work, arch, progress)


def _fetch(repository: _Repository, image: str, path: str, work: Path, arch: str, progress: Progress) -> Path:
    try:
        manifest = _manifest(repository, image, arch)
        layers = [
            _Layer(
                str(one["digest"]), str(one.get("mediaType", "")), str((one.get("annotations") or {}).get(_TITLE, ""))
            )
            for one in manifest["layers"]
        ]
        config = str((manifest.get("config") or {}).get("mediaType", ""))
    except (KeyError, TypeError, AttributeError):
        raise ImageError("NotADisk", f"{image} has a manifest that cannot be understood") from None
    if ".image." in config and layers and all(".tar" in one.media_type for one in layers):
        return _from_image(repository, image, layers, path or DEFAULT_PATH, work, progress)
    return _from_artefact(repository, image, layers, path, work, progress)


def _manifest(repository: _Repository, image: str, arch: str) -> dict[str, Any]:
    reference = repository.container.digest or repository.container.tag
    found = _json(repository, image, reference)
    if "manifests" in found:
        for one in found["manifests"]:
            if one.get("platform", {}).get("architecture") == arch:
                found = _json(repository, image, str(one["digest"]))
                break
        else:
            there = ", ".join(sorted({str(m.get("platform", {}).get("architecture")) for m in found["manifests"]}))
            raise ImageError("WrongArchitecture", f"{image} is there for {there}; what is asked for is {arch}")
    return found


def _json(repository: _Repository, image: str, reference: str) -> dict[str, Any]:
    try:
        with repository.get(f"manifests/{reference}", (*_MANIFESTS, *_INDEXES)) as response:
            if error := refused(response.status_code, image):
                raise error
            content = b""
            for piece in _Reply(response).pieces():
                content += piece
                if len(content) > _MAX_MANIFEST_BYTES:
                    raise ImageError("TooLarge", f"the manifest of {image} has more than {_MAX_MANIFEST_BYTES} bytes")
    except CutError as error:
        raise PassingImageError("SourceUnavailable", f"{image} cannot be read: {error}") from None
    if reference.startswith("sha256:") and hashlib.sha256(content).hexdigest() != reference.removeprefix("sha256:"):
        raise ImageError("DigestMismatch", f"the registry answered with another manifest than {reference} for {image}")
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ImageError("NotADisk", f"{image} has a manifest that is no JSON object")
    return found


def _from_artefact(
    repository: _Repository, image: str, layers: list[_Layer], path: str, work: Path, progress: Progress
) -> Path:
    wanted = path.strip("/")
    chosen = [one for one in layers if wanted and one.title.strip("/") == wanted] or layers
    if len(chosen) != 1:
        titles = ", ".join(one.title or one.digest for one in layers) or "nothing"
        raise ImageError("NotADisk", f"{image} is an artefact of {titles}; name one of these, as in oci::{image}::NAME")
    out = work / "layer"
    with out.open("wb") as file:
        file.writelines(_blob(repository, image, chosen[0], work, progress))
    return out


def _from_image(
    repository: _Repository, image: str, layers: list[_Layer], path: str, work: Path, progress: Progress
) -> Path:
    """From the topmost layer down: the first that has the file, or says that it was deleted, decides."""
    out = work / "layer"
    for layer in reversed(layers):
        if layer.media_type.endswith("zstd"):
            raise ImageError("NotADisk", f"{image} has layers packed by zstd, which are not read; pack them by gzip")
        if extract(_blob(repository, image, layer, work, progress), path, out, f"{image}::{path}"):
            return out
    raise ImageError("SourceNotFound", f"{image} has no file {path}")


def _blob(repository: _Repository, image: str, layer: _Layer, work: Path, progress: Progress) -> Iterator[bytes]:
    algorithm, _, digest = layer.digest.partition(":")
    if algorithm != "sha256":
        raise ImageError("NotADisk", f"{image} has a layer with the digest {layer.digest}; allowed: sha256")

    @contextmanager
    def open_at(offset: int) -> Iterator[_Reply]:
        response = repository.get(f"blobs/{layer.digest}", offset=offset)
        try:
            yield _Reply(response)
        finally:
            response.close()

    name = f"layer {layer.digest[:19]} of {image}"
    wanted = Wanted(name, digest, progress, lambda size: check_space(work, size, f"fetching {name}"))
    return download(open_at, wanted)


def find_credentials(auth_file: Path | None, repository: str) -> tuple[str, str] | None:
    """User and password for a repository (with its registry) from a file of Docker's or Podman's form.

    The entry that names the longest part of it decides. None when there is none. Raises ImageError (InvalidAuthFile).
    """
    if auth_file is None:
        return None
    try:
        entries = json.loads(auth_file.read_bytes())["auths"]
        parts = repository.split("/")
        places = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        for place in (*places, f"https://{parts[0]}", f"https://{parts[0]}/v1/", f"https://{parts[0]}/v2/"):
            if place in entries:
                return _user_and_password(entries[place])
    except OSError as error:
        raise ImageError("InvalidAuthFile", f"{auth_file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):  # never with what is in it
        raise ImageError(
            "InvalidAuthFile", f'{auth_file} is not of the form {{"auths": {{"registry": {{"auth": …}}}}}}'
        ) from None
    return None


def _user_and_password(entry: Mapping[str, str]) -> tuple[str, str] | None:
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        return user, password
    return (entry["username"], entry["password"]) if entry.get("username") else None
