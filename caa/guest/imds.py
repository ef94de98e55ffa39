"""User data from the cloud's instance metadata service, for VMs that get no ISO.

Which cloud it is the firmware says; nobody is asked over the network to find out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from caa.guest.log import log
from caa.guest.userdata import MAX_BYTES
from caa.guest.writefiles import UserDataError

DMI = Path("/sys/class/dmi/id")

# The address comes up with the network, which may take its time; the incumbent's guest asks for as long.
_PATIENCE_SECONDS = 45.0
_POLL_SECONDS = 0.2
# The service answers from the host itself.
_CALL_SECONDS = 5.0


class Cloud(NamedTuple):
    """Where a cloud's VMs find their user data."""

    name: str
    dmi_file: str  # the firmware's word, and what it is on this cloud
    dmi_value: str
    host: str
    path: str
    headers: dict[str, str]
    is_base64: bool


AWS = Cloud("AWS", "sys_vendor", "Amazon EC2", "169.254.169.254", "/latest/user-data", {}, False)
AZURE = Cloud(
    "Azure",
    "chassis_asset_tag",
    "7783-7084-3265-9085-8269-3286-77",  # of every Azure VM, and of no other Hyper-V
    "169.254.169.254",
    "/metadata/instance/compute/userData?api-version=2021-01-01&format=text",
    {"Metadata": "true"},
    True,
)
GCP = Cloud(
    "GCP",
    "product_name",
    "Google Compute Engine",
    "metadata.google.internal",
    "/computeMetadata/v1/instance/attributes/user-data",
    {"Metadata-Flavor": "Google"},
    True,
)
ALIBABA = Cloud("Alibaba Cloud", "sys_vendor", "Alibaba Cloud", "100.100.100.200", "/latest/user-data", {}, False)
CLOUDS = (AZURE, AWS, GCP, ALIBABA)

_AWS_TOKEN = "/latest/api/token"  # noqa: S105  a path
_AWS_TOKEN_SECONDS = "60"  # noqa: S105


def detect(dmi: Path = DMI) -> Cloud | None:
    """The cloud this VM runs on, if its user data comes from a metadata service."""
    for cloud in CLOUDS:
        try:
            if (dmi / cloud.dmi_file).read_text("utf-8").strip() == cloud.dmi_value:
                return cloud
        except (OSError, UnicodeDecodeError):
            continue
    return None


def fetch(cloud: Cloud, patience: float = _PATIENCE_SECONDS, address: tuple[str, int] | None = None) -> bytes:
    """The user data, decoded. Asked again until there is some. Raises UserDataError naming cloud and last answer.

    `address` is for tests: the service instead of the cloud's own.
    """
    deadline = time.monotonic() + patience
    host, port = address or (cloud.host, 80)
    while True:
        try:
            return _decoded(cloud, _ask(cloud, host, port))
        except _NotYet as error:
            if time.monotonic() >= deadline:
                raise UserDataError(
                    f"no user data from {cloud.name} at {host} after {patience:.0f} s: {error}"
                ) from None
        time.sleep(_POLL_SECONDS)


class _NotYet(Exception):
    """What the service said instead."""


def _ask(cloud: Cloud, host: str, port: int) -> bytes:
    headers = dict(cloud.headers)
    if cloud is AWS:
        try:
            token = _call(host, port, "PUT", _AWS_TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": _AWS_TOKEN_SECONDS})
            headers["X-aws-ec2-metadata-token"] = token.decode("latin-1").strip()
        except _NotYet as error:
            log(f"no metadata token, asking without: {error}")
    return _call(host, port, "GET", cloud.path, headers)


def _call(host: str, port: int, method: str, path: str, headers: dict[str, str]) -> bytes:
    # A VM with an ISO never comes here, and the import takes its time.
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(host, port, timeout=_CALL_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        # A third more for base64; one byte more, for `parse` to see that it is too long.
        body = answer.read(MAX_BYTES // 3 * 4 + 5)
    except (OSError, HTTPException, ValueError) as error:
        raise _NotYet(str(error) or type(error).__name__) from None
    finally:
        connection.close()
    if answer.status != 200:
        raise _NotYet(f"{method} {path.partition('?')[0]} was answered with {answer.status}")
    return body


def _decoded(cloud: Cloud, body: bytes) -> bytes:
    if not body.strip():
        raise _NotYet("it is empty")
    if not cloud.is_base64:
        return body
    import base64

    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except ValueError:
        raise _NotYet("it is not base64") from None
