"""The manifests of each cloud: valid, whole in themselves, and true to the code and the image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from caa.cli.main import COMMANDS
from caa.controller.nodes import LABEL
from caa.controller.objects import SHIPPED, runtime_class
from caa.directvolumes import DIRECTORY
from caa.knownkeys import keys_of
from caa.settings import load
from tests.deploy.kustomize import Manifest, containers, identity, render
from tests.webhook.test_manifests import VERSIONS

ROOT = Path(__file__).parents[2] / "docker" / "kubernetes"
CLOUDS = ("aws", "azure", "ibmcloud", "libvirt")
# What the Prometheus operator defines; kubernetes-validate knows Kubernetes' own kinds alone.
OPERATORS_KINDS = {"ServiceMonitor", "PrometheusRule"}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def monitored(tmp_path: Path) -> list[Manifest]:
    """The base with the component `monitoring`, as an overlay that has its two lines uncommented."""
    shutil.copytree(ROOT, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "aws"
    text = (overlay / "kustomization.yaml").read_text()
    wanted = "# components:\n#   - ../../monitoring\n"
    assert wanted in text
    (overlay / "kustomization.yaml").write_text(text.replace(wanted, wanted.replace("# ", "").replace("#", "")))
    return render(overlay)


def overlay(cloud: str) -> list[Manifest]:
    return render(ROOT / "overlays" / cloud)


def the(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pod_spec(manifest: Manifest) -> dict[str, Any]:
    return dict(manifest["spec"]["template"]["spec"])


def keys(manifest: Manifest) -> set[str]:
    return set(manifest.get("data", {})) | set(manifest.get("stringData", {}))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(cloud: str, version: str) -> None:
    for manifest in overlay(cloud):
        kubernetes_validate.validate(manifest, version, strict=True)
    kubernetes_validate.validate(secret_example(cloud), version, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl to compare with")
def test_kustomize_makes_the_same_of_it(cloud: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "overlays" / cloud)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = {identity(one): one for one in yaml.safe_load_all(done.stdout)}
    assert {identity(one): one for one in overlay(cloud)} == theirs


def secret_example(cloud: str) -> Manifest:
    return dict(yaml.safe_load((ROOT / "overlays" / cloud / "secret.example.yaml").read_text()))


def test_every_key_is_one_of_this_cloud_and_the_values_are_taken(cloud: str) -> None:
    config, secret = the(overlay(cloud), "ConfigMap", "peer-pods-cm"), secret_example(cloud)
    known = {key.name for key in keys_of(cloud)}
    assert keys(config) | keys(secret) <= known
    # What is offered in comments, too.
    text = (ROOT / "overlays" / cloud / "config.yaml").read_text()
    offered = {line.strip(" #").partition(":")[0] for line in text.splitlines() if line.startswith("  # ")}
    assert {word for word in offered if word.isupper() and "_" in word and " " not in word} <= known
    serve = the(overlay(cloud), "DaemonSet", "caa-serve")
    (container,) = containers(serve)
    environ = {one["name"]: one.get("value", "peerpods-nodes") for one in container["env"]}
    assert set(environ) <= known
    settings = load(config["data"] | secret["stringData"] | environ)
    assert (settings.cloud_provider, settings.start_proxy, settings.kubernetes) == (cloud, False, True)


def test_no_secret_is_applied_and_the_example_is_read_by_the_service(cloud: str) -> None:
    assert not [one for one in overlay(cloud) if one["kind"] == "Secret"]
    secret = secret_example(cloud)
    volume = next(
        one for one in pod_spec(the(overlay(cloud), "DaemonSet", "caa-serve"))["volumes"] if one["name"] == "secret"
    )
    assert secret["metadata"] == {"name": volume["secret"]["secretName"], "namespace": "peerpods-nodes"}


def test_what_is_referred_to_is_there(cloud: str) -> None:
    manifests = overlay(cloud)
    there = {identity(one) for one in manifests}
    for daemon_set in (one for one in manifests if one["kind"] == "DaemonSet"):
        namespace, spec = daemon_set["metadata"]["namespace"], pod_spec(daemon_set)
        if "serviceAccountName" in spec:
            assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in there
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", namespace, volume["configMap"]["name"]) in there
            if "secret" in volume:
                assert volume["secret"]["optional"]
        for container in containers(daemon_set):
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in spec["volumes"]}
    for binding in (one for one in manifests if one["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        role, namespace = binding["roleRef"], binding["metadata"].get("namespace", "")
        assert (role["kind"], namespace if role["kind"] == "Role" else "", role["name"]) in there
        for subject in binding["subjects"]:
            assert (subject["kind"], subject["namespace"], subject["name"]) in there
    spaces = {one["metadata"]["namespace"] for one in manifests if "namespace" in one["metadata"]}
    assert spaces == {one["metadata"]["name"] for one in manifests if one["kind"] == "Namespace"}


def test_every_role_is_bound_but_that_of_pull_secrets(cloud: str) -> None:
    manifests = overlay(cloud)
    roles = {(one["kind"], one["metadata"]["name"]) for one in manifests if one["kind"] in ("Role", "ClusterRole")}
    bound = {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in manifests if "roleRef" in one}
    assert roles - bound == {("ClusterRole", "caa-node-pull-secrets")}


def test_containers_run_commands_of_the_image(cloud: str) -> None:
    for manifest in overlay(cloud):
        for container in containers(manifest):
            # The image's entry point is `caa`, and there is no other image.
            assert container["image"] == f"registry.example.com/caa:{cloud}"
            assert container["args"][0] in COMMANDS
            probe = container["readinessProbe"]["exec"]["command"]
            assert probe[:2] == ["caa", "health"]
            assert not {"livenessProbe", "startupProbe"} & set(container)
            done = subprocess.run([sys.executable, "-m", "caa.cli.main", *probe[1:], "--help"], capture_output=True)
            assert done.returncode == 0


def test_both_processes_share_the_directories_that_the_code_has(cloud: str) -> None:
    settings = load({"CLOUD_PROVIDER": "libvirt"})
    for name in ("caa-serve", "caa-proxy"):
        spec = pod_spec(the(overlay(cloud), "DaemonSet", name))
        (container,) = spec["containers"]
        host = {one["name"]: one["hostPath"]["path"] for one in spec["volumes"] if "hostPath" in one}
        places = {one["mountPath"]: host[one["name"]] for one in container["volumeMounts"] if one["name"] in host}
        assert all(inside == outside for inside, outside in places.items())
        assert {str(settings.run_dir), str(settings.state_dir)} <= set(places)
        assert spec["hostNetwork"]
    assert {"/run/netns", str(DIRECTORY)} <= set(places_of(cloud, "caa-serve"))
    for path in (settings.hypervisor_socket, settings.pods_dir, settings.api_socket):
        assert path.is_relative_to(settings.run_dir)


def places_of(cloud: str, name: str) -> list[str]:
    (container,) = containers(the(overlay(cloud), "DaemonSet", name))
    return [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_control_plane_rolls_and_the_data_plane_waits(cloud: str) -> None:
    manifests = overlay(cloud)
    assert the(manifests, "DaemonSet", "caa-serve")["spec"]["updateStrategy"] == {
        "rollingUpdate": {"maxUnavailable": 1}
    }
    proxy = the(manifests, "DaemonSet", "caa-proxy")
    assert proxy["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert not pod_spec(proxy)["automountServiceAccountToken"]
    (container,) = containers(proxy)
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "limits" not in container["resources"]


def test_nothing_is_privileged_and_every_root_is_read_only(cloud: str) -> None:
    for manifest in overlay(cloud):
        for container in containers(manifest):
            security = container["securityContext"]
            assert "privileged" not in security
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"]["drop"] == ["ALL"]
            assert pod_spec(manifest)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_controller_makes_the_very_same_objects() -> None:
    for name in ("serve.yaml", "proxy.yaml"):
        assert (SHIPPED / name).read_text() == (ROOT / "node" / name).read_text(), (
            f"cp docker/kubernetes/node/{name} caa/controller/manifests/"
        )
    ours = the(overlay("aws"), "RuntimeClass", "kata-remote")
    assert {key: runtime_class()[key] for key in ours if key != "metadata"} == {
        key: ours[key] for key in ours if key != "metadata"
    }
    assert ours["scheduling"]["nodeSelector"] == {LABEL: ""}


def test_prometheus_finds_the_metrics_under_the_job_of_the_alerts(monitored: list[Manifest]) -> None:
    service, monitor = the(monitored, "Service", "caa-metrics"), the(monitored, "ServiceMonitor", "caa")
    serve = the(monitored, "DaemonSet", "caa-serve")
    (container,) = containers(serve)
    assert service["spec"]["selector"].items() <= serve["spec"]["template"]["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert {"name": port["targetPort"], "containerPort": port["port"]} in container["ports"]
    listen = next(one["value"] for one in container["env"] if one["name"] == "CAA_METRICS_LISTEN")
    assert listen == f"0.0.0.0:{port['port']}"
    assert [one["port"] for one in monitor["spec"]["endpoints"]] == [port["name"]]
    labels = service["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    rules = yaml.safe_load((ROOT.parent / "observability" / "alerts.yaml").read_text())
    assert f'job="{labels[monitor["spec"]["jobLabel"]]}"' in str(rules)
    for version in VERSIONS:
        for manifest in monitored:
            if manifest["kind"] not in OPERATORS_KINDS:
                kubernetes_validate.validate(manifest, version, strict=True)


def test_the_rules_are_those_of_the_alerts_file(monitored: list[Manifest]) -> None:
    rules = yaml.safe_load((ROOT.parent / "observability" / "alerts.yaml").read_text())
    assert the(monitored, "PrometheusRule", "caa")["spec"] == rules


def test_what_the_renderer_does_not_know_is_refused(tmp_path: Path) -> None:
    for text in (
        "namePrefix: x-",
        "patches: [{path: a.yaml, target: {kind: Pod}}]",
        "images: [{name: caa, digest: x}]",
    ):
        (tmp_path / "kustomization.yaml").write_text(
            f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [d.yaml]\n{text}\n"
        )
        shutil.copy(ROOT / "node" / "serve.yaml", tmp_path / "d.yaml")
        with pytest.raises(ValueError, match="known here"):
            render(tmp_path)
