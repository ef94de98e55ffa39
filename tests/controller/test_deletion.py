"""The end of a KataConfig: what it waits for, what keeps it, and that it goes on by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.controller.kataconfig import FINALIZER
from caa.controller.world import Build, Image, RuntimeClass
from tests.controller.model import Model, body


def finish(model: Model, rounds: int = 8) -> None:
    for _ in range(rounds):
        model.round()
        model.settle()


def uninstalled(model: Model) -> bool:
    """Whether nothing is left."""
    return not (model.configs or model.daemon_sets or model.classes or model.labelled() or model.pods)


def test_the_finalizer_is_there_before_anything_else_is_done() -> None:
    decision = Model(2).round()
    assert decision.adopt == "example"


def test_a_deletion_during_the_install_waits_for_its_end_and_then_goes_on_by_itself() -> None:
    model = Model(2)
    model.round()
    model.round()
    model.pods_on("w0", ready=True)
    model.pods_on("w1")
    model.delete()
    for _ in range(3):
        decision = model.round()
        assert (decision.unlabel, decision.remove_class, decision.remove_daemon_sets) == ((), False, False)
        assert model.progress() == ("True", "Installing")
    model.pods_on("w1", ready=True)
    finish(model)
    assert uninstalled(model)


def test_a_deletion_during_an_update_waits_for_its_end_and_then_goes_on_by_itself() -> None:
    model = Model(2).install()
    model.add_node("w2")
    model.round()
    model.delete()
    for _ in range(3):
        model.round()
        assert model.progress() == ("True", "Updating")
        assert len(model.labelled()) == 3
    finish(model)
    assert uninstalled(model)


def test_no_further_node_joins_once_a_deletion_was_asked_for() -> None:
    model = Model(1)
    model.round()
    model.round()
    model.delete()
    model.add_node("w1")
    model.round()
    assert model.labelled() == ["w0"]


def test_a_failed_install_does_not_keep_a_deletion() -> None:
    model = Model(2)
    model.round()
    model.pods_on("w0", trouble="CrashLoopBackOff")
    model.pods_on("w1", ready=True)
    model.round()
    assert model.progress() == ("True", "Failed")
    model.delete()
    model.round()
    model.round()
    assert model.labelled() == []
    finish(model)
    assert uninstalled(model)


def test_objects_that_the_api_server_refuses_do_not_keep_a_deletion() -> None:
    model = Model(1)
    model.round()
    model.round()
    model.trouble = "DaemonSet caa-serve: 403 exceeded quota"
    model.round()
    assert (model.progress(), model.message()) == (("True", "Failed"), model.trouble)
    model.delete()
    finish(model)
    assert uninstalled(model)


def test_what_is_refused_is_not_waited_for_even_when_no_node_ever_gets_a_pod() -> None:
    model = Model(2)
    model.round()
    model.trouble = "DaemonSet caa-serve: 403 exceeded quota"
    model.delete()
    for _ in range(6):
        model.round()
    assert uninstalled(model)


def test_a_pod_that_restarts_meanwhile_does_not_turn_a_deletion_back() -> None:
    model = Model(2).install()
    model.delete()
    model.round()
    model.pods_on("w0")
    model.round()
    assert (model.progress(), model.labelled()) == (("True", "Uninstalling"), [])


def test_a_node_that_does_not_answer_does_not_keep_a_deletion() -> None:
    model = Model(2)
    model.round()
    model.add_node("w1", ready=False, **model.nodes["w1"].labels)
    model.pods_on("w0", ready=True)
    model.pods_on("w1")
    model.delete()
    for _ in range(6):
        model.round()
        model.no_pods_on("w0")  # the other node's pods are there for as long as it is silent
    assert not model.configs


def test_a_deletion_during_the_image_build_waits_for_it_and_leaves_no_image() -> None:
    model = Model(2).install()
    model.image = Image(Build.RUNNING, "is being built: upload, 40 %", ours=True)
    model.round()
    assert model.progress() == ("True", "PodVMImageJobRunning")
    assert model.message() == "Creating Pod VM Image: it is being built: upload, 40 %"
    model.delete()
    for _ in range(3):
        assert model.round().unlabel == ()
    model.image = Image(Build.READY, ours=True)
    finish(model)
    assert uninstalled(model)
    assert model.image_deleted == 1


def test_an_image_that_a_user_named_is_left_alone() -> None:
    model = Model(1).install()
    model.image = Image(Build.NONE)
    model.delete()
    finish(model)
    assert uninstalled(model)
    assert model.image_deleted == 0


def test_a_failed_image_build_stays_told_and_does_not_keep_a_deletion() -> None:
    model = Model(1).install()
    model.image = Image(Build.FAILED, "could not be built, AccessDenied: no", ours=True)
    for _ in range(2):
        model.round()
        assert model.progress() == ("True", "PodVMImageJobFailed")
    model.delete()
    finish(model)
    assert uninstalled(model)
    assert model.image_deleted == 1


def test_while_the_ledger_does_not_answer_nobody_says_that_no_image_is_left() -> None:
    model = Model(1).install()
    model.image = Image(Build.UNKNOWN, "the ledger does not answer")
    model.round()
    assert model.progress() == ("Unknown", "PodVMImageJobStatusUnknown")
    model.delete()
    finish(model)
    assert list(model.configs) == ["example"]
    assert model.progress() == ("Unknown", "PodVMImageJobStatusUnknown")
    model.image = Image()
    finish(model)
    assert uninstalled(model)


def test_a_configuration_that_cannot_work_is_told_by_its_key_and_does_not_keep_a_deletion() -> None:
    model = Model(1).install()
    model.image = Image(Build.INCOMPLETE, "AWS_SUBNET_ID: is required")
    model.round()
    assert model.progress() == ("True", "ConfigIncomplete")
    assert model.message() == "AWS_SUBNET_ID: is required"
    model.delete()
    finish(model)
    assert uninstalled(model)


def test_a_running_peer_pod_keeps_a_deletion_and_is_named() -> None:
    model = Model(2).install()
    model.run_pod("web", "w0")
    model.delete()
    finish(model, 3)
    assert model.progress() == ("True", "BlockedByExistingKataPods")
    assert model.message() == (
        'Existing pods using "kata-remote" RuntimeClass found. Please delete the pods manually for KataConfig '
        "deletion to proceed: default/web"
    )
    assert (model.labelled(), list(model.classes)) == (["w0", "w1"], ["kata-remote"])
    model.peer_pods.clear()
    finish(model)
    assert uninstalled(model)


@pytest.mark.parametrize("runtime_class", ["kata-remote", "kata", "kata-remote-gpu"])
def test_pods_of_every_class_in_the_status_keep_a_deletion(runtime_class: str) -> None:
    model = Model(1)
    for name in ("kata", "kata-remote-gpu"):
        model.classes[name] = RuntimeClass(name)
    model.classes["runc-fast"] = RuntimeClass("runc-fast", here=False)
    model.install()
    assert model.config().status["runtimeClasses"] == ["kata", "kata-remote", "kata-remote-gpu"]
    model.run_pod("web", "w0", runtime_class)
    model.delete()
    finish(model, 3)
    assert model.progress() == ("True", "BlockedByExistingKataPods")


def test_pods_of_other_classes_keep_nothing() -> None:
    model = Model(1)
    model.classes["gvisor"] = RuntimeClass("gvisor", here=False)
    model.install()
    model.run_pod("web", "w0", "gvisor")
    model.delete()
    finish(model)
    assert not model.configs


def test_a_pod_that_was_admitted_at_the_last_moment_keeps_its_node() -> None:
    model = Model(1).install()
    model.delete()
    assert model.round().remove_class
    model.run_pod("late", "w0")
    for _ in range(3):
        model.round()
    assert model.progress() == ("True", "BlockedByExistingKataPods")
    assert model.labelled() == ["w0"]
    model.peer_pods.clear()
    finish(model)
    assert uninstalled(model)


def test_a_runtime_class_that_somebody_else_made_is_left_there() -> None:
    model = Model(1)
    model.classes["kata-remote"] = RuntimeClass("kata-remote")
    model.install()
    model.delete()
    finish(model)
    assert list(model.classes) == ["kata-remote"]
    assert not model.configs


def test_a_deletion_without_a_matching_node_completes() -> None:
    model = Model(2, body(kataConfigPoolSelector={"matchLabels": {"pool": "none"}}))
    model.round()
    model.round()
    assert model.progress() == ("False", "")
    model.delete()
    finish(model)
    assert uninstalled(model)


def test_a_deletion_of_what_was_never_begun_is_held_up_by_nothing() -> None:
    model = Model(2)
    model.delete()
    assert not model.configs


def test_a_deletion_with_a_wrong_selector_completes() -> None:
    model = Model(1).install()
    wrong = {"matchExpressions": [{"key": "a", "operator": "Is"}]}
    model.configs["example"]["spec"]["kataConfigPoolSelector"] = wrong
    model.delete()
    finish(model)
    assert uninstalled(model)


def test_peer_pods_switched_off_are_removed_and_the_kata_config_stays() -> None:
    model = Model(2).install()
    model.configs["example"]["spec"]["enablePeerPods"] = False
    finish(model)
    assert (model.daemon_sets, model.classes, model.labelled()) == (set(), {}, [])
    assert model.progress() == ("False", "")
    assert model.config().finalizers == (FINALIZER,)


def test_only_the_first_kata_config_is_honoured_and_the_second_is_told_so() -> None:
    second = body("second", created=5, kataConfigPoolSelector={"matchLabels": {"pool": "none"}})
    model = Model(2, second, body("first", created=1)).install("first")
    assert model.labelled() == ["w0", "w1"]
    assert model.progress("second") == ("False", "DuplicateKataConfig")
    assert model.message("second").startswith("A KataConfig instance already exists (first)")
    assert model.config("second").finalizers == ()
    model.delete("first")
    for _ in range(10):
        model.round()
        model.settle()
    assert list(model.configs) == ["second"]
    assert model.labelled() == [], "the second one chooses no node"
    assert model.progress("second") == ("False", "")


acts = st.lists(
    st.tuples(
        st.sampled_from(["start", "ready", "fail", "end", "gone", "relabel", "pod", "build", "built", "round", "away"]),
        st.integers(0, 2),
    ),
    max_size=20,
)


@given(acts, acts)
def test_whatever_happens_no_node_with_a_pod_is_taken_away_and_in_the_end_a_deletion_completes(
    before: list[tuple[str, int]], after: list[tuple[str, int]]
) -> None:
    model = Model(3, body(kataConfigPoolSelector={"matchLabels": {"pool": "kata"}}))
    model.round()
    for act, number in before:
        happen(model, act, f"w{number}")
    model.delete()
    for act, number in after:
        happen(model, act, f"w{number}")
    # People and kubelets do their part.
    model.peer_pods.clear()
    model.image = Image(Build.READY, ours=True) if model.image.ours else Image()
    finish(model, 12)
    assert not model.configs
    assert (model.daemon_sets, model.classes, model.labelled()) == (set(), {}, [])
    assert not model.image.ours


def happen(model: Model, act: str, name: str) -> None:
    """And a round that sees it."""
    whatever: dict[str, Callable[[], object]] = {
        "start": lambda: model.pods_on(name),
        "ready": lambda: model.pods_on(name, ready=True),
        "fail": lambda: model.pods_on(name, trouble="CrashLoopBackOff"),
        "end": lambda: model.pods_on(name, ending=True),
        "gone": lambda: model.no_pods_on(name),
        "relabel": lambda: model.relabel(name, pool=None if "pool" in model.nodes[name].labels else "kata"),
        "pod": lambda: model.run_pod("web", name) if model.nodes[name].labelled else None,
        "build": lambda: setattr(model, "image", Image(Build.RUNNING, "is being built", ours=True)),
        "built": lambda: setattr(model, "image", Image(Build.READY, ours=True)),
        "round": model.settle,
        "away": lambda: model.add_node(name, ready=not model.nodes[name].ready, **model.nodes[name].labels),
    }
    if model.configs:  # afterwards it is nobody's business here
        whatever[act]()
        used = {pod.node for pod in model.peer_pods} & set(model.labelled())
        model.round()
        assert used <= set(model.labelled())


@pytest.mark.parametrize("killed_after", range(7))
def test_a_deletion_goes_on_from_wherever_a_controller_ended(killed_after: int) -> None:
    # Nothing is remembered between two rounds, so a round that is repeated is a restart.
    model = Model(2).install()
    model.delete()
    for _ in range(killed_after):
        if model.configs:
            model.round()
    model.settle()
    finish(model)
    assert uninstalled(model)
