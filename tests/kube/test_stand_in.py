"""The API server's stand-in, asked over HTTP as any client asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from caa.kubernetes.api import KubernetesApi
from tests.kube.apiserver import KubeApiServer, eventually

PODS, MAPS = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/configmaps"
CONFIGS = "/apis/example.org/v1/configs"
DEFINITION = {
    "metadata": {"name": "configs.example.org"},
    "spec": {
        "group": "example.org",
        "scope": "Cluster",
        "names": {"kind": "Config", "plural": "configs", "singular": "config"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "level": {"type": "string", "default": "info"},
                                    "count": {"type": "integer", "nullable": True},
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture
def api(kube: KubeApiServer) -> Iterator[httpx.Client]:
    kube.do("define", definition=DEFINITION)
    kube.do("forget_calls")
    with kube.client() as client:
        yield client


def ok(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def refused(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["reason"]


def patch(api: httpx.Client, path: str, body: Any, kind: str = "merge-patch+json") -> httpx.Response:
    return api.patch(path, content=json.dumps(body), headers={"Content-Type": f"application/{kind}"})


def new_map(name: str, labels: dict[str, str] | None = None, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels or {}}, "data": data}


def version(body: dict[str, Any]) -> str:
    return str(body["metadata"]["resourceVersion"])


class Stream:
    """A watch, read line by line."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, dict[str, Any]]:
        event = json.loads(next(self._lines))
        return event["type"], event["object"]

    def rest(self) -> list[str]:
        return [json.loads(line)["type"] for line in self._lines]


def test_who_did_not_see_the_newest_version_is_told_so_and_a_write_of_nothing_makes_no_version(
    api: httpx.Client,
) -> None:
    first = ok(api.post(MAPS, json=new_map("one", a="1")))
    assert refused(api.post(MAPS, json=new_map("one"))) == (409, "AlreadyExists")
    second = ok(api.put(f"{MAPS}/one", json={**first, "data": {"a": "2"}}))
    assert int(version(second)) > int(version(first))
    assert refused(api.put(f"{MAPS}/one", json={**first, "data": {"a": "3"}})) == (409, "Conflict")
    stale = {"metadata": {"resourceVersion": version(first)}, "data": {"a": "3"}}
    assert refused(patch(api, f"{MAPS}/one", stale)) == (409, "Conflict")
    assert version(ok(patch(api, f"{MAPS}/one", {"data": {"a": "2"}}))) == version(second)
    fresh = {"metadata": {"resourceVersion": version(second)}, "data": {"a": None, "b": "4"}}
    assert ok(patch(api, f"{MAPS}/one", fresh))["data"] == {"b": "4"}
    wrong = {"preconditions": {"resourceVersion": version(first)}}
    assert refused(api.request("DELETE", f"{MAPS}/one", json=wrong)) == (409, "Conflict")
    assert refused(api.post(MAPS, json={"metadata": {"name": "two"}, "data": {"a": 1}})) == (422, "Invalid")


def test_the_generation_counts_changes_of_the_spec_and_the_status_has_a_door_of_its_own(api: httpx.Client) -> None:
    body = {"metadata": {"name": "one"}, "spec": {"unknown": 1, "count": None}, "status": {"ready": True}}
    made = ok(api.post(CONFIGS, json=body))
    assert (made["spec"], made["metadata"]["generation"]) == ({"level": "info", "count": None}, 1)
    assert "status" not in made
    assert ok(patch(api, f"{CONFIGS}/one", {"status": {"ready": True}})) == made
    told = ok(patch(api, f"{CONFIGS}/one/status", {"status": {"ready": True}, "spec": {"level": "debug"}}))
    assert (told["status"], told["spec"]["level"], told["metadata"]["generation"]) == ({"ready": True}, "info", 1)
    told = ok(patch(api, f"{CONFIGS}/one", {"metadata": {"labels": {"a": "b"}}}))
    assert told["metadata"]["generation"] == 1
    told = ok(patch(api, f"{CONFIGS}/one", {"spec": {"level": "debug"}}))
    assert (told["status"], told["metadata"]["generation"]) == ({"ready": True}, 2)
    assert refused(patch(api, f"{CONFIGS}/one", {"spec": {"level": 5}})) == (422, "Invalid")
    assert refused(api.put(f"{CONFIGS}/one", json=body)) == (422, "Invalid")  # without a version


def test_an_object_stays_for_its_finalizers_and_its_dependents_go_with_it(api: httpx.Client) -> None:
    owner = ok(api.post(MAPS, json={"metadata": {"name": "owner", "finalizers": ["a.b/c"]}}))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    ok(api.post(MAPS, json={"metadata": {"name": "owned", "ownerReferences": [reference]}}))
    orphan = {**reference, "uid": "00000000-0000-0000-0000-000000000000"}
    ok(api.post(MAPS, json={"metadata": {"name": "orphan", "ownerReferences": [orphan]}}))
    assert api.get(f"{MAPS}/orphan").status_code == 404
    assert ok(api.delete(f"{MAPS}/owner"))["metadata"]["deletionTimestamp"]
    assert api.get(f"{MAPS}/owned").is_success
    more = {"metadata": {"finalizers": ["a.b/c", "d.e/f"]}}
    assert refused(patch(api, f"{MAPS}/owner", more)) == (422, "Invalid")
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": "1"}
    remove = {"op": "remove", "path": "/metadata/finalizers/0"}
    assert refused(patch(api, f"{MAPS}/owner", [test, remove], "json-patch+json")) == (422, "Invalid")
    ok(patch(api, f"{MAPS}/owner", [remove], "json-patch+json"))
    assert [api.get(f"{MAPS}/{name}").status_code for name in ("owner", "owned")] == [404, 404]


def test_a_namespace_takes_what_is_in_it_along(api: httpx.Client, kube: KubeApiServer) -> None:
    ok(api.post("/api/v1/namespaces", json={"metadata": {"name": "one"}}))
    held = {"metadata": {"name": "held", "finalizers": ["a.b/c"]}}
    ok(api.post("/api/v1/namespaces/one/configmaps", json=held))
    ok(api.delete("/api/v1/namespaces/one"))
    assert ok(api.get("/api/v1/namespaces/one"))["status"]["phase"] == "Terminating"
    assert refused(api.post("/api/v1/namespaces/one/pods", json={"metadata": {"name": "p"}})) == (403, "Forbidden")
    ok(patch(api, "/api/v1/namespaces/one/configmaps/held", {"metadata": {"finalizers": None}}))
    assert api.get("/api/v1/namespaces/one").status_code == 404
    assert refused(api.post("/api/v1/namespaces/one/pods", json={"metadata": {"name": "p"}})) == (404, "NotFound")


def test_server_side_apply_makes_changes_and_takes_back_what_its_manager_had_set(api: httpx.Client) -> None:
    def apply(data: dict[str, str]) -> Any:
        path = f"{MAPS}/one?fieldManager=me&force=true"
        return ok(patch(api, path, {"metadata": {"name": "one"}, "data": data}, "apply-patch+yaml"))

    apply({"a": "1", "b": "1"})
    ok(patch(api, f"{MAPS}/one", {"data": {"theirs": "1"}}, "strategic-merge-patch+json"))
    assert apply({"b": "2"})["data"] == {"b": "2", "theirs": "1"}
    made = patch(api, f"{CONFIGS}/one?fieldManager=me", {"metadata": {"name": "one"}}, "apply-patch+yaml")
    assert made.is_success
    assert patch(api, f"{CONFIGS}/one", {}, "strategic-merge-patch+json").status_code == 415


def test_lists_are_chosen_from_and_come_in_pages(api: httpx.Client, kube: KubeApiServer) -> None:
    for index in range(5):
        ok(api.post(MAPS, json=new_map(f"m{index}", {"index": str(index), **({"odd": ""} if index % 2 else {})})))

    def names(**query: str) -> list[str]:
        return [one["metadata"]["name"] for one in ok(api.get("/api/v1/configmaps", params=query))["items"]]

    assert names(labelSelector="odd") == ["m1", "m3"]
    assert names(labelSelector="!odd,index in (0, 4, 9)") == ["m0", "m4"]
    assert names(labelSelector="odd,index!=1") == ["m3"]
    assert names(fieldSelector="metadata.name=m2") == ["m2"]
    assert refused(api.get(MAPS, params={"fieldSelector": "data.a=1"})) == (400, "BadRequest")
    first = ok(api.get(MAPS, params={"limit": "3"}))
    page = {"limit": "3", "continue": first["metadata"]["continue"]}
    second = ok(api.get(MAPS, params=page))
    assert [one["metadata"]["name"] for one in second["items"]] == ["m3", "m4"]
    assert "continue" not in second["metadata"]
    kube.do("expire")
    assert refused(api.get(MAPS, params=page)) == (410, "Expired")
    ahead = {"resourceVersion": str(int(version(first)) + 1000)}
    assert refused(api.get(MAPS, params=ahead)) == (504, "Timeout")


def test_a_watch_tells_what_comes_changes_and_goes_in_the_sight_of_its_selector(
    api: httpx.Client, kube: KubeApiServer
) -> None:
    ok(api.post(MAPS, json=new_map("old", {"seen": "yes"})))
    query = {"watch": "true", "labelSelector": "seen=yes", "allowWatchBookmarks": "true"}
    query["resourceVersion"] = version(ok(api.get(MAPS)))
    with api.stream("GET", MAPS, params=query) as response:
        stream = Stream(response)
        ok(api.post(MAPS, json=new_map("new", {"seen": "no"})))
        ok(patch(api, f"{MAPS}/new", {"metadata": {"labels": {"seen": "yes"}}}))
        ok(patch(api, f"{MAPS}/new", {"data": {"a": "1"}}))
        ok(patch(api, f"{MAPS}/new", {"metadata": {"labels": {"seen": "no"}}}))
        ok(api.delete(f"{MAPS}/old"))
        events = [stream.next() for _ in range(4)]
        told = [(kind, one["metadata"]["name"]) for kind, one in events]
        assert told == [("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "new"), ("DELETED", "old")]
        assert [int(version(one)) for _, one in events] == sorted(int(version(one)) for _, one in events)
        kube.do("bookmark")
        kind, bookmark = stream.next()
        assert (kind, version(bookmark)) == ("BOOKMARK", version(events[-1][1]))
        kube.do("break_watches", how="close")
        assert stream.rest() == []
    # From where it left off nothing is lost, and nothing is told twice.
    ok(api.post(MAPS, json=new_map("later", {"seen": "yes"})))
    query |= {"resourceVersion": version(bookmark), "timeoutSeconds": "1"}
    with api.stream("GET", MAPS, params=query) as response:
        assert Stream(response).rest() == ["ADDED", "BOOKMARK"]
    eventually(lambda: kube.do("watching"), lambda seen: seen == 0)


def test_a_watch_without_a_version_begins_with_what_is_there(api: httpx.Client) -> None:
    ok(api.post(MAPS, json=new_map("old")))
    query = {"watch": "true", "timeoutSeconds": "1"}
    with api.stream("GET", MAPS, params=query) as response:
        assert Stream(response).rest() == ["ADDED"]
    query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    with api.stream("GET", MAPS, params=query) as response:
        stream = Stream(response)
        assert stream.next()[0] == "ADDED"
        kind, bookmark = stream.next()
        assert (kind, bookmark["metadata"]["annotations"]) == ("BOOKMARK", {"k8s.io/initial-events-end": "true"})


def test_a_watch_is_broken_expired_refused_and_reset(api: httpx.Client, kube: KubeApiServer) -> None:
    query = {"watch": "true", "resourceVersion": version(ok(api.get(MAPS)))}
    ways: list[tuple[str, dict[str, Any]]] = [("break_watches", {}), ("set_down", {"down": True})]
    for verb, arguments in ways:
        with api.stream("GET", MAPS, params=query) as response:
            kube.do(verb, **arguments)
            with pytest.raises(httpx.TransportError):
                Stream(response).rest()
    with pytest.raises(httpx.TransportError):
        api.get(MAPS)
    kube.do("set_down", down=False)
    kube.do("expire")
    with api.stream("GET", MAPS, params=query) as response:
        stream = Stream(response)
        kind, status = stream.next()
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert stream.rest() == []
    kube.do("refuse", code=429, resource="configmaps", verb="watch", retry_after=3)
    ok(api.get(MAPS))
    throttled = api.get(MAPS, params=query)
    assert (throttled.status_code, throttled.headers["Retry-After"]) == (429, "3")


def test_every_call_is_recorded_and_a_role_can_be_enforced(api: httpx.Client, kube: KubeApiServer) -> None:
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], "resourceNames": ["mine"]}
    kube.do("allow_only", rules=[pods, {"apiGroups": ["example.org"], "resources": ["*"], "verbs": ["patch"]}])
    assert api.get(f"{PODS}/mine").status_code == 404
    assert refused(api.get(f"{PODS}/theirs")) == (403, "Forbidden")
    assert patch(api, f"{CONFIGS}/one/status", {}).status_code == 404
    calls = kube.do("called")
    assert [(one["verb"], one["group"], one["resource"], one["subresource"]) for one in calls] == [
        ("get", "", "pods", ""),
        ("get", "", "pods", ""),
        ("patch", "example.org", "configs/status", "status"),
    ]
    assert [(one["namespace"], one["name"]) for one in calls] == [
        ("default", "mine"),
        ("default", "theirs"),
        ("", "one"),
    ]


def test_a_kind_is_served_and_found_as_long_as_it_is_defined(api: httpx.Client, kube: KubeApiServer) -> None:
    groups = [one["name"] for one in ok(api.get("/apis"))["groups"]]
    assert {"apps", "example.org", "confidentialcontainers.org", "node.k8s.io"} <= set(groups)
    resources = ok(api.get("/apis/example.org/v1"))["resources"]
    assert [one["name"] for one in resources] == ["configs", "configs/status"]
    ok(api.post(CONFIGS, json={"metadata": {"name": "one", "finalizers": ["a.b/c"]}}))
    # An object of an earlier shape stays readable.
    definition = json.loads(json.dumps(DEFINITION))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["level"] = {"type": "integer"}
    kube.do("define", definition=definition)
    ok(api.get(f"{CONFIGS}/one"))
    ok(api.delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/configs.example.org"))
    assert api.get(CONFIGS).status_code == api.get("/apis/example.org/v1").status_code == 404


def test_over_https_it_has_a_certificate_of_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with KubeApiServer(tls=True) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig()))
        uid = server.add_pod("web")

        async def run() -> Any:
            api = KubernetesApi()
            try:
                return await api.pod("default", "web")
            finally:
                await api.close()

        assert asyncio.run(run())["uid"] == uid
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(server.url, trust_env=False)
