"""Which agent calls may be sent again when the link broke before their answer came. Pure.

A call that is not listed is never repeated: whether it took effect is unknown, and its caller is told so.
"""

from __future__ import annotations

from caa.agentproxy import rewrite
from caa.ttrpc.frames import MAX_DATA

_AGENT, _HEALTH = "grpc.AgentService", "grpc.Health"
_READS = "only reads"

CHECK = (_HEALTH, "Check")
REPEATABLE: dict[tuple[str, str], str] = {
    CHECK: _READS,
    (_HEALTH, "Version"): _READS,
    (_AGENT, "WaitProcess"): "waits for the end of a process, and waits anew; also after the end, until it is removed",
    (_AGENT, "ReadStdout"): "reads the next output; what was on its way when the link broke is lost either way",
    (_AGENT, "ReadStderr"): "as ReadStdout",
    (_AGENT, "GetOOMEvent"): "waits for the next event; one on its way when the link broke is lost either way",
    (_AGENT, "GetMetrics"): _READS,
    (_AGENT, "StatsContainer"): _READS,
    (_AGENT, "GetGuestDetails"): _READS,
    (_AGENT, "GetVolumeStats"): _READS,
    (_AGENT, "GetIPTables"): _READS,
    (_AGENT, "ListInterfaces"): _READS,
    (_AGENT, "ListRoutes"): _READS,
}

# The repeatable requests hold a few names and numbers, some hundred bytes. Longer ones are not kept.
KEPT_BYTES = 16 << 10


def hold_limit(service: str, method: str) -> int:
    """Up to how many bytes a request must be at hand as a whole before it goes on."""
    if (service, method) == (rewrite.SERVICE, rewrite.METHOD):
        return MAX_DATA
    return KEPT_BYTES if (service, method) in REPEATABLE else 0
