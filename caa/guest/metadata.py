"""Mode `vm` of instance metadata: the pod asks the cloud's own service, through this VM.

The incumbent translates the pod's address, which lets the pod read the VM's user data too, and with it the key of the
agent link; packets cannot be told apart by what they ask for. So this listens at the metadata addresses inside the
pod's namespace and passes on single requests. It also makes EC2's hop limit of 1 hold, and needs no forwarding, proxy
ARP or rules. Everything may be done again at any time.

Only paths that are known are passed on, and only if they are written in the one way that every service reads alike.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple

from caa.guest.log import log
from caa.podnetwork.errors import PodNetworkError
from caa.podnetwork.iproute import Ip
from caa.podnetwork.metadataaddress import METADATA_ADDRESSES, METADATA_PORT
from caa.podnetwork.namespace import inside, opened

IMDS_V1, USER_DATA, CREDENTIALS, SIGNED_DOCUMENTS = "imds-v1", "user-data", "credentials", "signed-documents"
"""The words of the worker's CAA_METADATA_ALLOW."""

# As on the worker: requests have a token and the client's name, and are there at once.
_HEAD_BYTES, _BODY_BYTES = 8 << 10, 4 << 10
_REQUEST_SECONDS = 5.0
_CONNECTIONS = 16
# The service answers from the host itself. Signed documents and Azure's whole tree are some 10 KiB.
_ANSWER_SECONDS = 10.0
_ANSWER_BYTES = 256 << 10
_POLL_SECONDS = 0.05

_PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_:@=,+~-][A-Za-z0-9._:@=,+~-]*)*/?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~]*")
_AWS_VERSION = re.compile(r"latest|1\.0|\d{4}-\d\d-\d\d")
_TOKEN_HEADERS = ("x-aws-ec2-metadata-token", "x-aws-ec2-metadata-token-ttl-seconds")
_PASSED_ON = (*_TOKEN_HEADERS, "metadata", "metadata-flavor", "authorization", "accept", "content-type", "user-agent")
# What Azure says in a VM without a managed identity: clients then go on to their next credential.
_NO_IDENTITY = '{"error": "invalid_request", "error_description": "Identity not found"}'
# Azure's own words for what came with the VM; they are inside the answer to a request for everything.
_AZURE_USER_DATA = {"userdata", "customdata"}


class Refused(Exception):
    """What the pod is answered instead. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Request(NamedTuple):
    """One request, names of headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class Config(NamedTuple):
    """What the worker says of it."""

    allow: frozenset[str] = frozenset()
    hops: int = 1


def read_config(document: object) -> Config | None:
    """From the object `caa-metadata` of apf.json; None where the mode is not this one. Unknown words allow nothing."""
    if not isinstance(document, Mapping) or document.get("mode") != "vm":
        return None
    allow, hops = document.get("allow"), document.get("hops")
    words = frozenset(word for word in allow if isinstance(word, str)) if isinstance(allow, list) else frozenset()
    return Config(words, hops if isinstance(hops, int) and 1 <= hops <= 64 else 1)


def check(request: Request, allow: frozenset[str]) -> None:
    """Raise Refused unless the pod may ask this. Pure."""
    path, _, query = request.target.partition("?")
    if not _PLAIN_PATH.fullmatch(path) or not re.fullmatch(r"[A-Za-z0-9._=&:-]*", query):
        raise Refused(400, "this path is not passed on")
    if "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        raise Refused(403, "requests that came through a proxy are not passed on")
    parts = tuple(part for part in path.lower().split("/") if part)
    needed = _needed(parts)
    if needed is not None and needed not in allow:
        if parts[:2] == ("metadata", "identity"):
            raise Refused(400, _NO_IDENTITY)
        raise Refused(404 if _AWS_VERSION.fullmatch(parts[0]) else 403, f"not for pods: {needed} (CAA_METADATA_ALLOW)")
    token_put = request.method == "PUT" and parts in {("latest", "api", "token"), ("instance_identity", "v1", "token")}
    if not token_put and request.method != "GET":
        raise Refused(405, "only GET, and PUT for a token")
    version2 = _TOKEN_HEADERS[0] in request.headers
    if parts and _AWS_VERSION.fullmatch(parts[0]) and not token_put and not version2 and IMDS_V1 not in allow:
        raise Refused(401, "a session token is needed: PUT /latest/api/token")


def _needed(parts: tuple[str, ...]) -> str | None:
    """The word that must be allowed for this path. Raises Refused for what no pod may ask."""
    if not parts:
        return None
    if _AWS_VERSION.fullmatch(parts[0]):
        return _needed_on_aws(parts[1:])
    match parts:
        case ("metadata", "versions") | ("metadata", "scheduledevents"):
            return None
        case ("metadata", "instance", *rest):
            return USER_DATA if _AZURE_USER_DATA & set(rest) else None
        case ("metadata", "identity", *_):
            return CREDENTIALS
        case ("metadata", "attested", *_):
            return SIGNED_DOCUMENTS
        case ("instance_identity", *_) | ("identity", *_):
            # Of IBM Cloud: the token that opens the metadata can be exchanged for one that opens the account.
            return CREDENTIALS
        case ("metadata", "v1", "instance", "initialization", *_):
            return USER_DATA
        case ("metadata", "v1", *_):
            return None
    raise Refused(404, "this path is not passed on")


def _needed_on_aws(parts: tuple[str, ...]) -> str | None:
    match parts:
        case () | ("api", "token") | ("meta-data",) | ("dynamic",) | ("dynamic", "instance-identity"):
            return None
        case ("dynamic", "instance-identity", "document"):
            return None
        case ("dynamic", "instance-identity", *_):
            return SIGNED_DOCUMENTS
        case ("user-data", *_):
            return USER_DATA
        case ("meta-data", "iam" | "identity-credentials", *_):
            return CREDENTIALS
        case ("meta-data", *_):
            return None
    raise Refused(404, "this path is not passed on")


def cleaned(target: str, body: bytes, allow: frozenset[str]) -> bytes:
    """The answer to `target` without the user data that Azure's has in it. Raises Refused when that cannot be told."""
    if USER_DATA in allow or not target.lower().startswith("/metadata/instance") or "format=text" in target.lower():
        return body
    try:
        return json.dumps(_without_user_data(json.loads(body))).encode()
    except (ValueError, RecursionError):
        raise Refused(502, "the cloud's answer is not JSON") from None


def _without_user_data(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_user_data(one) for key, one in value.items() if key.lower() not in _AZURE_USER_DATA}
    return [_without_user_data(one) for one in value] if isinstance(value, list) else value


class Relay:
    """Listens inside the pod's namespace, and asks from the VM's own."""

    def __init__(
        self, config: Config, namespace: str, service: tuple[str, int] = (METADATA_ADDRESSES[0], METADATA_PORT)
    ) -> None:
        self._config = config
        self._namespace = namespace
        self._service = service
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)

    def start(self) -> None:
        """Make the addresses the pod namespace's own and serve in the background. Raises PodNetworkError or OSError."""
        pod = Ip(self._namespace)
        for address in METADATA_ADDRESSES:
            try:
                pod.batch([f"addr replace {address}/{128 if ':' in address else 32} dev lo"])
                listener = self._listen(address)
            except (PodNetworkError, OSError) as error:
                if ":" not in address:
                    raise
                log(f"instance metadata: not over IPv6: {error}")
                continue
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        log("instance metadata: the cloud's own service is passed on to the pod")

    def _listen(self, address: str) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with opened(f"/run/netns/{self._namespace}") as descriptor:
            return inside(descriptor, lambda: socket.create_server((address, METADATA_PORT), family=family, backlog=16))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                log(f"instance metadata: cannot accept a connection: {error.strerror}")
                time.sleep(_POLL_SECONDS)
                continue
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                status, kind, headers, body = self._answer(connection)
                head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nContent-Type: {kind}\r\n{headers}"
                head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode("latin-1", "replace") + body)
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> tuple[int, str, str, bytes]:
        """(status, content type, further header lines, body)"""
        try:
            request = read_request(connection.recv, connection.settimeout)
            check(request, self._config.allow)
            if request.method == "PUT":
                _limit_hops(connection, self._config.hops)
            return self._pass_on(request)
        except Refused as refusal:
            return refusal.status, "text/plain", "", str(refusal).encode()
        except (OSError, HTTPException) as error:
            log(f"instance metadata: {type(error).__name__} {error}")
            return 502, "text/plain", "", b"the cloud's metadata service does not answer"

    def _pass_on(self, request: Request) -> tuple[int, str, str, bytes]:
        service = HTTPConnection(*self._service, timeout=_ANSWER_SECONDS)
        try:
            headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
            service.request(request.method, request.target, request.body or None, headers)
            answer = service.getresponse()
            body = answer.read(_ANSWER_BYTES + 1)
        finally:
            service.close()
        if len(body) > _ANSWER_BYTES or 300 <= answer.status < 400:
            raise Refused(502, "the cloud's answer is not passed on")
        if answer.status == 200:
            body = cleaned(request.target, body, self._config.allow)
        lifetime = answer.getheader(_TOKEN_HEADERS[1], "")
        more = f"{_TOKEN_HEADERS[1]}: {lifetime}\r\n" if lifetime.isdigit() else ""
        kind = answer.getheader("Content-Type", "text/plain")
        return answer.status, kind if kind.isprintable() else "text/plain", more, body


_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 413: "Content Too Large", 431: "Request Header Fields Too Large", 502: "Bad Gateway",
}  # fmt: skip


def read_request(receive: Callable[[int], bytes], settimeout: Callable[[float], None]) -> Request:
    """The one request of a connection. Raises Refused for what is none, or too long, or too slow."""
    deadline = time.monotonic() + _REQUEST_SECONDS

    def more() -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Refused(408, "the request takes too long")
        settimeout(left)
        try:
            data = receive(4096)
        except TimeoutError:
            raise Refused(408, "the request takes too long") from None
        if not data:
            raise Refused(400, "the request is cut short")
        return data

    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > _HEAD_BYTES:
            raise Refused(431, "the request is too long")
        data += more()
    head, _, body = data.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    words = re.fullmatch(r"([A-Z]{3,10}) (/[!-~]*) HTTP/1\.[01]", line)
    headers = _headers(lines)
    length = headers.get("content-length", "0")
    if words is None or "transfer-encoding" in headers or not re.fullmatch(r"[0-9]{1,9}", length):
        raise Refused(400, "the request is not understood")
    if int(length) > _BODY_BYTES:
        raise Refused(413, "the request is too long")
    while len(body) < int(length):
        body += more()
    return Request(words[1], words[2], headers, body[: int(length)])


def _headers(lines: list[str]) -> dict[str, str]:
    """By their names in lower case. Raises Refused."""
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise Refused(400, "the request is not understood")
        key = name.lower()
        if key in headers and key in (*_PASSED_ON, "content-length"):
            raise Refused(400, "the request says something twice")
        headers[key] = value.strip()
    return headers


def _limit_hops(connection: socket.socket, hops: int) -> None:
    if connection.family == socket.AF_INET6:
        connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
    else:
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
