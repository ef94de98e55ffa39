"""The user data of a pod VM: apf.json inside a cloud-config, byte for byte what guests accept. Pure.

The guest parses the cloud-config strictly: any key but `write_files`, `path` and `content` makes it refuse the
whole text and the VM never comes up. Order and omissions in apf.json are those of the incumbent's worker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from caa.pki import ServerIdentity

APF_PATH = "/run/peerpod/apf.json"
INITDATA_PATH = "/run/peerpod/initdata"
SCRATCH_MARKER_PATH = "/run/peerpod/scratch-space.marker"


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file the guest writes before anything else runs."""

    path: str
    content: str


@dataclass(frozen=True, slots=True)
class TlsProfile:
    """What the forwarder in the VM may speak; empty means its own default."""

    min_version: str = ""
    cipher_suites: tuple[str, ...] = ()


def apf_json(
    *,
    pod_namespace: str,
    pod_name: str,
    identity: ServerIdentity | None,
    client_ca: str,
    tls: TlsProfile,
) -> str:
    """The forwarder's configuration. `identity` is None when the image brings its own certificate."""
    document: dict[str, object] = {"pod-network": None, "pod-namespace": pod_namespace, "pod-name": pod_name}
    optional: dict[str, object] = {
        "tls-server-key": identity.key if identity else "",
        "tls-server-cert": identity.certificate if identity else "",
        "tls-client-ca": client_ca,
        "tls-min-version": tls.min_version,
        "tls-cipher-suites": list(tls.cipher_suites),
    }
    document |= {key: value for key, value in optional.items() if value}
    return json.dumps(document, indent=4, ensure_ascii=False)


def cloud_config(files: Sequence[GuestFile]) -> bytes:
    """The whole user data. Content is a literal block indented by six; an empty file has no `content` key."""
    lines = ["#cloud-config", "", "write_files:"]
    for file in files:
        lines.append(f"  - path: {file.path}")
        if file.content:
            lines.append("    content: |")
            lines.extend(f"      {line}" for line in file.content.removesuffix("\n").split("\n"))
    return ("\n".join(lines) + "\n").encode()
