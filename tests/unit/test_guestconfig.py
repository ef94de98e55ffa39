"""User data: what a strict guest accepts, byte for byte, and what our own guest reads back."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caa.clock import SystemClock
from caa.guest import userdata
from caa.guestconfig import APF_PATH, SCRATCH_MARKER_PATH, GuestFile, TlsProfile, apf_json, cloud_config
from caa.pki import NodeKeys, ServerIdentity

IDENTITY = ServerIdentity("CERT\n", "KEY\n")

# A content line as files have them; YAML's own line breaks beyond "\n" never occur in what we send.
lines = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


def test_the_cloud_config_has_the_exact_bytes_that_a_stock_guest_parses() -> None:
    files = [GuestFile(APF_PATH, '{\n    "a": 1\n}'), GuestFile(SCRATCH_MARKER_PATH, "")]
    assert cloud_config(files) == (
        b"#cloud-config\n\nwrite_files:\n"
        b"  - path: /run/peerpod/apf.json\n    content: |\n"
        b'      {\n          "a": 1\n      }\n'
        b"  - path: /run/peerpod/scratch-space.marker\n"
    )


def test_apf_json_has_its_keys_in_order_and_leaves_out_what_is_empty() -> None:
    text = apf_json(pod_namespace="ns", pod_name="p", identity=IDENTITY, client_ca="CA\n", tls=TlsProfile())
    assert list(json.loads(text)) == [
        "pod-network",
        "pod-namespace",
        "pod-name",
        "tls-server-key",
        "tls-server-cert",
        "tls-client-ca",
    ]
    assert text.startswith('{\n    "pod-network": null,\n')
    bare = apf_json(pod_namespace="ns", pod_name="p", identity=None, client_ca="", tls=TlsProfile())
    assert list(json.loads(bare)) == ["pod-network", "pod-namespace", "pod-name"]


@given(st.lists(lines, max_size=6))
def test_whatever_is_sent_our_guest_and_a_strict_parser_read_the_same(content: list[str]) -> None:
    text = "\n".join(content)
    sent = cloud_config([GuestFile(APF_PATH, text)])
    document = yaml.safe_load(sent)
    assert set(document) == {"write_files"}
    assert set(document["write_files"][0]) <= {"path", "content"}
    [file] = userdata.parse(sent)
    assert file.path == APF_PATH
    strict = document["write_files"][0].get("content", "")
    read = file.content if isinstance(file.content, str) else file.content.decode()
    assert read == strict


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
