"""What our guest passes on of the cloud's metadata service, and what it never does."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.guest import metadata
from caa.guest.apf import read_metadata
from caa.guest.metadata import Config, Refused, Request, check, cleaned, read_config, read_request
from caa.guestconfig import TlsProfile, apf_json
from caa.metadata import keys

TOKEN = {"x-aws-ec2-metadata-token": "t"}
NOTHING: frozenset[str] = frozenset()
ALL = frozenset(keys.ALLOWABLE)


def refusal(target: str, allow: frozenset[str] = NOTHING, method: str = "GET", header: str = "accept") -> int:
    """The status of the refusal; 0 when it is passed on."""
    try:
        check(Request(method, target, TOKEN | {header: "x"}), allow)
    except Refused as refused:
        return refused.status
    return 0


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/latest/",
        "/latest/meta-data/instance-id",
        "/latest/meta-data/placement/availability-zone/",
        "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/subnet-id",
        "/latest/dynamic/instance-identity/document",
        "/metadata/instance?api-version=2021-02-01",
        "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text",
        "/metadata/v1/instance?version=2022-03-01",
    ],
)
def test_the_vms_identity_is_passed_on(target: str) -> None:
    assert refusal(target) == 0


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("/latest/user-data", keys.USER_DATA),
        ("/2009-04-04/user-data/", keys.USER_DATA),
        ("/latest/USER-DATA", keys.USER_DATA),
        ("/metadata/instance/compute/userData?api-version=2021-01-01&format=text", keys.USER_DATA),
        ("/metadata/instance/compute/customData?api-version=2021-01-01&format=text", keys.USER_DATA),
        ("/metadata/v1/instance/initialization?version=2022-03-01", keys.USER_DATA),
        ("/latest/meta-data/iam/security-credentials/role", keys.CREDENTIALS),
        ("/latest/meta-data/identity-credentials/ec2/info", keys.CREDENTIALS),
        ("/metadata/identity/oauth2/token?api-version=2018-02-01", keys.CREDENTIALS),
        ("/instance_identity/v1/token", keys.CREDENTIALS),
        ("/latest/dynamic/instance-identity/pkcs7", keys.SIGNED_DOCUMENTS),
        ("/metadata/attested/document?api-version=2018-10-01", keys.SIGNED_DOCUMENTS),
    ],
)
def test_what_must_be_allowed_is_refused_without(target: str, word: str) -> None:
    assert refusal(target) >= 400
    assert refusal(target, ALL - {word}) >= 400
    assert refusal(target, frozenset({word})) == 0


@pytest.mark.parametrize(
    "target",
    [
        "//latest/user-data",
        "/latest//user-data",
        "/latest/./user-data",
        "/latest/meta-data/../user-data",
        "/latest/user%2ddata",
        "/latest/user-data;x",
        "/latest\\user-data",
        "/latest/user-data#",
        "/computeMetadata/v1/?recursive=true",
        "/openstack/latest/user_data",
        "/latest/new-thing",
        "/unknown",
    ],
)
def test_what_is_not_known_or_written_strangely_is_refused_whatever_is_allowed(target: str) -> None:
    assert refusal(target, ALL) >= 400


def test_other_methods_proxies_and_version_1_are_refused() -> None:
    assert refusal("/latest/meta-data/", method="POST") == 405
    assert refusal("/latest/api/token", method="PUT") == 0
    assert refusal("/latest/meta-data/", header="x-forwarded-for") == 403
    with pytest.raises(Refused, match="token is needed"):
        check(Request("GET", "/latest/meta-data/", {}), NOTHING)
    check(Request("GET", "/latest/meta-data/", {}), frozenset({keys.IMDS_V1}))


@given(st.text(st.sampled_from("/.%;aelstur-dUSER\\?#2f0"), max_size=40))
def test_no_spelling_of_user_data_gets_through(text: str) -> None:
    target = "/latest/" + text
    if not refusal(target):
        assert not target.lower().partition("?")[0].rstrip("/").endswith("/latest/user-data")


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_azures_answer_loses_user_data_wherever_it_is(inner: object) -> None:
    document = {"compute": {"userData": "c2VjcmV0", "name": "vm", "more": [{"customData": "x", "other": inner}]}}
    body = cleaned("/metadata/instance?api-version=2021-02-01", json.dumps(document).encode(), NOTHING)
    assert b"c2VjcmV0" not in body
    assert json.loads(body)["compute"]["name"] == "vm"
    allowed = cleaned("/metadata/instance?api-version=2021-02-01", b"x", frozenset({keys.USER_DATA}))
    assert allowed == b"x"


def test_an_answer_that_cannot_be_cleaned_is_not_passed_on() -> None:
    with pytest.raises(Refused):
        cleaned("/metadata/instance?api-version=2021-02-01", b"<xml/>", NOTHING)


def receiver(*chunks: bytes) -> Callable[[int], bytes]:
    left = list(chunks)
    return lambda _: left.pop(0) if left else b""


def test_a_request_is_read_in_any_pieces() -> None:
    text = b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    for place in range(1, len(text)):
        request = read_request(receiver(text[:place], text[place:]), lambda _: None)
        assert request == Request("PUT", "/latest/api/token", {"host": "x", "content-length": "2"}, b"hi")


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_request_or_refused(data: bytes) -> None:
    with suppress(Refused):  # nothing else is raised
        read_request(receiver(data, b"\r\n\r\n"), lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n",
        b"GET / HTTP/1.1\r\nX" + b"x" * 20_000 + b"\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\n\r\n",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(text: bytes) -> None:
    chunks = [text[place : place + 4096] for place in range(0, len(text), 4096)]
    with pytest.raises(Refused):
        read_request(receiver(*chunks), lambda _: None)


def test_the_workers_words_are_understood_and_others_allow_nothing() -> None:
    assert read_config({"mode": "vm", "allow": ["user-data"], "hops": 2}) == Config(frozenset({"user-data"}), 2)
    assert read_config({"mode": "vm", "allow": "user-data", "hops": 0}) == Config()
    assert read_config({"mode": "pod"}) is None
    assert read_config(None) is None
    for name in ("IMDS_V1", "USER_DATA", "CREDENTIALS", "SIGNED_DOCUMENTS"):
        assert getattr(keys, name) == getattr(metadata, name)


def test_the_worker_tells_the_mode_in_apf_json_in_a_key_of_its_own(tmp_path: Path) -> None:
    plain = apf_json(pod_namespace="shop", pod_name="web", identity=None, client_ca="", tls=TlsProfile())
    told = apf_json(
        pod_namespace="shop",
        pod_name="web",
        identity=None,
        client_ca="",
        tls=TlsProfile(),
        metadata={"mode": "vm", "allow": ["imds-v1"], "hops": 1},
    )
    config = tmp_path / "apf.json"
    config.write_text(told)
    assert read_config(read_metadata(config)) == Config(frozenset({"imds-v1"}), 1)
    # All else is as without it: the incumbent's forwarder passes over keys that it does not know.
    assert {key: value for key, value in json.loads(told).items() if key != "caa-metadata"} == json.loads(plain)
    config.write_text(plain)
    assert read_config(read_metadata(config)) is None
