"""The kinds that the API server's stand-in knows: those built in, and those that a CustomResourceDefinition adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

DEFINITIONS = "customresourcedefinitions"
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
# Of every kind; the others are those that the real server indexes.
_FIELDS = frozenset({"metadata.name", "metadata.namespace"})


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of one version of a group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    """Whether status is a subresource, which only writes to it change."""
    generation: bool = False
    """Whether metadata.generation counts changes of anything but metadata (and status, if that is a subresource)."""
    fields: frozenset[str] = _FIELDS
    """What a field selector may name."""
    schema: dict[str, Any] | None = field(default=None, compare=False)
    """openAPIV3Schema of a custom resource."""
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """As in an object."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full(self) -> str:
        """What errors call it, and `Kinds.find` takes: the plural, with the group if there is one."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def custom(self) -> bool:
        """Whether a definition made it."""
        return self.schema is not None


def _built_in() -> Iterator[Kind]:
    core = ("", "v1")
    yield Kind(*core, "pods", "Pod", status=True, fields=_FIELDS | {"spec.nodeName", "status.phase"})
    yield Kind(*core, "nodes", "Node", namespaced=False, status=True, fields=_FIELDS | {"spec.unschedulable"})
    yield Kind(*core, "namespaces", "Namespace", namespaced=False, status=True, fields=_FIELDS | {"status.phase"})
    yield Kind(*core, "configmaps", "ConfigMap")
    yield Kind(*core, "secrets", "Secret", fields=_FIELDS | {"type"})
    yield Kind(*core, "serviceaccounts", "ServiceAccount")
    yield Kind(*core, "services", "Service", status=True)
    yield Kind(*core, "limitranges", "LimitRange")
    involved = {f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid")}
    yield Kind(*core, "events", "Event", fields=_FIELDS | involved | {"reason", "type"})
    yield Kind("apps", "v1", "daemonsets", "DaemonSet", status=True, generation=True)
    yield Kind("apps", "v1", "deployments", "Deployment", status=True, generation=True)
    yield Kind("batch", "v1", "jobs", "Job", status=True, generation=True)
    yield Kind("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
    yield Kind("coordination.k8s.io", "v1", "leases", "Lease")
    yield Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", status=True, generation=True)
    rbac = ("rbac.authorization.k8s.io", "v1")
    for plural, kind, namespaced in (
        ("roles", "Role", True),
        ("rolebindings", "RoleBinding", True),
        ("clusterroles", "ClusterRole", False),
        ("clusterrolebindings", "ClusterRoleBinding", False),
    ):
        yield Kind(*rbac, plural, kind, namespaced=namespaced)
    extensions = ("apiextensions.k8s.io", "v1")
    yield Kind(*extensions, DEFINITIONS, "CustomResourceDefinition", namespaced=False, status=True, generation=True)
    admission = ("admissionregistration.k8s.io", "v1")
    for plural, kind in (
        ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
        ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    ):
        yield Kind(*admission, plural, kind, namespaced=False, generation=True)


class Kinds:
    """By path and by name."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str, str], Kind] = {
            (kind.group, kind.version, kind.plural): kind for kind in _built_in()
        }

    def at(self, group: str, version: str, plural: str) -> Kind | None:
        """Of a path."""
        return self._all.get((group, version, plural))

    def find(self, name: str) -> Kind:
        """Of a test's word: the plural, or the plural and the group with a dot between. Raises KeyError."""
        for kind in self._all.values():
            if name in (kind.plural, kind.full):
                return kind
        raise KeyError(f"no kind {name!r}")

    def define(self, definition: dict[str, Any]) -> None:
        """Take up a CustomResourceDefinition: its served versions, and no others."""
        spec = definition["spec"]
        self.forget(definition)
        for version in spec["versions"]:
            if not version["served"]:
                continue
            key = (spec["group"], version["name"], spec["names"]["plural"])
            self._all[key] = Kind(
                *key,
                kind=spec["names"]["kind"],
                namespaced=spec["scope"] == "Namespaced",
                status="status" in version.get("subresources", {}),
                generation=True,
                schema=version["schema"]["openAPIV3Schema"],
                short=tuple(spec["names"].get("shortNames", ())),
            )

    def forget(self, definition: dict[str, Any]) -> None:
        """It was deleted."""
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        self._all = {key: kind for key, kind in self._all.items() if (key[0], key[2]) != (group, plural)}

    # Discovery

    def discovery(self, path: str) -> dict[str, Any] | None:
        """What is at `/api`, `/apis`, `/api/v1` or `/apis/GROUP/VERSION`; None for another path."""
        match path.strip("/").split("/"):
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                groups = dict.fromkeys(kind.group for kind in self._all.values() if kind.group)
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(name) for name in groups]}
            case ["apis", group] if any(kind.group == group for kind in self._all.values()):
                return {"kind": "APIGroup", "apiVersion": "v1", **self._group(group)}
            case ["api", version]:
                return self._resources("", version)
            case ["apis", group, version]:
                return self._resources(group, version)
        return None

    def _group(self, group: str) -> dict[str, Any]:
        names = dict.fromkeys(kind.version for kind in self._all.values() if kind.group == group)
        versions = [{"groupVersion": f"{group}/{name}", "version": name} for name in names]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def _resources(self, group: str, version: str) -> dict[str, Any] | None:
        found = [kind for kind in self._all.values() if (kind.group, kind.version) == (group, version)]
        if not found:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": found[0].api_version,
            "resources": list(_described(found)),
        }


def _described(kinds: Iterable[Kind]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        one = {"kind": kind.kind, "namespaced": kind.namespaced}
        yield one | {
            "name": kind.plural,
            "singularName": kind.kind.lower(),
            "shortNames": list(kind.short),
            "verbs": _VERBS,
        }
        if kind.status:
            yield one | {"name": f"{kind.plural}/status", "singularName": "", "verbs": ["get", "patch", "update"]}
