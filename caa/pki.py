"""Keys and certificates between worker and pod VM.

Per node: one CA that signs server certificates of pod VMs, and one self-signed client certificate that pod VMs
trust. Both are made once, kept 0600 in the state directory and used again after a restart, so that any later
process reaches the VMs of an earlier one. Per VM: a server key, which leaves this process in the user data only.
Names, key type and usages are those the incumbent's guest images accept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from caa.clock import Clock

CLIENT_ORGANIZATION = "cloud-api-adaptor"
SERVER_ORGANIZATION = "agent-protocol-forwarder"
# Ten years: longer than any pod lives. A renewal would cut off every VM that trusts the older certificate.
VALIDITY = timedelta(days=3650)
# Clocks of freshly booted VMs may lag the worker's.
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What one pod VM needs: PEM texts."""

    certificate: str
    key: str = field(repr=False)


class NodeKeys:
    """The node's CA and client certificate, in `directory`."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._clock = clock
        self.ca_file = directory / "ca.crt"
        self.client_cert_file = directory / "client.crt"
        self.client_key_file = directory / "client.key"
        self._ca_key_file = directory / "ca.key"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        # The certificate is written last, so a pair cut short by a crash is made again.
        if not self.ca_file.exists():
            self._make(self._ca_key_file, self.ca_file, SERVER_ORGANIZATION, is_ca=True)
        if not self.client_cert_file.exists():
            self._make(self.client_key_file, self.client_cert_file, CLIENT_ORGANIZATION, is_ca=False)
        self._ca = x509.load_pem_x509_certificate(self.ca_file.read_bytes())
        ca_key = serialization.load_pem_private_key(self._ca_key_file.read_bytes(), password=None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        self._ca_key = ca_key

    @property
    def client_certificate(self) -> str:
        """PEM of the certificate that a pod VM trusts its worker by."""
        return self.client_cert_file.read_text()

    def issue(self, server_name: str) -> ServerIdentity:
        """A new key and certificate for the VM of that name (common name and only DNS name)."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            subject=_name(SERVER_ORGANIZATION, server_name),
            public_key=key.public_key(),
            issuer=self._ca.subject,
            signing_key=self._ca_key,
            now=self._clock.now(),
            not_after=self._ca.not_valid_after_utc,
            usage=[ExtendedKeyUsageOID.SERVER_AUTH],
            is_ca=False,
            dns_name=server_name,
        )
        return ServerIdentity(_pem(certificate), _key_pem(key))

    def _make(self, key_file: Path, cert_file: Path, organization: str, *, is_ca: bool) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_ca else ExtendedKeyUsageOID.CLIENT_AUTH
        name = _name(organization)
        now = self._clock.now()
        certificate = _certificate(
            subject=name,
            public_key=key.public_key(),
            issuer=name,
            signing_key=key,
            now=now,
            not_after=now + VALIDITY,
            usage=[usage],
            is_ca=is_ca,
        )
        _write_private(key_file, _key_pem(key))
        _write_private(cert_file, _pem(certificate))


def _certificate(
    *,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signing_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    not_after: datetime,
    usage: Sequence[x509.ObjectIdentifier],
    is_ca: bool,
    dns_name: str = "",
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    if dns_name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def _name(organization: str, common_name: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)]
    if common_name:
        parts.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    return x509.Name(parts)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _write_private(path: Path, text: str) -> None:
    """Write 0600, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
