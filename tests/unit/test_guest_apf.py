"""apf.json in the pod VM: everything a stock worker may have written into it."""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.clock import SystemClock
from caa.guest.apf import ConfigError, Identity, read_identity, read_pod_network, server_context
from caa.pki import NodeKeys

GOLDEN = Path(__file__).with_name("golden")


def written(directory: Path, document: object) -> Path:
    path = directory / "apf.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def identity(directory: Path, **more: object) -> Identity:
    document = {"tls-server-key": "K", "tls-server-cert": "C", "tls-client-ca": "A", **more}
    return read_identity(written(directory, document))


def test_the_golden_file_is_read_in_full(tmp_path: Path) -> None:
    found = read_identity(GOLDEN / "apf.json", tmp_path)
    assert found.key.startswith("-----BEGIN PRIVATE KEY-----\nMIGH")
    assert (found.certificate.split("\n")[1], found.client_ca.split("\n")[1]) == ("MIIB", "MIIC")
    assert found.minimum == ssl.TLSVersion.TLSv1_2
    assert found.ciphers == ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384")
    network = read_pod_network(GOLDEN / "apf.json")
    assert network == json.loads((GOLDEN / "apf.json").read_text())["pod-network"]
    assert read_pod_network(GOLDEN / "apf-bare.json") is None


def test_keys_match_whatever_their_case_at_any_depth(tmp_path: Path) -> None:
    document = {
        "Pod-Network": {"PodIP": "10.0.0.2/24", "Routes": [{"Dst": "", "GW": "10.0.0.1", "Dev": "eth0"}]},
        "TLS-Server-Key": "K",
        "TLS-SERVER-CERT": "C",
        "Tls-Client-Ca": "A",
        "sc-pp-prv": "AAAA",
        "sc-wn-pub": None,
        "of-a-later-version": {"X": 1},
    }
    path = written(tmp_path, document)
    assert read_identity(path)[:3] == ("C", "K", "A")
    assert read_pod_network(path) == {"podip": "10.0.0.2/24", "routes": [{"dst": "", "gw": "10.0.0.1", "dev": "eth0"}]}


def test_without_keys_those_of_the_image_are_used(tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text(name)
    for document in ({"pod-name": "x"}, {"tls-server-key": "", "tls-server-cert": None}):
        assert read_identity(written(tmp_path, document), tmp_path)[:3] == ("tls.crt", "tls.key", "ca.crt")


@pytest.mark.parametrize(
    ("names", "ciphers"),
    [
        ([], ()),
        (None, ()),
        (
            ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"],
            ("ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES256-SHA"),
        ),
        (
            ["TLS_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
            ("ECDHE-ECDSA-AES128-GCM-SHA256",),
        ),
    ],
)
def test_cipher_suites_are_those_of_the_profile_that_we_have(
    tmp_path: Path, names: list[str] | None, ciphers: tuple[str, ...]
) -> None:
    assert identity(tmp_path, **{"tls-cipher-suites": names}).ciphers == ciphers


def test_only_the_suites_of_the_profile_are_offered(tmp_path: Path) -> None:
    keys = NodeKeys(tmp_path / "tls", SystemClock())
    server = keys.issue("vm")
    suite = {"tls-cipher-suites": ["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]}
    pems = {"tls-server-key": server.key, "tls-server-cert": server.certificate}
    found = read_identity(written(tmp_path, {**pems, "tls-client-ca": keys.client_certificate, **suite}))
    offered = [cipher["name"] for cipher in server_context(found).get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert offered == ["ECDHE-ECDSA-AES256-GCM-SHA384"]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"tls-cipher-suites": "TLS_X"}, "tls-cipher-suites must be a list of text"),
        ({"tls-cipher-suites": [1]}, "tls-cipher-suites must be a list of text"),
        ({"tls-cipher-suites": ["X"]}, "tls-cipher-suites: 'X' is not allowed: one of TLS_ECDHE_"),
        ({"tls-cipher-suites": ["TLS_AES_128_GCM_SHA256"]}, "tls-cipher-suites: 'TLS_AES_128_GCM_SHA256'"),
        (
            {"tls-min-version": "VersionTLS13", "tls-cipher-suites": ["TLS_X"]},
            "must be empty when tls-min-version is VersionTLS13",
        ),
        ({"tls-min-version": "VersionTLS11"}, "tls-min-version: 'VersionTLS11' is not allowed"),
        ({"tls-min-version": 13}, "tls-min-version must be text"),
        ({"tls-server-key": ["K"]}, "tls-server-key must be text"),
    ],
)
def test_what_cannot_work_is_refused_by_key(tmp_path: Path, more: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        identity(tmp_path, **more)
    assert part in str(caught.value)


@pytest.mark.parametrize("network", [[], "eth0", 1, True])
def test_a_pod_network_that_is_no_object_is_refused(tmp_path: Path, network: object) -> None:
    with pytest.raises(ConfigError, match=r"pod-network is a \w+; allowed: an object"):
        read_pod_network(written(tmp_path, {"pod-network": network}))


_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=8,
)
_keys = st.sampled_from(["pod-network", "tls-server-key", "TLS-SERVER-CERT", "tls-min-version", "tls-cipher-suites"])


@given(st.one_of(st.dictionaries(_keys, _json).map(json.dumps), _json.map(json.dumps), st.text(max_size=60)))
def test_no_apf_json_ends_in_anything_but_an_answer_or_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("apf") / "apf.json"
    path.write_bytes(text.encode("utf-8", "replace"))
    for read in (read_identity, read_pod_network):
        with suppress(ConfigError):
            read(path)
