"""How each cloud's metadata service is answered for: what is known of a VM and a request -> an answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.metadata.aws import TOKEN_HEADER, TTL_HEADER, Aws, region
from caa.metadata.azure import Azure
from caa.metadata.facts import Answer, Dialect, Facts, Policy, Request, dig
from caa.metadata.ibmcloud import IbmCloud
from caa.metadata.keys import IMDS_V1, USER_DATA
from caa.metadata.tokens import Tokens
from caa.sandbox import AttemptState
from tests.ledger import samples
from tests.network.metadataworld import description

NOW = 1_800_000_000.0
TOKENS = Tokens(b"k" * 32)
SECRET = "PRIVATE-KEY-OF-THE-POD-VM"

AZURE_VM: dict[str, Any] = {
    "id": "/subscriptions/s-1/resourceGroups/rg-1/providers/Microsoft.Compute/virtualMachines/podvm-1",
    "name": "podvm-1",
    "location": "westeurope",
    "zones": ["2"],
    "tags": {"owner": "shop", "cluster": "c1"},
    "properties": {
        "vmId": "13f56399-bd52-4150-9748-7190aae1ff21",
        "hardwareProfile": {"vmSize": "Standard_D2s_v5"},
        "storageProfile": {"imageReference": {"id": "/images/podvm"}, "osDisk": {"osType": "Linux", "diskSizeGB": 30}},
        "osProfile": {"computerName": "podvm-1", "adminUsername": "peerpod"},
        "networkProfile": {
            "networkInterfaces": [
                {
                    "properties": {
                        "macAddress": "00-0D-3A-AA-BB-01",
                        "ipConfigurations": [{"properties": {"privateIPAddress": "10.1.0.5"}}],
                    }
                }
            ]
        },
    },
}
IBM_INSTANCE: dict[str, Any] = {
    "id": "0717_1e09281b",
    "crn": "crn:v1:bluemix:public:is:us-south-1:a/1::instance:0717_1e09281b",
    "profile": {"name": "bx2-2x8"},
    "zone": {"name": "us-south-1"},
    "network_interfaces": [{"id": "0717-nic", "primary_ip": {"address": "10.2.0.5"}}],
    "user_data": SECRET,
}


def facts(described: dict[str, Any], instance_id: str = "i-00000000000000002") -> Facts:
    attempt = samples.attempt(state=AttemptState.ACCEPTED, instance_id=instance_id, addresses=("10.10.1.2",))
    return Facts(samples.sandbox(), attempt, described)


def aws(*allow: str, described: dict[str, Any] | None = None) -> Aws:
    return Aws(facts(description(2) if described is None else described), Policy(frozenset(allow)), TOKENS)


def azure(*allow: str, described: dict[str, Any] = AZURE_VM) -> Azure:
    return Azure(facts(described), Policy(frozenset(allow)))


def ibm(*allow: str) -> IbmCloud:
    return IbmCloud(facts(IBM_INSTANCE, IBM_INSTANCE["id"]), Policy(frozenset(allow)), TOKENS)


def get(
    dialect: Dialect, target: str, headers: dict[str, str] | None = None, method: str = "GET", body: bytes = b""
) -> Answer:
    path, _, query = target.partition("?")
    pairs = dict(pair.split("=", 1) for pair in query.split("&") if pair)
    return dialect.answer(Request(method, path, pairs, headers or {}, body), NOW)


def token(dialect: Dialect) -> dict[str, str]:
    return {TOKEN_HEADER: get(dialect, "/latest/api/token", {TTL_HEADER: "60"}, "PUT").body.decode()}


def text(dialect: Aws, path: str) -> str | int:
    answer = get(dialect, path, token(dialect))
    return answer.body.decode() if answer.status == 200 else answer.status


# AWS


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/latest/meta-data/instance-id", "i-00000000000000002"),
        ("/latest/meta-data/placement/availability-zone/", "eu-west-1b"),
        ("/latest/meta-data/placement/region", "eu-west-1"),
        ("/2021-07-15/meta-data/local-ipv4", "10.10.1.2"),
        ("//latest//meta-data/mac", "02:00:00:00:01:02"),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:01:02/subnet-id", "subnet-1"),
        ("/latest/meta-data/network/interfaces/macs/", "02:00:00:00:01:02/"),
        ("/latest/meta-data/placement", "availability-zone\nregion"),
        ("/latest/dynamic/", "instance-identity/"),
        ("/latest/", "dynamic/\nmeta-data/"),
        ("/latest/meta-data/public-ipv4", 404),
        ("/latest/meta-data/iam/security-credentials/", 404),
        ("/latest/dynamic/instance-identity/pkcs7", 404),
        ("/latest/user-data", 404),
        ("/latest/meta-data/instance-id/more", 404),
        ("/2030-01-01/meta-data/", 404),
    ],
)
def test_aws_paths(path: str, expected: str | int) -> None:
    assert text(aws(), path) == expected


def test_every_path_of_a_listing_is_there() -> None:
    dialect = aws()

    def walk(path: str) -> int:
        listed = str(text(dialect, path)).splitlines()
        return sum(
            walk(path + name) if name.endswith("/") else text(dialect, path + name) not in ("", 404) for name in listed
        )

    assert walk("/latest/") == len(dialect.document()) > 20


def test_the_identity_document_is_of_the_vm() -> None:
    document = json.loads(str(text(aws(), "/latest/dynamic/instance-identity/document")))
    assert (document["instanceId"], document["region"], document["accountId"]) == (
        "i-00000000000000002",
        "eu-west-1",
        "111122223333",
    )


def test_without_a_description_the_ledgers_word_is_told() -> None:
    dialect = aws(described={})
    assert text(dialect, "/latest/meta-data/instance-id") == "i-00000000000000002"
    assert text(dialect, "/latest/meta-data/instance-type") == "m5.large"
    assert text(dialect, "/latest/meta-data/local-ipv4") == "10.10.1.2"


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "1.5", "x", "999999", "٣"])
def test_a_token_must_ask_for_a_time_that_ec2_gives(seconds: str) -> None:
    assert get(aws(), "/latest/api/token", {TTL_HEADER: seconds}, "PUT").status == 400


def test_a_token_is_needed_holds_its_time_and_is_the_pods_own() -> None:
    dialect = aws()
    path = "/latest/meta-data/instance-id"
    assert get(dialect, path).status == 401
    assert get(aws(IMDS_V1), path).status == 200
    held = token(dialect)
    request = Request("GET", path, {}, held)
    assert [dialect.answer(request, NOW + after).status for after in (0, 59.9, 60)] == [200, 200, 401]
    other = Aws(Facts(samples.sandbox("sb-2"), samples.attempt("sb-2")), Policy(), TOKENS)
    assert other.answer(request, NOW).status == 401
    elsewhere = Aws(facts({}), Policy(), Tokens(b"j" * 32))
    assert elsewhere.answer(request, NOW).status == 401
    # Even where none is needed, a wrong one is wrong.
    assert get(aws(IMDS_V1), path, {TOKEN_HEADER: "x"}).status == 401


def test_aws_refuses_proxies_and_other_methods() -> None:
    assert get(aws(), "/latest/api/token", {TTL_HEADER: "60", "x-forwarded-for": "1.2.3.4"}, "PUT").status == 403
    assert get(aws(), "/latest/meta-data/", {}, "POST").status == 405


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("eu-west-1b", "eu-west-1"),
        ("us-gov-west-1a", "us-gov-west-1"),
        ("us-west-2-lax-1a", "us-west-2"),
        ("lab", "lab"),
        ("", ""),
    ],
)
def test_the_region_of_a_zone(zone: str, expected: str) -> None:
    assert region(zone) == expected


# Azure

QUERY = "?api-version=2021-02-01"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/metadata/instance/compute/vmId?api-version=2021-02-01&format=text", "13f56399-bd52-4150-9748-7190aae1ff21"),
        ("/metadata/instance/compute/location?api-version=2021-02-01&format=text", "westeurope"),
        ("/metadata/instance/compute/zone?api-version=2021-02-01&format=text", "2"),
        ("/metadata/instance/compute/resourceGroupName?api-version=2021-02-01&format=text", "rg-1"),
        ("/metadata/instance/compute/tags?api-version=2021-02-01&format=text", "owner:shop;cluster:c1"),
        ("/metadata/instance/network/interface/0/macAddress?api-version=2021-02-01&format=text", "000D3AAABB01"),
        (
            "/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress?api-version=2021-02-01&format=text",
            "10.1.0.5",
        ),
        ("/metadata/instance?api-version=2021-02-01&format=text", "compute/\nnetwork/"),
    ],
)
def test_azure_paths_into_the_tree(target: str, expected: str) -> None:
    answer = get(azure(), target, {"metadata": "true"})
    assert (answer.status, answer.body.decode()) == (200, expected)


def test_azure_answers_json_of_everything() -> None:
    answer = get(azure(), f"/metadata/instance{QUERY}", {"metadata": "True"})
    document = json.loads(answer.body)
    assert answer.content_type == "application/json"
    assert document["compute"]["vmSize"] == "Standard_D2s_v5"
    assert document["compute"]["tagsList"] == [{"name": "owner", "value": "shop"}, {"name": "cluster", "value": "c1"}]
    assert "userData" not in document["compute"]


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (f"/metadata/instance{QUERY}", {}, 400),
        (f"/metadata/instance{QUERY}", {"metadata": "false"}, 400),
        ("/metadata/instance", {"metadata": "true"}, 400),
        ("/metadata/instance?api-version=2000-01-01", {"metadata": "true"}, 400),
        (f"/metadata/instance{QUERY}", {"metadata": "true", "x-forwarded-for": "1.2.3.4"}, 400),
        (f"/metadata/instance/compute/vmId{QUERY}", {"metadata": "true"}, 400),
        (f"/metadata/instance/compute/userData{QUERY}&format=text", {"metadata": "true"}, 404),
        (f"/metadata/instance/network/interface/9{QUERY}", {"metadata": "true"}, 404),
        ("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x", {"metadata": "true"}, 400),
        ("/metadata/attested/document?api-version=2018-10-01", {"metadata": "true"}, 403),
        ("/latest/meta-data/", {"metadata": "true"}, 404),
    ],
)
def test_azure_refuses(target: str, headers: dict[str, str], status: int) -> None:
    answer = get(azure(), target, headers)
    assert answer.status == status
    assert "error" in json.loads(answer.body)


def test_azure_names_the_newest_versions_to_who_names_none() -> None:
    told = json.loads(get(azure(), "/metadata/instance", {"metadata": "true"}).body)
    assert told["newest-versions"][0] > told["newest-versions"][1]


# IBM Cloud

VERSION = "?version=2022-03-01"


def bearer(dialect: IbmCloud, path: str = "/instance_identity/v1/token", body: bytes = b"") -> Answer:
    return get(dialect, path + VERSION, {"metadata-flavor": "ibm"}, "PUT", body)


def test_ibm_gives_the_instance_to_who_has_a_token() -> None:
    dialect = ibm()
    for path in ("/instance_identity/v1/token", "/identity/v1/token"):
        made = json.loads(bearer(dialect, path, b'{"expires_in": 60}').body)
        assert made["expires_in"] == 60
        answer = get(dialect, "/metadata/v1/instance" + VERSION, {"authorization": f"Bearer {made['access_token']}"})
        document = json.loads(answer.body)
        assert (document["id"], document["zone"]["name"], "user_data" in document) == (
            "0717_1e09281b",
            "us-south-1",
            False,
        )
        one = get(
            dialect,
            "/metadata/v1/instance/network_interfaces/0717-nic" + VERSION,
            {"authorization": f"Bearer {made['access_token']}"},
        )
        assert json.loads(one.body)["primary_ip"]["address"] == "10.2.0.5"


@pytest.mark.parametrize("body", [b'{"expires_in": 4}', b'{"expires_in": 3601}', b"[]", b"{", b'{"expires_in": true}'])
def test_ibm_refuses_other_lifetimes(body: bytes) -> None:
    assert bearer(ibm(), body=body).status == 400


@pytest.mark.parametrize(
    ("target", "method", "headers", "status"),
    [
        ("/instance_identity/v1/token", "PUT", {"metadata-flavor": "ibm"}, 400),
        ("/instance_identity/v1/token?version=2021-01-01", "PUT", {"metadata-flavor": "ibm"}, 400),
        ("/instance_identity/v1/token?version=2099-01-01", "PUT", {"metadata-flavor": "ibm"}, 400),
        ("/instance_identity/v1/token" + VERSION, "PUT", {}, 400),
        ("/instance_identity/v1/token" + VERSION, "GET", {"metadata-flavor": "ibm"}, 405),
        ("/instance_identity/v1/iam_token" + VERSION, "POST", {"metadata-flavor": "ibm"}, 403),
        ("/metadata/v1/instance" + VERSION, "GET", {}, 401),
        ("/metadata/v1/instance" + VERSION, "GET", {"authorization": "Bearer x"}, 401),
        ("/metadata/v1/instance" + VERSION, "GET", {"x-forwarded-for": "1.2.3.4"}, 403),
    ],
)
def test_ibm_refuses(target: str, method: str, headers: dict[str, str], status: int) -> None:
    assert get(ibm(), target, headers, method).status == status


# All


@pytest.mark.parametrize("make", [aws, azure, ibm])
def test_user_data_is_told_only_where_it_is_allowed(make: Any) -> None:
    assert SECRET not in json.dumps(make().document())
    shown = json.dumps(make(USER_DATA).document())
    assert SECRET in shown or base64.b64encode(samples.USER_DATA).decode() in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.text(max_size=60), st.sampled_from(["GET", "PUT", "HEAD", "X"]), st.dictionaries(st.text(), st.text()))
def test_any_request_gets_an_answer(path: str, method: str, headers: dict[str, str]) -> None:
    for dialect in (aws(IMDS_V1), azure(), ibm()):
        for prefix in ("/", "/latest/", "/metadata/instance/", "/metadata/v1/"):
            answer = dialect.answer(Request(method, prefix + path, {"api-version": "2021-02-01"}, headers), NOW)
            assert 200 <= answer.status < 500


@given(st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")))
def test_no_made_up_token_fits(made_up: str) -> None:
    assert not TOKENS.fits(made_up, "aws", "sb-1", NOW)


@given(JSON, st.lists(st.text(max_size=3) | st.integers(0, 3), max_size=4))
def test_digging_in_json_from_outside_finds_something_or_the_default(document: Any, path: list[str | int]) -> None:
    dig(document, *path, default=[])
