"""Whose an instance is, written into names that are part of the create call, and read from the list. Pure.

The VPC API has no tags on instances: those are another service's, so a second call's, and a crash between the two would
leave an instance without owner. But an instance's attachments have names of their own, which need be unique only
within the instance, are set in the create call and come with every list. Two of them hold what a service must know:

- the primary network attachment: the sandbox's id, `h-` and base32 of 64 hexadecimal digits, or `t-` and that of text;
- the boot volume attachment: `caa-<scope>-<request>-<attempt>`, the first two of them digests in base32.

For people the boot volume has user tags with the same and the pod's names, in the same call.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from providers.base import InvalidRequestError, LaunchRequest, Owner, OwnerScope

# Of any name in the VPC API.
NAME_LIMIT = 63
# 128 and 80 bits: no two nodes of an account share the one, nor two requests of a name the other.
_SCOPE_CHARACTERS, _REQUEST_CHARACTERS = 26, 16
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_RECORD = re.compile(
    rf"caa-(?P<scope>[a-z2-7]{{{_SCOPE_CHARACTERS}}})-(?P<request>[a-z2-7]{{{_REQUEST_CHARACTERS}}})-(?P<attempt>\d+)"
)
# Of IBM Cloud's tagging service.
_TAG_LIMIT = 128
_NOT_IN_A_TAG = re.compile(r"[^A-Za-z0-9:_ .-]")


def network_attachment(request: LaunchRequest) -> str:
    """The name of the primary network attachment. Raises InvalidRequestError for an id that does not go into it."""
    sandbox_id = request.owner.sandbox_id
    hexadecimal = _HEX_ID.fullmatch(sandbox_id)
    name = "h-" + _base32(bytes.fromhex(sandbox_id)) if hexadecimal else "t-" + _base32(sandbox_id.encode())
    if len(name) > NAME_LIMIT:
        raise InvalidRequestError(
            "SandboxIdTooLong",
            f"the sandbox id {sandbox_id!r} is too long for IBM Cloud: 64 hexadecimal digits, or at most 38 characters",
        )
    return name


def volume_attachment(request: LaunchRequest) -> str:
    """The name of the boot volume attachment."""
    return f"caa-{_scope(request.owner)}-{_digest(request)}-{request.owner.attempt}"


def owner_in(found: Mapping[str, Any], scope: OwnerScope) -> Owner | None:
    """The owner of a listed instance; None unless it is of this scope. Names of pods are not told."""
    record = _RECORD.fullmatch(_name(found, "boot_volume_attachment"))
    sandbox_id = _sandbox_id(_name(found, "primary_network_attachment"))
    if not record or not sandbox_id or record["scope"] != _scope(scope):
        return None
    return Owner(scope.cluster, scope.node, sandbox_id, "", "", int(record["attempt"]))


def is_of(found: Mapping[str, Any], request: LaunchRequest) -> bool:
    """Whether this very request made the instance, whatever the configuration was when it was sent."""
    record = _name(found, "boot_volume_attachment")
    return record == volume_attachment(request) and (
        _name(found, "primary_network_attachment") == network_attachment(request)
    )


def user_tags(request: LaunchRequest, more: Iterable[str]) -> list[str]:
    """What people find a boot volume by: the owner in words, and the configured tags."""
    owner = request.owner
    words = {
        "caa-cluster": owner.cluster,
        "caa-node": owner.node,
        "caa-sandbox": owner.sandbox_id,
        "caa-namespace": owner.pod_namespace,
        "caa-pod": owner.pod_name,
        "caa-attempt": str(owner.attempt),
    }
    own = [_NOT_IN_A_TAG.sub("_", f"{key}:{value}")[:_TAG_LIMIT] for key, value in words.items()]
    return list(dict.fromkeys([*own, *more]))


def instance_tags(scope: OwnerScope, more: Iterable[str]) -> list[str]:
    """What all instances of a node are tagged with; the first is the incumbent's."""
    own = [f"coco-pod-vm:{scope.cluster}", f"caa-node:{scope.node}"]
    return list(dict.fromkeys([*(_NOT_IN_A_TAG.sub("_", tag)[:_TAG_LIMIT] for tag in own), *more]))


def _scope(of: Owner | OwnerScope) -> str:
    return _base32(hashlib.sha256(f"{of.cluster}\0{of.node}".encode()).digest())[:_SCOPE_CHARACTERS]


def _digest(request: LaunchRequest) -> str:
    return _base32(bytes.fromhex(request.digest))[:_REQUEST_CHARACTERS]


def _sandbox_id(name: str) -> str:
    """As `network_attachment` wrote it; "" for a name that it cannot have written."""
    kind, _, text = name.partition("-")
    try:
        raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
        return raw.hex() if kind == "h" else raw.decode() if kind == "t" else ""
    except ValueError:
        return ""


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _name(found: Mapping[str, Any], attachment: str) -> str:
    return str((found.get(attachment) or {}).get("name", ""))
