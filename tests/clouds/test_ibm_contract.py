"""The emulated VPC API and the provider against what IBM publishes: the SDK's models, and the statuses of its tests.

IBM generates the SDK from the API's definition. Its tests against the real API are in the public repository
IBM/vpc-python-sdk, test/integration/test_gen2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ibm_vpc import vpc_v1  # type: ignore[import-untyped]

from providers.ibmcloud.client import API_VERSION
from providers.ibmcloud.parameters import instance_prototype
from providers.ibmcloud.settings import IbmCloudKeys
from providers.keys import read_keys
from tests.clouds.contract import Ask, asking, misspelt
from tests.clouds.ibm.shape import misfits
from tests.clouds.ibm_lab import IbmLab

PROTOTYPE = vpc_v1.InstancePrototypeInstanceByImageInstanceByImageInstanceByNetworkAttachment
# What the provider asks for: its keys, and the profile.
ASKED: dict[str, tuple[dict[str, str], str]] = {
    "plain": ({}, "bx2-2x8"),
    "tagged": ({"IBMCLOUD_RESOURCE_GROUP_ID": "a" * 32, "TAGS": "team:blue"}, "bx2-2x8"),
    "confidential": ({"DISABLECVM": "false"}, "bx3dc-2x10"),
}
# Path of a collection -> name of its items, model of a page, model of one.
COLLECTIONS = {
    "instances": ("instances", vpc_v1.InstanceCollection, vpc_v1.Instance),
    "virtual_network_interfaces": (
        "virtual_network_interfaces",
        vpc_v1.VirtualNetworkInterfaceCollection,
        vpc_v1.VirtualNetworkInterface,
    ),
    "volumes": ("volumes", vpc_v1.VolumeCollection, vpc_v1.Volume),
    "images": ("images", vpc_v1.ImageCollection, vpc_v1.Image),
    "subnets": ("subnets", vpc_v1.SubnetCollection, vpc_v1.Subnet),
    "vpcs": ("vpcs", vpc_v1.VPCCollection, vpc_v1.VPC),
    "security_groups": ("security_groups", vpc_v1.SecurityGroupCollection, vpc_v1.SecurityGroup),
    "keys": ("keys", vpc_v1.KeyCollection, vpc_v1.Key),
    "dedicated_hosts": ("dedicated_hosts", vpc_v1.DedicatedHostCollection, vpc_v1.DedicatedHost),
    "dedicated_host/groups": ("groups", vpc_v1.DedicatedHostGroupCollection, vpc_v1.DedicatedHostGroup),
    "instance/profiles": ("profiles", vpc_v1.InstanceProfileCollection, vpc_v1.InstanceProfile),
    "operating_systems": ("operating_systems", vpc_v1.OperatingSystemCollection, vpc_v1.OperatingSystem),
}


@pytest.fixture
def ask(ibm: IbmLab) -> Iterator[Ask]:
    params = {"version": API_VERSION, "generation": "2"}
    with asking(f"{ibm.emulator.url}/v1/", ibm.emulator.ca_file, "a.b.c", params) as made:
        yield made


def asked(ibm: IbmLab, kind: str) -> dict[str, Any]:
    """The create call's body."""
    changed, profile = ASKED[kind]
    host = ibm.emulator.dedicated(ibm.zones[0])[0] if kind == "tagged" else ""
    provider, request = ibm.provider(**changed), ibm.request(profile=profile)
    return dict(
        instance_prototype(request, read_keys(IbmCloudKeys, ibm.environ(**changed)), provider._at(request, host))
    )


@pytest.mark.parametrize("kind", ASKED)
def test_every_key_and_word_of_the_create_call_is_the_sdks(ibm: IbmLab, kind: str) -> None:
    assert misfits(PROTOTYPE, asked(ibm, kind)) == []


@pytest.mark.parametrize("kind", ASKED)
def test_a_create_call_with_any_key_misspelt_is_told(ibm: IbmLab, kind: str) -> None:
    wrong = list(misspelt(asked(ibm, kind)))
    assert len(wrong) > 25
    for place, document in wrong:
        assert misfits(PROTOTYPE, document), f"nobody misses {place}"


@pytest.mark.parametrize("path", COLLECTIONS)
def test_every_answer_is_what_the_sdk_has_all_the_way_down(ibm: IbmLab, ask: Ask, path: str) -> None:
    ibm.emulator.dedicated(ibm.zones[0])
    ibm.provider().launch(ibm.request())
    ibm.emulator.advance(1)
    name, page, model = COLLECTIONS[path]
    answer = ask("GET", path)
    assert (answer.status_code, misfits(page, answer.json())) == (200, [])
    assert answer.json()[name]
    for one in answer.json()[name]:
        alone = ask("GET", f"{path}/{one.get('id', one['name'])}")
        assert (alone.status_code, misfits(model, alone.json())) == (200, [])
        misspelt = {f"{key}z": value for key, value in one.items()}
        assert len(misfits(model, misspelt)) >= len(one)


def test_statuses_of_making_and_ending_are_those_of_the_api(ibm: IbmLab, ask: Ask) -> None:
    ibm.emulator.delays(pending=1)
    made = ask("POST", "instances", asked(ibm, "plain"))
    assert (made.status_code, misfits(vpc_v1.Instance, made.json()), made.json()["status"]) == (201, [], "pending")
    assert "primary_network_attachment" in made.json()
    deleted = ask("DELETE", f"instances/{made.json()['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    ibm.emulator.advance(1)
    assert ask("GET", f"instances/{made.json()['id']}").status_code == 404


# Refusal -> status and code.
REFUSALS = {
    "missing": (404, "instance_not_found"),
    "taken": (400, "validation_unique_failed"),
    "misspelt": (400, "bad_field"),
    "unknown": (401, "not_authenticated"),
    "throttled": (429, "too_many_requests"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_has_the_shape_that_the_api_documents(ibm: IbmLab, ask: Ask, kind: str) -> None:
    """As IBM's page on error handling has it: errors of code, message, more_info and target, and the call's trace."""
    body = asked(ibm, "plain")
    assert ask("POST", "instances", body).status_code == 201
    match kind:
        case "missing":
            answer = ask("GET", "instances/r006-nobody")
        case "unknown":
            answer = ask("GET", "instances", token="nonsense")
        case "misspelt":
            answer = ask("POST", "instances", {**body, "nane": "x"})
        case _:
            if kind == "throttled":
                ibm.emulator.limits({"CreateInstance": (0, 0.1)})
            answer = ask("POST", "instances", body)
    told = answer.json()
    assert (answer.status_code, told["errors"][0]["code"]) == REFUSALS[kind]
    assert set(told) == {"errors", "trace"}
    for error in told["errors"]:
        assert {"code", "message"} <= set(error) <= {"code", "message", "more_info", "target"}
        assert set(error.get("target", {})) <= {"name", "type", "value"}
        assert error.get("target", {}).get("type", "field") in ("field", "parameter", "header")
    assert answer.headers["X-Request-Id"] == told["trace"]
    assert ("Retry-After" in answer.headers) == (kind == "throttled")
