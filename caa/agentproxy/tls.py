"""Mutual TLS towards the pod VM: the context of a sandbox, the handshake, and which failures cannot heal."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

# The words of TLS_MIN_VERSION in peer-pods-cm. Unset means TLS 1.2, below which nothing is accepted.
MIN_VERSIONS = {
    "": ssl.TLSVersion.TLSv1_2,
    "VersionTLS12": ssl.TLSVersion.TLSv1_2,
    "VersionTLS13": ssl.TLSVersion.TLSv1_3,
}

# TLS_CIPHER_SUITES has the IANA names, OpenSSL has its own. The suites of TLS 1.2 that are not known as weak; those
# of TLS 1.3 cannot be chosen.
CIPHER_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
}

# OpenSSL's reason words of failures that no waiting heals: the VM does not trust our certificate, or the two do not
# speak the same TLS. Alerts about a certificate's dates are not here, for a booting VM may still set its clock.
_PERMANENT_REASONS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it did not get our client certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not accept our client certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it has no TLS version in common with us",
    "UNSUPPORTED_PROTOCOL": "it has no TLS version in common with us",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no cipher suite in common with us",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
}

# A handshake takes two round trips and some milliseconds of work; a VM that is busy booting gets this long.
HANDSHAKE_SECONDS = 5.0


def client_context(
    ca_file: str, cert_file: str, key_file: str, min_version: str, cipher_suites: list[str]
) -> ssl.SSLContext:
    """A context that proves who we are and checks the VM's name. Reads the files now.

    Raises ValueError naming the argument that is wrong; the text never holds what is in a file.
    """
    if min_version not in MIN_VERSIONS:
        allowed = ", ".join(word for word in MIN_VERSIONS if word)
        raise ValueError(f"tls_min_version is {min_version!r}; allowed: {allowed}, or empty")
    unknown = [name for name in cipher_suites if name not in CIPHER_SUITES]
    if unknown:
        raise ValueError(f"tls_ciphers has {unknown[0]!r}; allowed: {', '.join(CIPHER_SUITES)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = MIN_VERSIONS[min_version]
    # Without renegotiation a read never has to wait for a write, nor a write for a read.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Every certificate in ca_file counts as trusted, also one that another CA signed: so does the incumbent.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if cipher_suites:
        context.set_ciphers(":".join(CIPHER_SUITES[name] for name in cipher_suites))
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:
        raise ValueError(f"ca_file {ca_file} has no usable certificate: {_why(error)}") from None
    try:
        # A key with a passphrase must fail, not ask on the terminal.
        context.load_cert_chain(cert_file, key_file, password="")
    except OSError as error:
        raise ValueError(f"cert_file {cert_file} and key_file {key_file} are no usable pair: {_why(error)}") from None
    return context


def check_server_name(context: ssl.SSLContext, server_name: str) -> None:
    """Raise ValueError unless TLS takes this as a name to ask for."""
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_name)
    except ValueError as error:
        raise ValueError(f"server_name is {server_name!r}; allowed: a host name ({error})") from None


async def handshake(sock: socket.socket, context: ssl.SSLContext, server_name: str) -> ssl.SSLSocket:
    """TLS over the connected, non-blocking `sock`, which it takes over. Raises OSError of some kind."""
    loop = asyncio.get_running_loop()
    try:
        tls = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
    except BaseException:
        sock.close()
        raise
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            while True:
                try:
                    tls.do_handshake()
                    return tls
                except ssl.SSLWantReadError:
                    await _ready(tls.fileno(), loop.add_reader, loop.remove_reader)
                except ssl.SSLWantWriteError:
                    await _ready(tls.fileno(), loop.add_writer, loop.remove_writer)
    except BaseException:
        tls.close()
        raise


def permanent_failure(error: BaseException) -> str | None:
    """A sentence if this failure of a handshake, or of the first read after it, cannot heal; None if it may."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not the one expected: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return _PERMANENT_REASONS.get(error.reason or "")
    return None


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready = asyncio.Event()
    add(fd, ready.set)
    try:
        await ready.wait()
    finally:
        remove(fd)


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
