"""The emulated IBM Cloud itself: what it answers has the shape that IBM's own SDK demands, as has what it is asked."""

from __future__ import annotations

import io
import json
import ssl
from typing import Any

import httpx
import ibm_boto3  # type: ignore[import-untyped]
import pytest
from ibm_botocore.client import Config  # type: ignore[import-untyped]
from ibm_vpc import vpc_v1  # type: ignore[import-untyped]

from providers.ibmcloud.client import API_VERSION
from providers.ibmcloud.parameters import Place, instance_prototype
from providers.ibmcloud.provider import IbmCloudProvider
from providers.ibmcloud.settings import IbmCloudKeys
from providers.keys import read_keys
from tests.clouds.ibm.api import API_KEY
from tests.clouds.ibm_lab import IbmLab

PROTOTYPE = vpc_v1.InstancePrototypeInstanceByImageInstanceByImageInstanceByNetworkAttachment
# Collection -> the SDK's model of one of it, which refuses what lacks a property that the API always sends.
MODELS = {
    "instances": vpc_v1.Instance,
    "virtual_network_interfaces": vpc_v1.VirtualNetworkInterface,
    "volumes": vpc_v1.Volume,
    "images": vpc_v1.Image,
    "subnets": vpc_v1.Subnet,
    "vpcs": vpc_v1.VPC,
    "security_groups": vpc_v1.SecurityGroup,
    "keys": vpc_v1.Key,
    "dedicated_hosts": vpc_v1.DedicatedHost,
    "dedicated_host_groups": vpc_v1.DedicatedHostGroup,
}


def place(provider: IbmCloudProvider, ibm: IbmLab, profile: str, target: str = "") -> Place:
    return provider._at(ibm.request(profile=profile), target)


@pytest.mark.parametrize("kind", MODELS)
def test_every_resource_is_what_the_sdk_takes_for_one(ibm: IbmLab, kind: str) -> None:
    ibm.provider().launch(ibm.request())
    ibm.emulator.dedicated(ibm.zones[0])
    found = ibm.emulator.resources(kind)
    assert found
    for one in found:
        model = MODELS[kind].from_dict(json.loads(json.dumps(one)))
        # What the model does not know, the API does not have; the emulator must not answer it either.
        assert set(one) <= set(model.to_dict())


def test_every_profile_and_operating_system_is_what_the_sdk_takes_for_one(ibm: IbmLab) -> None:
    vpc = ibm.provider()._vpc
    profiles = list(vpc.pages("list_instance_profiles", "profiles", limit=3))
    systems = list(vpc.pages("list_operating_systems", "operating_systems"))
    assert len(profiles) > 10
    for model, found in ((vpc_v1.InstanceProfile, profiles), (vpc_v1.OperatingSystem, systems)):
        for one in found:
            assert set(one) <= set(model.from_dict(one).to_dict())


@pytest.mark.parametrize("confidential", [False, True])
def test_the_create_call_says_nothing_that_the_sdks_model_does_not_have(ibm: IbmLab, confidential: bool) -> None:
    host, _ = ibm.emulator.dedicated(ibm.zones[0])
    changed = {"IBMCLOUD_RESOURCE_GROUP_ID": "a" * 32, "TAGS": "team:blue", "DISABLECVM": str(not confidential).lower()}
    provider = ibm.provider(**changed)
    keys = read_keys(IbmCloudKeys, ibm.environ(**changed))
    asked = instance_prototype(ibm.request(), keys, place(provider, ibm, "bx3dc-2x10", host))
    assert asked["placement_target"] == {"id": host}
    assert _same(PROTOTYPE.from_dict(asked).to_dict(), asked)
    misspelt = {**asked, "boot_volume_attachment": {**asked["boot_volume_attachment"], "nane": "x"}}
    assert not _same(PROTOTYPE.from_dict(misspelt).to_dict(), misspelt)


def test_a_word_that_the_api_does_not_have_is_refused(ibm: IbmLab) -> None:
    asked = _ask(ibm, "POST", "/v1/instances", {"name": "x", "nane": "y"})
    assert asked.status_code == 400
    assert asked.json()["errors"][0]["code"] == "bad_field"


def test_refusals_have_code_message_target_and_the_name_of_the_call(ibm: IbmLab) -> None:
    asked = _ask(ibm, "GET", "/v1/instances/r006-nobody")
    assert asked.status_code == 404
    (error,) = asked.json()["errors"]
    assert error["code"] == "instance_not_found"
    assert error["target"] == {"name": "id", "type": "field", "value": "r006-nobody"}
    assert asked.headers["X-Request-Id"] == asked.json()["trace"]


def test_a_call_without_token_version_or_generation_is_refused(ibm: IbmLab) -> None:
    assert _ask(ibm, "GET", "/v1/instances", token="").status_code == 401
    assert _ask(ibm, "GET", "/v1/instances", params={"version": API_VERSION}).status_code == 400
    assert _ask(ibm, "GET", "/v1/instances", params={"version": "2999-01-01", "generation": "2"}).status_code == 400


def test_lists_have_pages_of_at_most_100_and_say_how_many_there_are(ibm: IbmLab) -> None:
    provider = ibm.provider()
    for _ in range(3):
        provider.launch(ibm.request())
    page = _ask(ibm, "GET", "/v1/instances", params={"limit": "2"}).json()
    assert (len(page["instances"]), page["limit"], page["total_count"]) == (2, 2, 3)
    assert "start=" in page["next"]["href"]
    assert _ask(ibm, "GET", "/v1/instances", params={"limit": "101"}).status_code == 400


def test_an_image_is_uploaded_by_ibms_own_sdk_imported_and_available_a_while_later(ibm: IbmLab) -> None:
    ibm.emulator.image_delay(30)
    ibm.provider()  # so that the SDK trusts the emulator
    storage = ibm_boto3.client(
        "s3",
        ibm_api_key_id=API_KEY,
        ibm_service_instance_id="crn:v1:bluemix:public:cloud-object-storage:global:a/1:2::",
        ibm_auth_endpoint=f"{ibm.emulator.url}/identity/token",
        config=Config(signature_version="oauth"),
        endpoint_url=ibm.emulator.object_storage_url,
        verify=str(ibm.emulator.ca_file),
    )
    storage.create_bucket(Bucket="images")
    content = b"QFI\xfb" + bytes(range(256)) * 40_000  # more than one part
    storage.upload_fileobj(io.BytesIO(content), "images", "pod.qcow2")
    assert storage.head_object(Bucket="images", Key="pod.qcow2")["ContentLength"] == len(content)
    assert storage.get_object(Bucket="images", Key="pod.qcow2")["Body"].read() == content
    assert [one["Key"] for one in storage.list_objects_v2(Bucket="images", Prefix="pod")["Contents"]] == ["pod.qcow2"]
    prototype = {
        "name": "pod",
        "file": {"href": "cos://us-south/images/pod.qcow2"},
        "operating_system": {"name": "ubuntu-24-04-s390x"},
    }
    made = _ask(ibm, "POST", "/v1/images", prototype)
    assert (made.status_code, made.json()["status"]) == (201, "pending")
    assert _ask(ibm, "POST", "/v1/images", prototype).json()["errors"][0]["code"] == "validation_unique_failed"
    ibm.emulator.advance(31)
    image = _ask(ibm, "GET", f"/v1/images/{made.json()['id']}").json()
    assert (image["status"], image["operating_system"]["architecture"]) == ("available", "s390x")
    vpc_v1.Image.from_dict(image)
    assert _ask(ibm, "DELETE", f"/v1/images/{image['id']}").status_code == 202
    assert _ask(ibm, "GET", f"/v1/images/{image['id']}").status_code == 404
    storage.delete_object(Bucket="images", Key="pod.qcow2")
    storage.delete_bucket(Bucket="images")
    storage.close()
    left = ibm.emulator.counters()["object_storage"]
    assert (left["buckets"], left["objects"], left["uploads"]) == (0, 0, 0)


def _ask(
    ibm: IbmLab, method: str, path: str, body: Any = None, params: dict[str, str] | None = None, token: str = "a.b.c"
) -> httpx.Response:
    """One plain request, with what each needs unless `params` has it."""
    needed = {} if params and "version" in params else {"version": API_VERSION, "generation": "2"}
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    trust = ssl.create_default_context(cafile=str(ibm.emulator.ca_file))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=ibm.emulator.url, verify=trust, trust_env=False) as client:
        query = {**needed, **(params or {})} if path.startswith("/v1") else params or {}
        return client.request(method, path, content=content, params=query, headers=headers)


def _same(left: Any, right: Any) -> bool:
    """Whether two documents say the same."""
    return json.dumps(left, sort_keys=True, default=str) == json.dumps(right, sort_keys=True, default=str)
