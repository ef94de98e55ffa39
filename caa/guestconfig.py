"""The user data of a pod VM: apf.json inside a cloud-config, byte for byte what guests accept. Pure.

The guest parses the cloud-config strictly: any key but `write_files`, `path` and `content` makes it refuse the
whole text and the VM never comes up. Order and omissions in apf.json are those of the incumbent's worker.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from caa.errors import InvalidInputError
from caa.pki import ServerIdentity

APF_PATH = "/run/peerpod/apf.json"
AUTH_PATH = "/run/peerpod/auth.json"
INITDATA_PATH = "/run/peerpod/initdata"
SCRATCH_MARKER_PATH = "/run/peerpod/scratch-space.marker"

FILE_ORDER = (APF_PATH, AUTH_PATH, INITDATA_PATH, SCRATCH_MARKER_PATH)
"""Every file a worker sends, in the order the incumbent's does."""

# The incumbent's limit, and so what guests have been tried with; whatever is longer is left out by both.
AUTH_LIMIT = 12288

INITDATA_ANNOTATION = "io.katacontainers.config.hypervisor.cc_init_data"
INITDATA_ALGORITHMS = ("sha256", "sha384", "sha512")
# What the guest unpacks at most. The largest user data of any cloud holds a fraction of it.
INITDATA_TOML_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file the guest writes before anything else runs."""

    path: str
    content: str = field(repr=False)  # apf.json holds a private key, auth.json passwords


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
    pod_network: Mapping[str, object] | str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> str:
    """The forwarder's configuration. `identity` is None when the image brings its own certificate.

    `pod_network` is the finished object, or its JSON text, and goes in as it is. Without one the incumbent's
    forwarder does not start; ours leaves the network alone. `metadata` is for our guest alone, see
    `caa.guest.metadata`; the incumbent's passes over keys it does not know. Raises ValueError when the text is no JSON
    object.
    """
    network = json.loads(pod_network) if isinstance(pod_network, str) else pod_network
    if network is not None and not isinstance(network, Mapping):
        raise ValueError(f"pod-network is a {type(network).__name__}; allowed: a JSON object")
    document: dict[str, object] = {
        "pod-network": None if network is None else dict(network),
        "pod-namespace": pod_namespace,
        "pod-name": pod_name,
    }
    optional: dict[str, object] = {
        "tls-server-key": identity.key if identity else "",
        "tls-server-cert": identity.certificate if identity else "",
        "tls-client-ca": client_ca,
        "tls-min-version": tls.min_version,
        "tls-cipher-suites": list(tls.cipher_suites),
        "caa-metadata": dict(metadata or {}),
    }
    document |= {key: value for key, value in optional.items() if value}
    # Escaped, for some characters that JSON takes as they are would be line breaks to the guest's YAML parser.
    return json.dumps(document, indent=4)


def auth_json(auths: Mapping[str, str]) -> str:
    """Registry -> base64 of "user:password", as the one line that guests read. "" when there is nothing to send."""
    if not auths:
        return ""
    entries = {registry: {"auth": auths[registry]} for registry in sorted(auths)}
    return json.dumps({"auths": entries}, separators=(",", ":"))


def initdata(toml: str, default: str = "") -> str:
    """What goes into the initdata file: base64 of gzip of `toml`, or `default`, which is such text already.

    `toml` is the decoded text that the shim sends as INITDATA_ANNOTATION. The same text always gives the same bytes.
    Raises InvalidInputError naming the annotation: what the guest would refuse costs a VM to find out.
    """
    if not toml:
        return "".join(default.split())  # a ConfigMap may have it on several lines
    check_initdata(toml.encode("utf-8", "replace"), INITDATA_ANNOTATION)
    return base64.b64encode(gzip.compress(toml.encode(), mtime=0)).decode()


def check_initdata(toml: bytes, key: str) -> None:
    """Raise InvalidInputError naming `key`, what is wrong and what is allowed, but none of the text."""
    if len(toml) > INITDATA_TOML_LIMIT:
        raise InvalidInputError(key, f"{key} has {len(toml)} bytes of TOML; allowed: {INITDATA_TOML_LIMIT}")
    try:
        document = tomllib.loads(toml.decode())
    except (ValueError, RecursionError) as error:
        where = f" ({error})" if isinstance(error, UnicodeDecodeError) else ""
        raise InvalidInputError(key, f"{key} is not TOML{where}") from None
    algorithm = document.get("algorithm")
    if algorithm not in INITDATA_ALGORITHMS:
        shown = repr(algorithm)[:40]
        raise InvalidInputError(key, f"{key}: algorithm is {shown}; allowed: {', '.join(INITDATA_ALGORITHMS)}")
    if not isinstance(document.get("version", ""), str):
        raise InvalidInputError(key, f"{key}: version must be text, such as 0.1.0")
    data = document.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InvalidInputError(key, f"{key}: data must be a table whose values are text, such as aa.toml")


def decode_initdata(text: str, key: str) -> bytes:
    """The TOML in base64 of gzip. Raises InvalidInputError naming `key`."""
    try:
        unpacker = zlib.decompressobj(wbits=31)  # gzip
        toml = unpacker.decompress(base64.b64decode("".join(text.split()), validate=True), INITDATA_TOML_LIMIT + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InvalidInputError(key, f"{key} is not base64 of gzip of TOML: {error}") from None
    if not unpacker.eof and len(toml) <= INITDATA_TOML_LIMIT:
        raise InvalidInputError(key, f"{key} is not base64 of gzip of TOML: it is cut short")
    return toml


def guest_files(*, apf: str, auth: str = "", initdata: str = "", scratch_space: bool = False) -> list[GuestFile]:
    """The files in the order guests know, without those that are empty and have no meaning empty."""
    files = [GuestFile(APF_PATH, apf)]
    if auth:
        files.append(GuestFile(AUTH_PATH, auth))
    if initdata:
        files.append(GuestFile(INITDATA_PATH, initdata))
    if scratch_space:
        files.append(GuestFile(SCRATCH_MARKER_PATH, ""))
    return files


def cloud_config(files: Sequence[GuestFile]) -> bytes:
    """The whole user data. Content is a literal block indented by six; an empty file has no `content` key.

    The guest reads each file with exactly one line feed at its end. Raises ValueError naming the file whose
    content would not come out of a YAML block as it went in.
    """
    lines = ["#cloud-config"]
    if files:
        lines += ["", "write_files:"]
    for file in files:
        _check_block(file)
        lines.append(f"  - path: {file.path}")
        if file.content:
            lines.append("    content: |")
            lines.extend(f"      {line}" for line in file.content.removesuffix("\n").split("\n"))
    return ("\n".join(lines) + "\n").encode()


def _check_block(file: GuestFile) -> None:
    if file.path not in FILE_ORDER:
        raise ValueError(f"path is {file.path[:100]!r}; allowed: {', '.join(FILE_ORDER)}")
    if not file.content:
        return
    lines = file.content.removesuffix("\n").split("\n")
    # The first line settles a block's indentation, and empty lines at its end are not part of it.
    if not lines[0].strip() or lines[0][0].isspace() or not lines[-1].strip():
        raise ValueError(f"{file.path} begins with white space or ends with an empty line; YAML would change it")
    for number, line in enumerate(lines, 1):
        if not line.isascii() or not line.replace("\t", "").isprintable():
            raise ValueError(f"{file.path} line {number} has a character that is not printable ASCII")
