"""apf.json: what the worker tells the forwarder of this pod VM.

Keys match whatever their case, as in the Go program that wrote this format first; unknown keys are somebody else's.
"""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Any, NamedTuple

from caa.guest.log import log

CONFIG = Path("/run/peerpod/apf.json")
# Where an image that brings its own certificates has them, for a worker that sends none.
IMAGE_CERTIFICATES = Path("/etc/certificates")
MAX_BYTES = 256 << 10  # as the user data it comes in


class ConfigError(Exception):
    """apf.json cannot work. Names the key, never its value: the values are keys of another kind."""


class Identity(NamedTuple):
    """PEM texts: what the forwarder shows, and the only certificate (or its issuer) it lets in."""

    certificate: str
    key: str
    client_ca: str
    minimum: ssl.TLSVersion
    ciphers: tuple[str, ...] = ()  # OpenSSL's names; empty means its own choice

    def __repr__(self) -> str:
        return "Identity(...)"


_MINIMUM = {"": ssl.TLSVersion.TLSv1_2, "VersionTLS12": ssl.TLSVersion.TLSv1_2, "VersionTLS13": ssl.TLSVersion.TLSv1_3}


def read_identity(config: Path = CONFIG, certificates: Path = IMAGE_CERTIFICATES) -> Identity:
    """The TLS part of apf.json. Raises ConfigError."""
    given = _read(config)
    minimum = _text(given, "tls-min-version")
    if minimum not in _MINIMUM:
        raise ConfigError(f"tls-min-version: {minimum[:40]!r} is not allowed: VersionTLS12 or VersionTLS13")
    return Identity(
        certificate=_text(given, "tls-server-cert") or _image_file("tls-server-cert", certificates / "tls.crt"),
        key=_text(given, "tls-server-key") or _image_file("tls-server-key", certificates / "tls.key"),
        client_ca=_text(given, "tls-client-ca") or _image_file("tls-client-ca", certificates / "ca.crt"),
        minimum=_MINIMUM[minimum],
        ciphers=_ciphers(given, minimum),
    )


def read_pod_network(config: Path = CONFIG) -> dict[str, Any] | None:
    """The object `pod-network` as its sender wrote it, all keys in lower case; None without one. Raises ConfigError."""
    network = _read(config).get("pod-network")
    if network is not None and not isinstance(network, dict):
        raise ConfigError(f"pod-network is a {type(network).__name__}; allowed: an object")
    return _lower(network) if network is not None else None


def read_metadata(config: Path = CONFIG) -> object:
    """The object `caa-metadata`, which only a worker of ours sends; None without one. Raises ConfigError."""
    return _lower(_read(config).get("caa-metadata"))


def _read(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb") as file:
            text = file.read(MAX_BYTES)
        document: Any = json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{config} is not JSON") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{config} is not a JSON object")
    return {key.lower(): value for key, value in document.items()}


def _lower(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.lower(): _lower(item) for key, item in value.items()}
    return [_lower(item) for item in value] if isinstance(value, list) else value


# IANA's names, which the worker sends, and OpenSSL's: the suites of TLS 1.2 that are not known as weak.
_CIPHERS = {
    f"TLS_ECDHE_{kind}_WITH_{iana}": f"ECDHE-{kind}-{openssl}"
    for kind in ("ECDSA", "RSA")
    for iana, openssl in (
        ("AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        ("AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        ("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"),
        ("AES_128_CBC_SHA", "AES128-SHA"),
        ("AES_256_CBC_SHA", "AES256-SHA"),
    )
}
# Suites of TLS 1.3 have no key exchange in their name. They cannot be chosen.
_TLS13 = ("TLS_AES_", "TLS_CHACHA20_")


def _ciphers(given: dict[str, Any], minimum: str) -> tuple[str, ...]:
    """OpenSSL's names of those in tls-cipher-suites that we can offer; empty when any will do.

    A profile may list more than we have: leaving the others out offers less, never more.
    """
    names = given.get("tls-cipher-suites") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("tls-cipher-suites must be a list of text")
    if names and minimum == "VersionTLS13":
        raise ConfigError("tls-cipher-suites must be empty when tls-min-version is VersionTLS13")
    left_out = [name for name in names if name not in _CIPHERS and not name.startswith(_TLS13)]
    if left_out:
        log(f"tls-cipher-suites: left out {', '.join(name[:60] for name in left_out[:20])}")
    ciphers = tuple(_CIPHERS[name] for name in names if name in _CIPHERS)
    if names and not ciphers:
        raise ConfigError(f"tls-cipher-suites: {names[0][:60]!r} is not allowed: one of {', '.join(_CIPHERS)}")
    return ciphers


def _text(given: dict[str, Any], key: str) -> str:
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{key} must be text")
    return value or ""


def _image_file(key: str, path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{key} is missing, and the image has no {path}") from None


def server_context(identity: Identity) -> ssl.SSLContext:
    """Mutual TLS. Raises ConfigError naming the key whose PEM does not work."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = identity.minimum
    context.verify_mode = ssl.CERT_REQUIRED
    if identity.ciphers:
        context.set_ciphers(":".join(identity.ciphers))
    # The worker's certificate is its own trust anchor, but no CA; OpenSSL takes that only as a partial chain.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python reads keys from files only, so the file is one in memory that no path leads to.
    with os.fdopen(os.memfd_create("tls"), "wb") as file:
        file.write(f"{identity.certificate}\n{identity.key}\n".encode())
        file.flush()
        try:
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        except (ssl.SSLError, OSError):
            raise ConfigError("tls-server-cert and tls-server-key are not a certificate and its key") from None
    try:
        context.load_verify_locations(cadata=identity.client_ca)
    except (ssl.SSLError, ValueError):
        raise ConfigError("tls-client-ca is not a certificate") from None
    return context
