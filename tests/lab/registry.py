"""A real OCI registry (Debian's docker-registry) that asks for a password, and what tests push to it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from tests.lab.ports import held_port
from tests.lab.tokens import ISSUER, SERVICE, TokenServer

USER, PASSWORD = "puller", "a word nobody else knows"
# Of that password, by bcrypt with the least rounds, as htpasswd would write it.
_HTPASSWD = "puller:$2b$04$aLrvWIeUGl1wgOH0Z7goJ.bfy/dM6wIChIsiiiqcEUGI1cEt3ejwC\n"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DISK = "application/vnd.example.disk"
_START_SECONDS = 60


class Registry:
    """A context. `host` is what images begin with, `auth_file` holds the credentials, `directory` its files.

    It asks for the password itself, or with `tokens` for what these are given out for.
    """

    def __init__(self, directory: Path, tokens: TokenServer | None = None) -> None:
        self.directory = directory
        self._tokens = tokens
        self.auth_file = directory / "auth.json"

    def __enter__(self) -> Registry:
        self.host = f"127.0.0.1:{held_port()}"
        (self.directory / "htpasswd").write_text(_HTPASSWD)
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}},
            "http": {"addr": self.host},
            "auth": self._auth(),
        }
        (self.directory / "config.yml").write_text(json.dumps(config))
        self.write_auth({self.host: PASSWORD})
        self._log = (self.directory / "log").open("wb")
        command = ["docker-registry", "serve", str(self.directory / "config.yml")]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env={"PATH": os.environ["PATH"]})
        self._client = httpx.Client(base_url=f"http://{self.host}/v2/", auth=self._authorize, timeout=30)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                assert self._client.get("").status_code == 200
            except httpx.TransportError:
                assert self._process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _auth(self) -> dict[str, Any]:
        if self._tokens is None:
            return {"htpasswd": {"realm": "lab", "path": str(self.directory / "htpasswd")}}
        (self.directory / "tokens.pem").write_bytes(self._tokens.pem)
        trusted = str(self.directory / "tokens.pem")
        return {"token": {"realm": self._tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": trusted}}

    def _authorize(self, request: httpx.Request) -> httpx.Request:
        """For what tests push, and for nothing else."""
        if self._tokens is None:
            credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            request.headers["Authorization"] = f"Basic {credentials}"
        else:
            name = re.sub(r"^/v2/|/(blobs|manifests)/.*", "", request.url.path)
            request.headers["Authorization"] = f"Bearer {self._tokens.token(f'repository:{name}:pull,push')}"
        return request

    def write_auth(self, passwords: Mapping[str, str]) -> None:
        """Write `auth_file`: place -> password."""
        auths = {
            place: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}
            for place, password in passwords.items()
        }
        self.auth_file.write_text(json.dumps({"auths": auths}))

    def push_artefact(self, name: str, tag: str, files: Mapping[str, bytes]) -> str:
        """Files by their titles; returns the digest of the manifest."""
        layers = [
            self._blob(name, content, DISK) | {"annotations": {"org.opencontainers.image.title": title}}
            for title, content in files.items()
        ]
        return self._manifest(name, tag, self._blob(name, b"{}", "application/vnd.oci.empty.v1+json"), layers)

    def push_image(self, name: str, tag: str, layers: list[Mapping[str, bytes]]) -> str:
        """An image with the files of each layer, from the lowest up; returns the digest of the manifest."""
        pushed = [self._blob(name, layer_of(files), LAYER) for files in layers]
        return self._manifest(name, tag, self._blob(name, b'{"os": "linux"}', IMAGE_CONFIG), pushed)

    def push_index(self, name: str, tag: str, digests: Mapping[str, str]) -> None:
        """An index: architecture -> digest of a manifest that is there."""
        manifests = []
        for arch, digest in digests.items():
            size = len(self._client.get(f"{name}/manifests/{digest}", headers={"Accept": MANIFEST}).content)
            platform = {"os": "linux", "architecture": arch}
            manifests.append({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform})
        self._put(name, tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})

    def damage(self, digest: str) -> None:
        """Change a byte of a blob in the registry's files."""
        path = next(
            (self.directory / "data").glob(f"docker/registry/v2/blobs/sha256/*/{digest.partition(':')[2]}/data")
        )
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def _manifest(self, name: str, tag: str, config: Mapping[str, Any], layers: list[dict[str, Any]]) -> str:
        return self._put(name, tag, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})

    def _put(self, name: str, tag: str, manifest: Mapping[str, Any]) -> str:
        headers = {"Content-Type": manifest["mediaType"]}
        answer = self._client.put(f"{name}/manifests/{tag}", content=json.dumps(manifest), headers=headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["Docker-Content-Digest"]

    def _blob(self, name: str, content: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = self._client.post(f"{name}/blobs/uploads/")
        place = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
        assert self._client.put(place, content=content).status_code == 201
        return {"mediaType": media_type, "digest": digest, "size": len(content)}


def layer_of(files: Mapping[str, bytes]) -> bytes:
    """A layer of an image. A name that ends in "@" is a symbolic link to the content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("@"))
            if name.endswith("@"):
                member.type, member.linkname = tarfile.SYMTYPE, content.decode()
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue(), 1)
