"""The emulated IBM Cloud itself: what it refuses, its pages, and images from upload to use."""

from __future__ import annotations

import io
import json
import ssl
from typing import Any

import httpx
import ibm_boto3  # type: ignore[import-untyped]
from ibm_botocore.client import Config  # type: ignore[import-untyped]
from ibm_vpc import vpc_v1  # type: ignore[import-untyped]

from providers.ibmcloud.client import API_VERSION
from tests.clouds.ibm.api import API_KEY
from tests.clouds.ibm_lab import IbmLab


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
    with httpx.Client(base_url=ibm.emulator.url, verify=trust, trust_env=False, timeout=60) as client:
        query = {**needed, **(params or {})} if path.startswith("/v1") else params or {}
        return client.request(method, path, content=content, params=query, headers=headers)
