"""Whether a Pod of the API server is the one a sandbox was made for. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from caa.directvolumes import pod_uid
from caa.sandbox import Sandbox

# A Pod of that name made later than the sandbox is another Pod. Clocks of node and API server may differ by this.
CLOCK_SKEW = timedelta(minutes=1)


def is_that_pod(pod: dict[str, Any], sandbox: Sandbox) -> bool:
    """`pod` is as `KubernetesApi.pod` gives it. CRI-O tells the UID, containerd does not."""
    told = pod_uid(sandbox.annotations)
    if told:
        return bool(pod["uid"] == told)
    return not (pod["created"] and pod["created"] > sandbox.created_at + CLOCK_SKEW)
