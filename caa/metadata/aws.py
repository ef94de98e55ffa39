"""EC2's instance metadata service, version 2: what DescribeInstances says, in the paths that SDKs and people know.

Versions by date are answered like `latest`. What an instance without instance profile, user data or public address does
not have is 404, as there; so is what the pod may not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from caa.metadata.facts import Answer, DialectName, Facts, Policy, Request, dig, text
from caa.metadata.keys import IMDS_V1, USER_DATA
from caa.metadata.tokens import Tokens

# Some of those that the service lists; SDKs ask for `latest`, cloud-init for dates such as these.
VERSIONS = ("1.0", "2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "2021-07-15", "2023-02-05", "latest")
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105  a header's name
TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"
LONGEST_SECONDS = 21600  # EC2's limit, six hours
_TOKEN_PATH = ("api", "token")
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d+")

Tree = Mapping[str, Any]
"""Directories are mappings, files are text."""


class Aws:
    """The dialect of `CLOUD_PROVIDER=aws`, for one pod VM."""

    name: DialectName = "aws"

    def __init__(self, facts: Facts, policy: Policy, tokens: Tokens) -> None:
        self._sandbox_id = facts.sandbox.id
        self._policy = policy
        self._tokens = tokens
        self._tree = tree(facts, policy)

    def answer(self, request: Request, now: float) -> Answer:
        """As EC2 would answer."""
        if request.forwarded:
            return text(403, "requests that came through a proxy are not answered")
        segments = request.segments
        if request.method == "PUT" and segments[:1] == ("latest",) and segments[1:] == _TOKEN_PATH:
            return self._token(request, now)
        if request.method not in ("GET", "HEAD"):
            return text(405, "GET, or PUT for a token")
        token = request.headers.get(TOKEN_HEADER)
        if token is None and IMDS_V1 not in self._policy.allow:
            return text(401, "a session token is needed: PUT /latest/api/token")
        if token is not None and not self._tokens.fits(token, self.name, self._sandbox_id, now):
            return text(401, "the session token is not valid, or no longer")
        return self._read(segments)

    def document(self) -> Mapping[str, Any]:
        """Every file by its path."""
        return dict(_files("/latest", self._tree))

    def _token(self, request: Request, now: float) -> Answer:
        wanted = request.headers.get(TTL_HEADER, "")
        if not re.fullmatch(r"[0-9]{1,5}", wanted) or not 1 <= int(wanted) <= LONGEST_SECONDS:
            return text(400, f"{TTL_HEADER} must be a number of seconds from 1 to {LONGEST_SECONDS}")
        token = self._tokens.issue(self.name, self._sandbox_id, int(now) + int(wanted))
        return Answer(200, token.encode(), headers=((TTL_HEADER, wanted),), hops=self._policy.hop_limit)

    def _read(self, segments: tuple[str, ...]) -> Answer:
        if not segments:
            return text(200, "\n".join(VERSIONS))
        found: Any = self._tree if segments[0] in VERSIONS else None
        for segment in segments[1:]:
            found = found.get(segment) if isinstance(found, Mapping) else None
        if found is None:
            return text(404, "there is no such path")
        if isinstance(found, Mapping):
            return text(
                200, "\n".join(f"{name}/" if isinstance(below, Mapping) else name for name, below in found.items())
            )
        return text(200, found)


def tree(facts: Facts, policy: Policy) -> Tree:
    """All there is below a version."""
    found: dict[str, Any] = {
        "dynamic": {"instance-identity": {"document": json.dumps(_identity(facts), indent=2)}},
        "meta-data": _pruned(_meta_data(facts)),
    }
    if USER_DATA in policy.allow:
        found["user-data"] = facts.attempt.user_data.decode("utf-8", "replace")
    return found


def _meta_data(facts: Facts) -> dict[str, Any]:
    described, offering = facts.description, facts.attempt.offering
    zone = dig(described, "Placement", "AvailabilityZone") or offering.zone
    address = dig(described, "PrivateIpAddress") or facts.address
    host = dig(described, "PrivateDnsName") or facts.attempt.name
    cards = dig(described, "NetworkInterfaces", default=[])
    mac = dig(cards, 0, "MacAddress") or dig(described, "mac")
    groups = [dig(group, "GroupName") for group in dig(described, "SecurityGroups", default=[])]
    root = dig(described, "RootDeviceName")
    return {
        "ami-id": dig(described, "ImageId") or facts.attempt.image or dig(described, "image"),
        "ami-launch-index": str(dig(described, "AmiLaunchIndex", default=0)),
        "block-device-mapping": {"ami": root, "root": root},
        "hostname": host,
        "instance-action": "none",
        "instance-id": facts.attempt.instance_id,
        "instance-life-cycle": dig(described, "InstanceLifecycle") or offering.market.value,
        "instance-type": dig(described, "InstanceType") or offering.instance_type,
        "local-hostname": host,
        "local-ipv4": address,
        "mac": mac,
        "network": {"interfaces": {"macs": {dig(card, "MacAddress"): _card(card) for card in cards}}},
        "placement": {
            "availability-zone": zone,
            "availability-zone-id": dig(described, "Placement", "AvailabilityZoneId"),
            "region": region(zone),
        },
        "public-hostname": dig(described, "PublicDnsName"),
        "public-ipv4": dig(described, "PublicIpAddress"),
        "reservation-id": dig(described, "ReservationId"),
        "security-groups": "\n".join(groups),
        "services": {"domain": "amazonaws.com", "partition": _partition(region(zone))},
    }


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    groups = dig(card, "Groups", default=[])
    addresses = [dig(one, "PrivateIpAddress") for one in dig(card, "PrivateIpAddresses", default=[])]
    return {
        "device-number": str(dig(card, "Attachment", "DeviceIndex", default=0)),
        "interface-id": dig(card, "NetworkInterfaceId"),
        "ipv6s": "\n".join(dig(one, "Ipv6Address") for one in dig(card, "Ipv6Addresses", default=[])),
        "local-hostname": dig(card, "PrivateDnsName"),
        "local-ipv4s": "\n".join(addresses) or dig(card, "PrivateIpAddress"),
        "mac": dig(card, "MacAddress"),
        "owner-id": dig(card, "OwnerId"),
        "public-ipv4s": dig(card, "Association", "PublicIp"),
        "security-group-ids": "\n".join(dig(group, "GroupId") for group in groups),
        "security-groups": "\n".join(dig(group, "GroupName") for group in groups),
        "subnet-id": dig(card, "SubnetId"),
        "vpc-id": dig(card, "VpcId"),
    }


def _identity(facts: Facts) -> dict[str, Any]:
    """The identity document, with null for what is not known, as EC2 has it for what there is none of."""
    described, offering = facts.description, facts.attempt.offering
    zone = dig(described, "Placement", "AvailabilityZone") or offering.zone
    return {
        "accountId": dig(described, "OwnerId") or None,
        "architecture": dig(described, "Architecture") or offering.arch,
        "availabilityZone": zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "marketplaceProductCodes": None,
        "imageId": dig(described, "ImageId") or facts.attempt.image or None,
        "instanceId": facts.attempt.instance_id,
        "instanceType": dig(described, "InstanceType") or offering.instance_type,
        "kernelId": dig(described, "KernelId") or None,
        "pendingTime": dig(described, "LaunchTime") or f"{facts.attempt.created_at:%Y-%m-%dT%H:%M:%SZ}",
        "privateIp": dig(described, "PrivateIpAddress") or facts.address,
        "ramdiskId": dig(described, "RamdiskId") or None,
        "region": region(zone),
        "version": "2017-09-30",
    }


def region(zone: str) -> str:
    """Of a zone: eu-west-1 of eu-west-1b, us-west-2 of us-west-2-lax-1a; the zone itself if it has none."""
    found = _REGION.match(zone)
    return found[0] if found else zone


def _partition(name: str) -> str:
    return "aws-cn" if name.startswith("cn-") else "aws-us-gov" if name.startswith("us-gov-") else "aws"


def _pruned(directory: Mapping[str, Any]) -> dict[str, Any]:
    """Without files that would be empty, and directories without files."""
    kept = {name: _pruned(below) if isinstance(below, Mapping) else below for name, below in directory.items()}
    return {name: below for name, below in kept.items() if name and below}


def _files(path: str, found: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping):
        for name, below in found.items():
            yield from _files(f"{path}/{name}", below)
    else:
        yield path, found
