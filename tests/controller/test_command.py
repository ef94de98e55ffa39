"""`caa controller` where it cannot begin, and the objects that it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from caa.controller.nodes import LABEL
from caa.controller.objects import SHIPPED, change, daemon_sets, runtime_class
from providers.base import ConfigError

NODE = Path(__file__).parents[2] / "docker" / "kubernetes" / "node"
# A Python in which the extra is not installed.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("kopf", "lightkube", "httpx2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Missing())
from caa.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def caa(*arguments: str, prefix: tuple[str, ...] = ("-m", "caa.cli.main"), **environ: str) -> tuple[int, str]:
    command = [sys.executable, *prefix, "controller", *arguments]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("CAA_", "KUBE"))}
    done = subprocess.run(command, env=clean | environ, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.strip()


def test_without_the_extra_it_says_what_to_install() -> None:
    code, said = caa(prefix=("-c", WITHOUT), CAA_IMAGE="caa:1")
    assert code == 1
    assert said == (
        "caa: `caa controller` needs a library that is not installed (httpx2): "
        "pip install peerpod-cloud-adaptor[kubernetes]"
    )


def test_a_grace_time_that_lists_of_clouds_may_lag_behind_is_refused() -> None:
    for text in ("5", "-1", "nan", "inf", "soon"):
        code, said = caa(f"--orphan-grace={text}")
        assert code == 2
        assert f"'{text}' is not allowed: must be a number of seconds from 60" in said


def test_where_no_api_server_can_be_found_it_says_so(tmp_path: Path) -> None:
    code, said = caa(CAA_IMAGE="caa:1", KUBECONFIG=str(tmp_path / "none"), HOME=str(tmp_path))
    assert code == 1
    assert "where the API server is cannot be told" in said
    assert "Traceback" not in said


def test_what_ships_goes_onto_our_nodes_whatever_their_taints_with_our_image() -> None:
    for body in daemon_sets(SHIPPED, "here", "registry.example.com/caa:7").values():
        spec = body["spec"]["template"]["spec"]
        assert body["metadata"]["namespace"] == "here"
        assert spec["nodeSelector"] == {LABEL: ""}
        assert spec["tolerations"] == [{"operator": "Exists"}]
        assert {one["image"] for one in spec["containers"]} == {"registry.example.com/caa:7"}
        selector = body["spec"]["selector"]["matchLabels"]
        assert selector.items() <= body["spec"]["template"]["metadata"]["labels"].items()


def test_the_controller_makes_what_an_overlay_installs() -> None:
    for name in ("serve.yaml", "proxy.yaml"):
        assert (SHIPPED / name).read_text() == (NODE / name).read_text(), f"copy {name} from docker/kubernetes/node"
    made = runtime_class()
    del made["metadata"]["labels"]
    assert made == yaml.safe_load((NODE / "runtimeclass.yaml").read_text())


def test_an_image_of_another_name_stays_as_it_is(tmp_path: Path) -> None:
    body = yaml.safe_load((SHIPPED / "proxy.yaml").read_text())
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "other:2"
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(body))
    (made,) = daemon_sets(tmp_path, "here", "caa:7").values()
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "other:2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{kind: ConfigMap, metadata: {name: one}}", "'ConfigMap' is not allowed: every object must be a DaemonSet"),
        ("just words", "every object must be a DaemonSet"),
        ("{kind: DaemonSet, metadata: {}}", "cannot be read"),
        ("{kind: [", "cannot be read"),
        ("", "every object must be a DaemonSet"),
    ],
)
def test_manifests_that_are_none_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "one.yaml").write_text(text or "---\n")
    with pytest.raises(ConfigError, match=said):
        daemon_sets(tmp_path, "here", "caa:7")


def test_defaults_that_the_api_server_adds_are_no_change_and_a_field_that_is_gone_is_one() -> None:
    wanted = {"metadata": {"name": "one"}, "spec": {"list": [{"a": 1}], "map": {"b": 2}}}
    first = change(wanted, {"metadata": {"name": "one"}}, "digest")
    assert first is not None
    live = {**first, "spec": {"list": [{"a": 1, "default": True}], "map": {"b": 2, "default": True}, "more": 3}}
    assert change(wanted, live, "digest") is None
    assert change(wanted, live, "another digest") is not None
    for spec in ({"list": [], "map": {"b": 2}}, {"list": [{"a": 2}], "map": {"b": 2}}, {"list": [{"a": 1}]}):
        assert change(wanted, {**live, "spec": spec}, "digest") is not None
