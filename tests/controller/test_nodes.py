"""The lists of nodes: the table of states, the documented sequence, nodes that come and go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.controller.decide import decide
from caa.controller.nodes import DEADLINE, LABEL, NodeList, Progress, classify
from caa.controller.selector import SelectorError, matcher
from caa.controller.world import Build, Image
from tests.controller.model import PROXY, Model, body

DONE, WORKING, DEGRADED = Progress.DONE, Progress.WORKING, Progress.DEGRADED
# One row of the documented table each: state, whether what runs is what shall, whether the node shall run peer pods.
ROWS = {
    "done, current, kata: installed": (DONE, True, True, NodeList.INSTALLED),
    "done, current, not kata: in no list": (DONE, True, False, None),
    "done, not current, kata: waits to be installed": (DONE, False, True, NodeList.WAITING_TO_INSTALL),
    "done, not current, not kata: waits to be uninstalled": (DONE, False, False, NodeList.WAITING_TO_UNINSTALL),
    "working, kata: is being installed": (WORKING, False, True, NodeList.INSTALLING),
    "working, whatever runs, kata": (WORKING, True, True, NodeList.INSTALLING),
    "working, not kata: is being uninstalled": (WORKING, False, False, NodeList.UNINSTALLING),
    "working, whatever runs, not kata": (WORKING, True, False, NodeList.UNINSTALLING),
    "degraded, kata: failed to install": (DEGRADED, False, True, NodeList.FAILED_TO_INSTALL),
    "degraded, whatever runs, kata": (DEGRADED, True, True, NodeList.FAILED_TO_INSTALL),
    "degraded, not kata: failed to uninstall": (DEGRADED, False, False, NodeList.FAILED_TO_UNINSTALL),
    "degraded, whatever runs, not kata": (DEGRADED, True, False, NodeList.FAILED_TO_UNINSTALL),
}


@pytest.mark.parametrize(("progress", "current", "kata", "where"), ROWS.values(), ids=ROWS)
def test_each_state_of_a_node_is_in_its_list(
    progress: Progress, current: bool, kata: bool, where: NodeList | None
) -> None:
    assert classify(progress, current=current, kata=kata) is where


def test_two_nodes_go_through_the_documented_sequence() -> None:
    model = Model(2)
    model.round()
    assert model.progress() == ("True", "Installing")
    assert model.message() == "Performing initial installation of kata-remote on cluster"
    assert model.kata_nodes() == {"nodeCount": 0, "readyNodeCount": 0}
    model.round()
    assert model.kata_nodes() == {"nodeCount": 2, "readyNodeCount": 0, "waitingToInstall": ["w0", "w1"]}
    model.pods_on("w1")
    model.round()
    assert model.kata_nodes() == {
        "nodeCount": 2,
        "readyNodeCount": 0,
        "installing": ["w1"],
        "waitingToInstall": ["w0"],
    }
    model.pods_on("w1", ready=True)
    model.pods_on("w0")
    model.round()
    assert model.kata_nodes() == {"nodeCount": 2, "readyNodeCount": 1, "installed": ["w1"], "installing": ["w0"]}
    assert model.progress() == ("True", "Installing")
    assert not model.classes, "no pod can be scheduled before the class is made, at the end"
    model.pods_on("w0", ready=True)
    model.round()
    model.round()
    assert model.kata_nodes() == {"nodeCount": 2, "readyNodeCount": 2, "installed": ["w0", "w1"]}
    assert model.progress() == ("False", "")
    assert model.message() == ""
    assert model.config().status["runtimeClasses"] == ["kata-remote"]


def test_uninstalling_mirrors_the_sequence_and_counts_no_nodes() -> None:
    model = Model(2).install()
    model.delete()
    model.round()
    assert model.progress() == ("True", "Uninstalling")
    assert model.message() == "Removing kata from cluster"
    assert model.kata_nodes() == {"nodeCount": 0, "readyNodeCount": 0, "waitingToUninstall": ["w0", "w1"]}
    model.round()
    assert model.labelled() == []
    model.pods_on("w1", ending=True)
    model.round()
    assert model.kata_nodes() == {
        "nodeCount": 0,
        "readyNodeCount": 0,
        "uninstalling": ["w1"],
        "waitingToUninstall": ["w0"],
    }
    model.no_pods_on("w1")
    model.pods_on("w0", ending=True)
    model.round()
    assert model.kata_nodes() == {"nodeCount": 0, "readyNodeCount": 0, "uninstalling": ["w0"]}
    model.no_pods_on("w0")
    model.round()
    model.round()
    assert not model.configs
    assert not model.daemon_sets
    assert not model.classes


def test_a_node_whose_label_comes_joins_and_one_whose_label_goes_leaves_without_a_new_kata_config() -> None:
    model = Model(2, body(kataConfigPoolSelector={"matchLabels": {"pool": "kata"}}))
    model.relabel("w0", pool="kata")
    model.install()
    uid = model.config().uid
    assert model.kata_nodes() == {"nodeCount": 1, "readyNodeCount": 1, "installed": ["w0"]}

    model.relabel("w1", pool="kata")
    model.round()
    assert model.progress() == ("True", "Updating")
    assert model.message() == "Adding and/or removing kata-enabled nodes"
    model.round()
    assert model.kata_nodes()["waitingToInstall"] == ["w1"]
    model.pods_on("w1")
    model.round()
    assert model.kata_nodes()["installing"] == ["w1"]
    model.settle()
    model.round()
    assert model.kata_nodes() == {"nodeCount": 2, "readyNodeCount": 2, "installed": ["w0", "w1"]}
    assert model.progress() == ("False", "")

    model.relabel("w0", pool=None)
    model.round()
    assert model.kata_nodes() == {
        "nodeCount": 1,
        "readyNodeCount": 1,
        "installed": ["w1"],
        "waitingToUninstall": ["w0"],
    }
    model.pods_on("w0", ending=True)
    model.round()
    assert model.kata_nodes()["uninstalling"] == ["w0"]
    model.settle()
    model.round()
    assert model.kata_nodes() == {"nodeCount": 1, "readyNodeCount": 1, "installed": ["w1"]}
    assert model.config().uid == uid


def test_a_node_that_peer_pods_run_on_leaves_when_they_are_gone() -> None:
    model = Model(2, body(kataConfigPoolSelector={"matchLabels": {"pool": "kata"}}))
    model.relabel("w0", pool="kata")
    model.relabel("w1", pool="kata")
    model.install()
    model.run_pod("web", "w0")
    model.run_pod("db", "w1")
    model.relabel("w0", pool=None)
    for _ in range(3):
        model.round()
        model.settle()
    assert model.labelled() == ["w0", "w1"]
    assert model.kata_nodes()["waitingToUninstall"] == ["w0"]
    assert model.progress() == ("True", "Updating")
    assert model.message().endswith("; w0 leaves when its peer pods are gone: default/web")
    model.peer_pods = [pod for pod in model.peer_pods if pod.node != "w0"]
    model.round()
    assert model.labelled() == ["w1"]


def test_a_node_that_fails_is_told_with_its_reason_until_it_works() -> None:
    model = Model(2).install()
    model.pods_on("w0", trouble="CrashLoopBackOff: back-off 5m0s restarting failed container")
    model.round()
    assert model.progress() == ("True", "Failed")
    assert model.message() == (
        "Node w0 Degraded: caa-serve: CrashLoopBackOff: back-off 5m0s restarting failed container"
    )
    assert model.kata_nodes() == {
        "nodeCount": 2,
        "readyNodeCount": 1,
        "installed": ["w1"],
        "failedToInstall": ["w0"],
    }
    model.pods_on("w0", ready=True)
    model.round()
    assert model.progress() == ("False", "")


def test_while_a_daemon_set_replaces_its_pods_one_by_one_it_is_told_also_between_two() -> None:
    model = Model(2).install()
    model.rolling = True
    model.round()
    assert model.progress() == ("True", "Updating")
    model.rolling = False
    model.round()
    assert model.progress() == ("False", "")


def test_one_node_that_fails_does_not_keep_the_others_from_being_used() -> None:
    model = Model(2)
    model.round()
    model.round()
    model.pods_on("w0", trouble="ErrImagePull: no such image")
    model.pods_on("w1", ready=True)
    model.round()
    assert model.progress() == ("True", "Failed")
    assert list(model.classes) == ["kata-remote"]


def test_a_pod_that_is_not_ready_in_time_has_failed() -> None:
    model = Model(1).install()
    model.pods_on("w0")
    model.now += DEADLINE
    model.round()
    assert model.message() == "Node w0 Degraded: caa-serve: not ready for more than 10 minutes"


def test_while_the_image_is_built_no_pod_is_late_and_the_class_waits() -> None:
    model = Model(1)
    model.image = Image(Build.RUNNING, "is being built: import, 10 %", ours=True)
    model.round()
    model.round()
    model.pods_on("w0")
    model.now += 3 * DEADLINE
    model.round()
    assert model.progress() == ("True", "PodVMImageJobRunning")
    assert (model.kata_nodes()["installing"], model.classes) == (["w0"], {})
    model.image = Image(Build.READY, ours=True)
    model.pods_on("w0", ready=True)
    model.round()
    model.round()
    assert model.progress() == ("False", "")
    assert list(model.classes) == ["kata-remote"]


def test_a_pod_that_does_not_end_in_time_has_failed_to_uninstall() -> None:
    model = Model(1).install()
    model.relabel("w0", **{"node-role.kubernetes.io/worker": None, "node-role.kubernetes.io/master": ""})
    model.round()
    model.pods_on("w0", ending=True)
    model.now += DEADLINE + timedelta(minutes=2)
    model.round()
    assert model.kata_nodes() == {"nodeCount": 0, "readyNodeCount": 0, "failedToUninstall": ["w0"]}
    assert model.message() == "Node w0 Degraded: caa-serve: has been ending for more than 12 minutes"


def test_a_node_with_one_of_two_components_is_not_installed() -> None:
    model = Model(1).install()
    del model.pods["w0", PROXY]
    model.round()
    assert model.kata_nodes()["installing"] == ["w0"]


def test_without_a_selector_workers_are_chosen_and_control_planes_are_not() -> None:
    model = Model(1)
    model.add_node("cp")
    model.relabel("cp", **{"node-role.kubernetes.io/worker": None, "node-role.kubernetes.io/control-plane": ""})
    model.add_node("plain")
    model.relabel("plain", **{"node-role.kubernetes.io/worker": None})
    assert decide(model.world()).label == ("plain", "w0")


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_selectors_are_read_as_kubernetes_reads_them(
    selector: dict[str, object], labels: dict[str, str], matches: bool
) -> None:
    assert matcher(selector)(labels) is matches


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ({"key": "a", "operator": "Is", "values": ["1"]}, "operator 'Is' of 'a' must be one of In, NotIn"),
        ({"key": "a", "operator": "In"}, "operator In of 'a' takes at least one value"),
        ({"key": "a", "operator": "Exists", "values": ["1"]}, "operator Exists of 'a' takes no values"),
    ],
)
def test_a_wrong_selector_is_told_and_changes_no_node(expression: dict[str, object], said: str) -> None:
    with pytest.raises(SelectorError, match=said):
        matcher({"matchExpressions": [expression]})
    model = Model(2).install()
    model.configs["example"]["spec"]["kataConfigPoolSelector"] = {"matchExpressions": [expression]}
    model.round()
    assert model.progress() == ("True", "Failed")
    assert said in model.message()
    assert model.labelled() == ["w0", "w1"]


_acts = st.lists(
    st.tuples(
        st.sampled_from(
            ["start", "ready", "fail", "end", "gone", "choose", "leave", "pod", "no pods", "delete", "away"]
        ),
        st.integers(0, 3),
    ),
    max_size=25,
)


def _do(model: Model, act: str, name: str) -> None:
    acts: dict[str, Callable[[], object]] = {
        "start": lambda: model.pods_on(name),
        "ready": lambda: model.pods_on(name, ready=True),
        "fail": lambda: model.pods_on(name, trouble="CrashLoopBackOff"),
        "end": lambda: model.pods_on(name, ending=True),
        "gone": lambda: model.no_pods_on(name),
        "choose": lambda: model.relabel(name, pool="kata"),
        "leave": lambda: model.relabel(name, pool=None),
        "pod": lambda: model.run_pod("web", name),
        "no pods": model.peer_pods.clear,
        "delete": model.delete,
        "away": lambda: model.add_node(name, ready=False, **model.nodes[name].labels),
    }
    acts[act]()


@given(_acts)
def test_counters_are_the_lengths_of_lists_and_no_node_is_in_two(acts: list[tuple[str, int]]) -> None:
    model = Model(4, body(kataConfigPoolSelector={"matchLabels": {"pool": "kata"}}))
    model.round()
    for act, number in acts:
        _do(model, act, f"w{number}")
        seen_labels = model.labelled()
        model.round()
        if not model.configs:
            assert model.labelled() == []
            return
        nodes = dict(model.kata_nodes())
        counted, ready = nodes.pop("nodeCount"), nodes.pop("readyNodeCount")
        assert set(nodes) <= {one.value for one in NodeList}
        assert all(nodes.values()), "empty lists are left out"
        listed = [one for names in nodes.values() for one in names]
        assert len(listed) == len(set(listed)), "in two lists"
        assert ready == len(nodes.get("installed", []))
        install = {"installed", "installing", "waitingToInstall", "failedToInstall"}
        assert counted == sum(len(names) for where, names in nodes.items() if where in install)
        assert counted <= len(seen_labels)
        status, reason = model.progress()
        assert (status == "False") == (reason == "")
        if reason == "":
            assert model.message() == ""
            assert set(listed) == set(nodes.get("installed", []))


def test_nothing_is_written_to_a_node_that_is_as_it_shall_be() -> None:
    model = Model(3).install()
    decision = model.round()
    assert (decision.label, decision.unlabel, decision.adopt) == ((), (), "")
    assert all(LABEL in node.labels for node in model.nodes.values())
