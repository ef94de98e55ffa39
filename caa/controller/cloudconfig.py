"""The cloud's configuration as the controller has it: the same keys, from the same places, as the service's."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from caa import configuring
from caa.sources import Sources
from providers.base import ConfigError, Problem, Provider


def values(environ: MutableMapping[str, str] = os.environ) -> dict[str, str] | None:
    """The keys as they are now; None where no cloud is configured. Raises ConfigError."""
    merged = Sources(environ).read()
    if not merged.values.get("CLOUD_PROVIDER", "").strip():
        return None
    configuring.hand_to_sdk(merged, environ)
    return merged.over(environ)


def cloud() -> tuple[str, Provider] | None:
    """The cluster's id and its cloud, asked nothing yet. None where no cloud is configured. Raises ConfigError.

    Without an id of its own a cluster might take another one's VMs for its own.
    """
    found = values()
    if found is None:
        return None
    if not found.get("CAA_CLUSTER_ID", "").strip():
        text = "'' is not allowed where VMs of nodes that are gone are to be ended: must name this cluster alone"
        raise ConfigError([Problem("CAA_CLUSTER_ID", text)])
    configured = configuring.build(found)
    return configured.settings.cluster_id, configured.provider
