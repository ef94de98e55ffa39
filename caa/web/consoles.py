"""Where a cloud's own console shows an instance. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

_REGION = re.compile(r"[a-z]+(?:-[a-z]+)+-\d+")


def console_link(provider: str, zone: str, instance_id: str) -> str:
    """The address of the instance's page in the console; "" for a cloud without one, or a zone that says no region."""
    link = _LINKS.get(provider)
    return link(zone, instance_id) if link and instance_id else ""


def _aws(zone: str, instance_id: str) -> str:
    region = _REGION.match(zone)  # eu-west-1a is in eu-west-1, and so is a local zone such as us-west-2-lax-1a
    if region is None:
        return ""
    name = region[0]
    host = f"{name}.console.aws.amazon.com"
    if name.startswith("cn-"):
        host = "console.amazonaws.cn"
    elif name.startswith("us-gov-"):
        host = "console.amazonaws-us-gov.com"
    return f"https://{host}/ec2/home?region={name}#InstanceDetails:instanceId={quote(instance_id, safe='')}"


def _azure(_: str, instance_id: str) -> str:
    # The id of a VM is its path in ARM.
    return f"https://portal.azure.com/#resource{quote(instance_id)}" if instance_id.startswith("/") else ""


def _ibmcloud(zone: str, instance_id: str) -> str:
    region, _, number = zone.rpartition("-")  # eu-de-1 is in eu-de
    if not (region and number.isdigit()):
        return ""
    return f"https://cloud.ibm.com/infrastructure/compute/vs/{quote(region)}~{quote(instance_id, safe='')}/overview"


_LINKS: Mapping[str, Callable[[str, str], str]] = {"aws": _aws, "azure": _azure, "ibmcloud": _ibmcloud}
