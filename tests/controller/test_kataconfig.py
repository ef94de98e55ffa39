"""KataConfigs of every version of the schema."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from caa.controller.kataconfig import Condition, read, stamped
from caa.controller.world import RuntimeClass
from tests.controller.model import Model, body

AT = datetime(2026, 1, 1, tzinfo=UTC)
# What versions wrote into `status`.
BEFORE_1_5: dict[str, Any] = {
    "runtimeClass": "kata",
    "prevMcpGeneration": 3,
    "totalNodesCount": 2,
    "installationStatus": {"IsInProgress": "False", "completed": {"completedNodesCount": 2}},
    "unInstallationStatus": {},
}
OF_1_5_0: dict[str, Any] = {"runtimeClass": ["kata", "kata-remote"], "kataNodes": {"nodeCount": 2, "readyNodeCount": 2}}
SINCE_1_5_1: dict[str, Any] = {
    "runtimeClasses": ["kata", "kata-remote"],
    "waitingForMcoToStart": False,
    "kataNodes": {"nodeCount": 1, "readyNodeCount": 1, "installed": ["w0"]},
    "conditions": [
        {
            "type": "InProgress",
            "status": "False",
            "reason": "",
            "message": "",
            "lastTransitionTime": "2024-01-01T00:00:00Z",
        }
    ],
}
VERSIONS = {"before 1.5": BEFORE_1_5, "1.5.0": OF_1_5_0, "1.5.1 and later": SINCE_1_5_1}


@pytest.mark.parametrize(
    ("status", "classes"),
    [
        (BEFORE_1_5, ("kata",)),
        (OF_1_5_0, ("kata", "kata-remote")),
        (SINCE_1_5_1, ("kata", "kata-remote")),
        ({}, ()),
        ({"runtimeClass": ""}, ()),
        ({"runtimeClass": 7, "runtimeClasses": None, "conditions": "none"}, ()),
    ],
)
def test_runtime_classes_are_read_in_every_shape_they_were_written_in(
    status: dict[str, Any], classes: tuple[str, ...]
) -> None:
    assert read({**body(), "status": status}).runtime_classes == classes


@pytest.mark.parametrize("status", VERSIONS.values(), ids=VERSIONS)
def test_an_object_of_an_earlier_version_is_carried_over_with_its_classes(status: dict[str, Any]) -> None:
    model = Model(1, {**body(), "status": dict(status)})
    # Of the cluster's, and leading elsewhere by what is known of it: only the old status says that it is one of these.
    model.classes["kata"] = RuntimeClass("kata", here=False)
    model.install()
    now = model.config().status
    assert now["runtimeClasses"] == ["kata", "kata-remote"]
    assert now["kataNodes"] == {"nodeCount": 1, "readyNodeCount": 1, "installed": ["w0"]}
    assert now.get("runtimeClass") == status.get("runtimeClass"), "a published field keeps what it holds"
    model.run_pod("web", "w0", "kata")
    model.delete()
    model.round()
    assert model.progress() == ("True", "BlockedByExistingKataPods")


def test_the_time_of_a_condition_changes_with_its_status_only() -> None:
    before = Condition("True", "Installing", "", "2026-01-01T00:00:00Z")
    later = AT + timedelta(hours=1)
    assert stamped(Condition("True", "Failed", "no"), before, later)["lastTransitionTime"] == before.since
    assert stamped(Condition("False", "", ""), before, later)["lastTransitionTime"] == "2026-01-01T01:00:00Z"
    assert stamped(Condition("True", "Installing", ""), None, later)["lastTransitionTime"] == "2026-01-01T01:00:00Z"


def test_a_status_that_somebody_else_changed_is_made_right_in_the_next_round() -> None:
    model = Model(2).install()
    right = dict(model.config().status)
    model.configs["example"]["status"] = {"kataNodes": {"nodeCount": 9, "installing": ["w7"]}}
    model.round()
    model.round()
    now = model.config().status
    assert (now["kataNodes"], now["runtimeClasses"]) == (right["kataNodes"], right["runtimeClasses"])
