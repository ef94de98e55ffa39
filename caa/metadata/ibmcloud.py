"""IBM Cloud's VPC metadata service: what the VPC API says of an instance, behind a token."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from caa.metadata.facts import Answer, DialectName, Facts, Policy, Request, as_json, dig
from caa.metadata.keys import USER_DATA
from caa.metadata.tokens import Tokens

FLAVOR = "ibm"
OLDEST_VERSION = "2022-03-01"  # of the service
SHORTEST_SECONDS, DEFAULT_SECONDS, LONGEST_SECONDS = 5, 300, 3600
# The older name and the newer one.
_TOKEN_PATHS = {("instance_identity", "v1", "token"), ("identity", "v1", "token")}
_IDENTITY = {"instance_identity", "identity"}
# What the API tells to whoever manages the instance, and the service does not.
_NOT_FOR_THE_INSTANCE = {"user_data", "initialization", "health_reasons", "lifecycle_reasons", "keys", "href"}


class IbmCloud:
    """The dialect of `CLOUD_PROVIDER=ibmcloud`, for one pod VM."""

    name: DialectName = "ibmcloud"

    def __init__(self, facts: Facts, policy: Policy, tokens: Tokens) -> None:
        self._sandbox_id = facts.sandbox.id
        self._tokens = tokens
        self._policy = policy
        self._documents = documents(facts, policy)

    def answer(self, request: Request, now: float) -> Answer:
        """As IBM Cloud would answer."""
        if request.forwarded:
            return _error(403, "forbidden", "requests that came through a proxy are not answered")
        refused = _refused_version(request.query.get("version", ""), now)
        if refused:
            return refused
        if request.segments in _TOKEN_PATHS:
            return self._token(request, now)
        if request.segments[:1] and request.segments[0] in _IDENTITY:
            return _error(403, "forbidden", "access tokens and certificates are not for pods")
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._tokens.fits(token.strip(), self.name, self._sandbox_id, now):
            return _error(401, "not_authenticated", "a token of PUT /instance_identity/v1/token is needed, and holds")
        if request.method not in ("GET", "HEAD"):
            return _error(405, "method_not_allowed", "only GET")
        found = self._documents.get("/" + "/".join(request.segments))
        return _error(404, "not_found", "there is no such path") if found is None else as_json(200, found)

    def document(self) -> Mapping[str, Any]:
        """Every answer by its path."""
        return self._documents

    def _token(self, request: Request, now: float) -> Answer:
        if request.method != "PUT":
            return _error(405, "method_not_allowed", "only PUT")
        if request.headers.get("metadata-flavor", "").lower() != FLAVOR:
            return _error(400, "missing_header", "the header Metadata-Flavor: ibm is needed")
        seconds = _seconds(request.body)
        if seconds is None:
            wanted = f"expires_in must be a number of seconds from {SHORTEST_SECONDS} to {LONGEST_SECONDS}"
            return _error(400, "invalid_value", wanted)
        expires = int(now) + seconds
        token = {
            "access_token": self._tokens.issue(self.name, self._sandbox_id, expires),
            "created_at": _time(now),
            "expires_at": _time(expires),
            "expires_in": seconds,
        }
        made = as_json(200, token)
        return Answer(made.status, made.body, made.content_type, hops=self._policy.hop_limit)


def documents(facts: Facts, policy: Policy) -> dict[str, Any]:
    """Every answer by its path."""
    instance = _instance(facts)
    found: dict[str, Any] = {"/metadata/v1/instance": instance}
    for name in ("network_attachments", "network_interfaces", "volume_attachments"):
        listed = [one for one in dig(instance, name, default=[]) if isinstance(one, Mapping)]
        found[f"/metadata/v1/instance/{name}"] = {name: listed}
        found |= {f"/metadata/v1/instance/{name}/{one['id']}": one for one in listed if "id" in one}
    initialization: dict[str, Any] = {"keys": []}
    if USER_DATA in policy.allow:
        initialization["user_data"] = facts.attempt.user_data.decode("utf-8", "replace")
    found["/metadata/v1/instance/initialization"] = initialization
    found["/metadata/v1/keys"] = {"keys": []}
    found["/metadata/v1/placement_groups"] = {"placement_groups": []}
    return found


def _instance(facts: Facts) -> dict[str, Any]:
    offering = facts.attempt.offering
    known = {
        "id": facts.attempt.instance_id,
        "memory": offering.memory_mib // 1024,
        "name": facts.attempt.name,
        "profile": {"name": offering.instance_type},
        "vcpu": {"architecture": "amd64" if offering.arch == "x86_64" else offering.arch, "count": offering.vcpus},
        "zone": {"name": offering.zone},
    }
    if facts.address:
        known["primary_network_interface"] = {"primary_ip": {"address": facts.address}}
    told = {name: value for name, value in facts.description.items() if name not in _NOT_FOR_THE_INSTANCE}
    return {**known, **told}


def _seconds(body: bytes) -> int | None:
    if not body:
        return DEFAULT_SECONDS
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    seconds = given.get("expires_in", DEFAULT_SECONDS) if isinstance(given, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        return None
    return seconds if SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS else None


def _refused_version(version: str, now: float) -> Answer | None:
    if not version:
        return _error(400, "missing_version", "the query needs version=YYYY-MM-DD")
    today = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", version) or not OLDEST_VERSION <= version <= today:
        return _error(400, "invalid_version", f"version must be a date from {OLDEST_VERSION} to today")
    return None


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _error(status: int, code: str, message: str) -> Answer:
    return as_json(status, {"errors": [{"code": code, "message": message}]})
