"""What gives out tokens for a registry, as at quay.io or Docker Hub: a password for a token for one repository."""

from __future__ import annotations

import base64
import datetime
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.lab.webserver import WebServer

SERVICE, ISSUER = "lab registry", "lab tokens"


class TokenServer(WebServer):
    """A context. `asked` has the scopes that tokens were given for."""

    def __init__(self, user: str, password: str) -> None:
        self._basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._key = rsa.generate_private_key(65537, 2048)
        self._certificate = self._certify()
        self.asked: list[str] = []

    @property
    def pem(self) -> bytes:
        """The certificate that the registry must trust."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def realm(self) -> str:
        """Where tokens are."""
        return f"{self.address}/token"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """A token, to whoever knows the password."""
        if request.headers.get("Authorization") != self._basic:
            request.send_error(401)
            return
        scope = parse_qs(urlsplit(request.path).query).get("scope", [""])[0]
        self.asked.append(scope)
        body = json.dumps({"token": self.token(scope)}).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def token(self, scope: str) -> str:
        """A signed token for a scope such as repository:org/image:pull."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        der = base64.b64encode(self._certificate.public_bytes(Encoding.DER)).decode()
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": SERVICE,
            "sub": "lab",
            "jti": "1",
            "iat": now,
            "nbf": now - 60,
            "exp": now + 600,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}] if scope else [],
        }
        signed = f"{_encoded({'typ': 'JWT', 'alg': 'RS256', 'x5c': [der]})}.{_encoded(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    def _certify(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
