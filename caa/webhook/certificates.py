"""The webhook's certificates: made, shared by its replicas in a Secret, and renewed without a restart.

The API server trusts a webhook by the `caBundle` of its configuration. A certificate that an older CA signed stays good
while a new CA takes over: the bundle holds both, and is written before the new certificate is served. Two replicas that
renew at once are told apart by the Secret's resourceVersion: the second reads what the first wrote.
"""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from lightkube import ApiError, AsyncClient
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Secret

from caa.clock import Clock

log = logging.getLogger(__name__)

CA_VALIDITY = timedelta(days=365)
VALIDITY = timedelta(days=30)
# A third of the time is left for whatever keeps a renewal from being done.
RENEW_AT = 1 / 3
# Clocks of API servers may lag.
CLOCK_SKEW = timedelta(minutes=5)
_CONFLICT, _NOT_FOUND = 409, 404
# Of replicas that all write at once, each round one is done.
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Pki:
    """PEM texts, as the Secret holds them."""

    ca_bundle: str  # the CA of today first, after it the one before
    ca_key: str = field(repr=False)
    certificate: str
    key: str = field(repr=False)

    def data(self) -> dict[str, str]:
        """Of the Secret, in base64."""
        texts = {"ca.crt": self.ca_bundle, "ca.key": self.ca_key, "tls.crt": self.certificate, "tls.key": self.key}
        return {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}

    @staticmethod
    def of(secret: Secret) -> Pki | None:
        """What a Secret holds; None when it holds no whole set."""
        try:
            data = {name: base64.b64decode(text).decode() for name, text in (secret.data or {}).items()}
            pki = Pki(data["ca.crt"], data["ca.key"], data["tls.crt"], data["tls.key"])
            x509.load_pem_x509_certificates(pki.ca_bundle.encode())
            x509.load_pem_x509_certificate(pki.certificate.encode())
            serialization.load_pem_private_key(pki.ca_key.encode(), None)
        except (KeyError, ValueError):
            return None
        return pki


def renewed(pki: Pki | None, dns_name: str, now: datetime) -> Pki:
    """The same where nothing is due; else with a new certificate, and a new CA where that is due."""
    if pki is None:
        authority, authority_key = _authority(now)
        return Pki(authority, authority_key, *_issue(authority, authority_key, dns_name, now))
    bundle, authority_key = pki.ca_bundle, pki.ca_key
    if _due(bundle, now):
        authority, authority_key = _authority(now)
        before = x509.load_pem_x509_certificates(bundle.encode())[0]
        bundle = authority + before.public_bytes(serialization.Encoding.PEM).decode()
    if bundle == pki.ca_bundle and not _due(pki.certificate, now) and dns_name in _names(pki.certificate):
        return pki
    return Pki(bundle, authority_key, *_issue(bundle, authority_key, dns_name, now))


class Certificates:
    """The Secret and the configuration's `caBundle`, kept as they should be."""

    def __init__(
        self, client: AsyncClient, clock: Clock, *, namespace: str, secret: str, service: str, configuration: str
    ) -> None:
        self._client = client
        self._clock = clock
        self._namespace = namespace
        self._secret = secret
        self._dns_name = f"{service}.{namespace}.svc"
        self._configuration = configuration

    async def current(self) -> Pki:
        """What to serve now; the API server trusts it already. Raises ApiError and httpx's errors."""
        for _ in range(_TRIES):
            try:
                pki = await self._shared()
                await self._trust(pki.ca_bundle)
            except ApiError as error:
                if error.status.code != _CONFLICT:
                    raise
            else:
                return pki
        raise TimeoutError(f"the Secret {self._secret} or {self._configuration} changed {_TRIES} times in a row")

    async def _shared(self) -> Pki:
        try:
            secret = await self._client.get(Secret, self._secret, namespace=self._namespace)
        except ApiError as error:
            if error.status.code != _NOT_FOUND:
                raise
            pki = renewed(None, self._dns_name, self._clock.now())
            metadata = ObjectMeta(name=self._secret, namespace=self._namespace)
            # Type Opaque: that of TLS has no place for the CA's key.
            await self._client.create(Secret(metadata=metadata, data=pki.data(), type="Opaque"))
            log.info("made the webhook's certificates for %s", self._dns_name)
            return pki
        before = Pki.of(secret)
        pki = renewed(before, self._dns_name, self._clock.now())
        if pki != before:
            secret.data = pki.data()
            await self._client.replace(secret)  # with the resourceVersion that was read
            log.info("renewed the webhook's certificates for %s", self._dns_name)
        return pki

    async def _trust(self, bundle: str) -> None:
        encoded = base64.b64encode(bundle.encode()).decode()
        configuration = await self._client.get(MutatingWebhookConfiguration, self._configuration)
        wrong = [one for one in configuration.webhooks or [] if one.clientConfig.caBundle != encoded]
        if wrong:
            for one in wrong:
                one.clientConfig.caBundle = encoded
            await self._client.replace(configuration)


def _due(pem: str, now: datetime) -> bool:
    certificate = x509.load_pem_x509_certificates(pem.encode())[0]
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_after_utc - now < lifetime * RENEW_AT


def _names(pem: str) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.DNSName
    )


def _authority(now: datetime) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    # A name of its own for each, for the bundle holds two.
    name = _name(f"caa-webhook-ca-{now:%Y%m%d%H%M%S}")
    builder = _builder(name, name, key.public_key(), now, CA_VALIDITY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _pem(builder.sign(key, hashes.SHA256())), _key_pem(key)


def _issue(bundle: str, authority_key: str, dns_name: str, now: datetime) -> tuple[str, str]:
    authority = x509.load_pem_x509_certificates(bundle.encode())[0]
    signing = serialization.load_pem_private_key(authority_key.encode(), None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name("caa-webhook"), authority.subject, key.public_key(), now, VALIDITY)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return _pem(builder.sign(signing, hashes.SHA256())), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, validity: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
