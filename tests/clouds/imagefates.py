"""What may become of a builder of pod VM images at a request that a test chooses."""

from __future__ import annotations

import queue
import time
from typing import Any

from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.imagelab import PATIENCE_S, Command, ImageLab

# Long enough for another command to begin meanwhile.
_DELAY_SECONDS = 4.0


def kill_builder(lab: ImageLab, way: FaultProxy, phase: Phase, **which: Any) -> None:
    """`caa image ensure` is killed at this moment of the request that `which` names, in the words of a rule.

    When this returns, all that it had sent before has come to the cloud.
    """
    running: queue.SimpleQueue[Command] = queue.SimpleQueue()
    rule = way.add(Fault.CALL, phase, call=lambda _exchange: running.get(timeout=PATIENCE_S).kill(), **which)
    command = lab.begin("ensure")
    running.put(command)
    assert command.wait() < 0, command.said
    assert rule.fired == 1
    way.wait_until_left()


def delete_while_built(lab: ImageLab, way: FaultProxy, **which: Any) -> None:
    """`caa image delete` during the requests that `which` names: it ends the builder."""
    rule = way.add(Fault.DELAY, Phase.BEFORE, seconds=_DELAY_SECONDS, times=None, **which)
    builder = lab.begin("ensure")
    while not rule.fired:
        assert builder.process.is_alive(), builder.said
        time.sleep(0.02)
    lab.run("delete")
    assert builder.wait() == 1, builder.said
    assert "asked for the end" in builder.said
