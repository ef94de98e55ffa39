"""User data: what a strict guest accepts, byte for byte, and what our own guest reads back."""

from __future__ import annotations

import base64
import gzip
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.clock import SystemClock
from caa.errors import InvalidInputError
from caa.guest import userdata
from caa.guestconfig import (
    APF_PATH,
    FILE_ORDER,
    INITDATA_ANNOTATION,
    INITDATA_PATH,
    GuestFile,
    TlsProfile,
    apf_json,
    auth_json,
    check_initdata,
    cloud_config,
    decode_initdata,
    guest_files,
    initdata,
)
from caa.pki import NodeKeys, ServerIdentity
from tests.unit import stockguest

# A content line as files have them; YAML's own line breaks beyond "\n" never occur in what we send.
lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


GOLDEN = Path(__file__).with_name("golden")
IDENTITY = ServerIdentity("CERT\n", "KEY\n")
BARE: dict[str, Any] = {
    "pod_namespace": "default",
    "pod_name": "web-0",
    "identity": None,
    "client_ca": "",
    "tls": TlsProfile(),
}


def golden(name: str) -> str:
    return (GOLDEN / name).read_text()


def full_apf(pod_network: Mapping[str, object] | str) -> str:
    def pem(kind: str, body: str) -> str:
        return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"

    suites = ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")
    return apf_json(
        pod_network=pod_network,
        pod_namespace="default",
        pod_name="web-0",
        identity=ServerIdentity(pem("CERTIFICATE", "MIIB"), pem("PRIVATE KEY", "MIGH+/==")),
        client_ca=pem("CERTIFICATE", "MIIC"),
        tls=TlsProfile("VersionTLS12", suites),
    )


def test_apf_json_is_byte_for_byte_what_a_stock_worker_writes() -> None:
    network = json.loads(golden("apf.json"))["pod-network"]
    for handed_in in (network, json.dumps(network), json.dumps(network, indent=1)):
        assert full_apf(handed_in) == golden("apf.json")
    assert apf_json(**BARE) == golden("apf-bare.json")
    for name in ("apf.json", "apf-bare.json"):
        stockguest.check_apf(golden(name))


@pytest.mark.parametrize("given", ["[]", "7", '"text"', "{", ""])
def test_a_pod_network_that_is_no_object_is_refused(given: str) -> None:
    with pytest.raises(ValueError):
        apf_json(**BARE, pod_network=given)


def test_the_cloud_config_is_byte_for_byte_what_a_stock_worker_writes() -> None:
    files = guest_files(
        apf=golden("apf-bare.json"),
        auth=auth_json({"registry.example:5000": "YTpi", "quay.io": "dXNlcjpwYXNz"}),
        initdata="H4sIAAAAAAAA",
        scratch_space=True,
    )
    assert cloud_config(files) == golden("cloud-config.yaml").encode()
    assert [file.path for file in guest_files(apf="{}")] == [APF_PATH]
    assert cloud_config([]) == b"#cloud-config\n"


def test_the_strict_parser_of_these_tests_refuses_what_a_stock_guest_refuses() -> None:
    text = golden("cloud-config.yaml")
    assert set(stockguest.read_cloud_config(text.encode())) == set(FILE_ORDER)
    for wrong in (
        text + "runcmd: []\n",
        text + "    permissions: '0600'\n",
        text + "    path: /run/peerpod/initdata\n",
        text + "write_files: []\n",
        text.replace("          ", "    "),
        "- a\n",
    ):
        with pytest.raises(stockguest.Refused):
            stockguest.read_cloud_config(wrong.encode())


contents = st.lists(lines, max_size=6).map("\n".join)


@given(st.lists(st.tuples(st.sampled_from(FILE_ORDER), contents), max_size=4, unique_by=lambda file: file[0]))
def test_what_is_sent_reaches_a_stock_guest_and_ours_unchanged_or_is_not_sent(files: list[tuple[str, str]]) -> None:
    try:
        sent = cloud_config([GuestFile(*file) for file in files])
    except ValueError:
        assert any(
            text and (text[0].isspace() or not text.removesuffix("\n").split("\n")[-1].strip()) for _, text in files
        )
        return
    wanted = {path: text.removesuffix("\n") + "\n" if text else "" for path, text in files}
    assert stockguest.read_cloud_config(sent) == wanted
    assert dict(userdata.parse(sent)) == wanted


@pytest.mark.parametrize("text", [" a", "\na", "\ta", "a\n\n", "a\n  ", "\n", "a\rb", "a\x7f", "a\u2028b", "é", "a\0"])
def test_content_that_yaml_would_change_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"/run/peerpod/initdata") as caught:
        cloud_config([GuestFile(INITDATA_PATH, text)])
    assert "'" not in str(caught.value)


def test_a_path_that_no_guest_writes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'/etc/passwd'; allowed: /run/peerpod/apf.json, "):
        cloud_config([GuestFile("/etc/passwd", "x")])


TOML = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs]\n'''\n"


def test_initdata_goes_to_the_guest_as_base64_of_gzip_and_is_always_the_same() -> None:
    text = initdata(TOML)
    assert base64.b64decode(text)[4:8] == bytes(4)  # gzip's time, or a repeated launch would have other user data
    assert gzip.decompress(base64.b64decode(text)).decode() == TOML
    assert decode_initdata(text, "INITDATA") == TOML.encode()
    assert stockguest.is_base64_of_gzip(text)
    assert initdata("", " H4sI\n AAAA\n") == "H4sIAAAA"
    assert initdata("", "") == ""


@pytest.mark.parametrize(
    ("toml", "part"),
    [
        ("algorithm", "is not TOML"),
        ("a = 1\n", "algorithm is None; allowed: sha256, sha384, sha512"),
        ('algorithm = "md5"\n', "algorithm is 'md5'; allowed: sha256, sha384, sha512"),
        ('algorithm = "SHA256"\n', "algorithm is 'SHA256'"),
        ("algorithm = ['sha256']\n", "algorithm is ['sha256']"),
        ('algorithm = "sha256"\nversion = 1\n', "version must be text"),
        ('algorithm = "sha256"\ndata = 1\n', "data must be a table"),
        ('algorithm = "sha256"\n[data]\n"aa.toml" = 1\n', "data must be a table"),
        ("#" * ((1 << 20) + 1), "has 1048577 bytes of TOML; allowed: 1048576"),
    ],
)
def test_initdata_that_the_guest_would_refuse_is_refused_before_it_costs_a_vm(toml: str, part: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        initdata(toml)
    assert part in str(caught.value)
    assert caught.value.field == INITDATA_ANNOTATION
    assert INITDATA_ANNOTATION in str(caught.value)


@pytest.mark.parametrize("text", ["%", "AAAA", base64.b64encode(gzip.compress(b"a = 1", mtime=0))[:-8].decode(), "é"])
def test_text_that_is_no_initdata_is_refused_by_key(text: str) -> None:
    with pytest.raises(InvalidInputError, match="INITDATA is not base64 of gzip of TOML"):
        decode_initdata(text, "INITDATA")


def test_a_gzip_bomb_is_never_unpacked() -> None:
    bomb = base64.b64encode(gzip.compress(b"#" * (64 << 20), mtime=0)).decode()
    with pytest.raises(InvalidInputError, match="1048577 bytes of TOML"):
        check_initdata(decode_initdata(bomb, "INITDATA"), "INITDATA")


def test_keys_are_made_once_for_root_only_and_used_again(tmp_path: Path) -> None:
    first = NodeKeys(tmp_path / "tls", SystemClock())
    second = NodeKeys(tmp_path / "tls", SystemClock())
    assert first.client_certificate == second.client_certificate
    assert first.ca_file.read_bytes() == second.ca_file.read_bytes()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700


def test_a_pair_that_a_crash_cut_short_is_made_again(tmp_path: Path) -> None:
    keys = NodeKeys(tmp_path, SystemClock())
    keys.client_cert_file.unlink()
    again = NodeKeys(tmp_path, SystemClock())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(again.client_cert_file, again.client_key_file)


def test_a_server_certificate_holds_for_its_own_vm_only(tmp_path: Path) -> None:
    keys = NodeKeys(tmp_path / "tls", SystemClock())
    identity = keys.issue("podvm-web-12345678")
    (tmp_path / "server.pem").write_text(identity.certificate + identity.key)

    def handshake(name: str) -> None:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tmp_path / "server.pem")
        # The client's certificate is no CA; a guest trusts that very certificate.
        server.load_verify_locations(keys.client_cert_file)
        server.verify_mode, server.verify_flags = ssl.CERT_REQUIRED, ssl.VERIFY_X509_PARTIAL_CHAIN
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(keys.ca_file)
        client.load_cert_chain(keys.client_cert_file, keys.client_key_file)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(to_client, to_server, server_hostname=name),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue

    handshake("podvm-web-12345678")
    with pytest.raises(ssl.SSLCertVerificationError, match="podvm-other"):
        handshake("podvm-other")


def test_neither_identity_nor_request_shows_a_key_when_printed() -> None:
    assert "KEY" not in repr(IDENTITY)
