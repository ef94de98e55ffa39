"""What may be configured, and what the service says of the rest."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.settings import Settings, api_socket, ledger_url, load
from caa.settingtypes import HostPort
from providers.base import ConfigError

MINIMAL = {"CLOUD_PROVIDER": "libvirt", "NODE_NAME": "node-1"}
TOKEN = {"CAA_API_TOKEN_FILE": "/etc/caa/token"}
TLS = {"CAA_API_CERT_FILE": "/etc/caa/tls.crt", "CAA_API_KEY_FILE": "/etc/caa/tls.key"}


def problems(**keys: str) -> dict[str, str]:
    """What is wrong, by key."""
    with pytest.raises(ConfigError) as error:
        load(MINIMAL | keys)
    return {problem.key: problem.message for problem in error.value.problems}


def test_only_the_provider_is_required() -> None:
    settings = load({"CLOUD_PROVIDER": "aws"})
    assert settings.node_name
    with pytest.raises(ConfigError) as error:
        load({})
    assert [problem.key for problem in error.value.problems] == ["CLOUD_PROVIDER"]


def test_the_defaults_are_the_incumbents_where_it_has_the_key() -> None:
    settings = load(MINIMAL)
    assert settings.hypervisor_socket == Path("/run/peerpod/hypervisor.sock")
    assert settings.pods_dir == Path("/run/peerpod/pods")
    assert settings.forwarder_port == 15150
    assert settings.proxy_timeout == 300.0
    assert settings.limit_per_node == 10
    assert settings.tls_min_version == ""
    assert settings.tls_cipher_suites == ()
    assert settings.initdata == ""
    assert settings.enable_scratch_space is False
    assert settings.images == ()
    assert settings.prices_file is None


def test_our_own_defaults() -> None:
    settings = load(MINIMAL)
    assert settings.api_socket == Path("/run/peerpod/caa.sock")
    assert settings.api_listen is None
    assert settings.ledger_url == "sqlite:////var/lib/caa/ledger.db"
    assert settings.cluster_id == "default"
    assert (settings.log_format, settings.log_level) == ("console", "INFO")


def test_the_declared_defaults_are_those_that_hold() -> None:
    assert load(MINIMAL) == Settings.model_validate(MINIMAL)


def test_an_empty_value_counts_as_unset() -> None:
    empty = {str(field.alias): " " for field in Settings.model_fields.values()}
    assert load(empty | MINIMAL) == load(MINIMAL)


def test_sockets_and_pods_follow_the_run_directory_and_the_ledger_the_state_directory() -> None:
    settings = load(MINIMAL | {"CAA_RUN_DIR": "/run/two", "CAA_STATE_DIR": "/srv/caa/"})
    assert settings.api_socket == Path("/run/two/caa.sock")
    assert settings.hypervisor_socket == Path("/run/two/hypervisor.sock")
    assert settings.pods_dir == Path("/run/two/pods")
    assert settings.ledger_url == "sqlite:////srv/caa/ledger.db"
    assert load(MINIMAL | {"CAA_RUN_DIR": "/run/two", "PODS_DIR": "/pods"}).pods_dir == Path("/pods")


def test_clients_and_database_commands_find_the_same_places() -> None:
    environ = {"CAA_RUN_DIR": "/run/two", "CAA_STATE_DIR": "/srv/caa"}
    settings = load(MINIMAL | environ)
    assert (api_socket(environ), ledger_url(environ)) == (str(settings.api_socket), settings.ledger_url)
    assert api_socket({"CAA_API_SOCKET": "/x.sock"}) == "/x.sock"
    with pytest.raises(ConfigError, match="CAA_LEDGER_URL"):
        ledger_url({"CAA_LEDGER_URL": "ledger.db"})


def test_every_key_has_an_upper_case_name_and_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", field.alias or ""), name
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("CLOUD_PROVIDER", "AWS!", "pattern"),
        ("FORWARDER_PORT", "many", "integer"),
        ("FORWARDER_PORT", "0", "greater than or equal to 1"),
        ("FORWARDER_PORT", "65536", "less than or equal to 65535"),
        ("PROXY_TIMEOUT", "5", '"30s"'),
        ("PROXY_TIMEOUT", "0s", "longer than nothing"),
        ("TLS_MIN_VERSION", "1.2", "'VersionTLS12' or 'VersionTLS13'"),
        ("TLS_CIPHER_SUITES", "ECDHE-RSA-AES128-SHA", "IANA"),
        ("ENABLE_SCRATCH_SPACE", "yes", "true or false"),
        ("PEERPODS_LIMIT_PER_NODE", "ten", "integer"),
        ("CAA_LOG_FORMAT", "xml", "'console' or 'json'"),
        ("CAA_LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("CAA_CLUSTER_ID", "a b", "pattern"),
        ("CAA_STATE_DIR", "var/lib", "absolute"),
        ("CAA_RUN_DIR", "run", "absolute"),
        ("CAA_API_SOCKET", "caa.sock", "absolute"),
        ("CAA_API_SOCKET", "/" + "x" * 107, "107 bytes"),
        ("REMOTE_HYPERVISOR_ENDPOINT", "/" + "x" * 107, "107 bytes"),
        ("CACERT_FILE", "ca.crt", "absolute"),
        ("CAA_API_LISTEN", "8080", "host:port"),
        ("CAA_API_LISTEN", "::1:8080", "host:port"),
        ("CAA_API_LISTEN", "localhost:0", "1 to 65535"),
        ("CAA_API_LISTEN", "localhost:70000", "1 to 65535"),
        ("CAA_API_LISTEN", "[1:2]:8080", "IPv6"),
        ("CAA_TRACES_ENDPOINT", "collector:4318", "http://collector:4318/v1/traces"),
        ("CAA_TRACES_ENDPOINT", "grpc://collector:4317/", "http://collector:4318/v1/traces"),
        ("CAA_TRACES_ENDPOINT", "http://collector:4318", "with its path"),
        ("CAA_TRACES_ENDPOINT", "http://collector:many/v1/traces", "http://collector:4318/v1/traces"),
        ("CAA_TRACES_ENDPOINT", "http:///v1/traces", "http://collector:4318/v1/traces"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(key: str, value: str, allowed: str) -> None:
    found = problems(**{key: value})
    assert list(found) == [key]
    assert repr(value) in found[key]
    assert allowed in found[key]


def test_every_bad_key_is_told_at_once() -> None:
    assert set(problems(FORWARDER_PORT="x", PROXY_TIMEOUT="x", CAA_LOG_FORMAT="x")) == {
        "FORWARDER_PORT",
        "PROXY_TIMEOUT",
        "CAA_LOG_FORMAT",
    }


def test_contradictions_are_told_at_once_too() -> None:
    assert set(problems(CAA_API_LISTEN="0.0.0.0:80", CAA_LEDGER_URL="x", INITDATA="x", CERT_FILE="/c")) == {
        "CAA_API_LISTEN",
        "CAA_LEDGER_URL",
        "INITDATA",
        "CACERT_FILE",
        "CERT_KEY",
    }


# The pods directory

TAIL = len("/" + "0" * 64 + "/agent.ttrpc")


@given(st.integers(1, 200))
def test_a_pods_directory_is_taken_exactly_when_the_longest_agent_socket_can_be_bound(length: int) -> None:
    directory = "/" + "p" * (length - 1)
    if length + TAIL < 108:
        assert load(MINIMAL | {"PODS_DIR": directory}).pods_dir == Path(directory)
    else:
        assert "at most 30 bytes" in problems(PODS_DIR=directory)["PODS_DIR"]


@pytest.mark.parametrize("character", ":%?#")
def test_a_pods_directory_holds_nothing_the_shim_cannot_read(character: str) -> None:
    assert "shim" in problems(PODS_DIR=f"/run/a{character}b")["PODS_DIR"]


# Durations

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(list(UNITS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    seconds = sum(number * UNITS[unit] for number, unit in parts)
    text = "".join(f"{number}{unit}" for number, unit in parts)
    if seconds == 0:
        assert "longer than nothing" in problems(PROXY_TIMEOUT=text)["PROXY_TIMEOUT"]
    else:
        assert load(MINIMAL | {"PROXY_TIMEOUT": text}).proxy_timeout == pytest.approx(seconds)


@given(st.text(alphabet="0123456789smhxe.+- ", min_size=1, max_size=8).filter(str.strip))
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    if re.fullmatch(r"((\d+(\.\d*)?|\.\d+)(ms|s|m|h))+", text):
        return
    assert 'such as "30s", "5m" or "1h30m"' in problems(PROXY_TIMEOUT=text)["PROXY_TIMEOUT"]


# TCP


def test_an_address_is_read_and_written_alike() -> None:
    for text, host in (("127.0.0.1:8443", "127.0.0.1"), ("[::1]:8443", "::1"), ("localhost:8443", "localhost")):
        listen = load(MINIMAL | TOKEN | {"CAA_API_LISTEN": text}).api_listen
        assert listen == HostPort(host, 8443)
        assert str(listen) == text
    assert load(MINIMAL | {"CAA_API_LISTEN": "off"}).api_listen is None


def test_tcp_wants_a_token_or_client_certificates() -> None:
    assert "CAA_API_TOKEN_FILE or CAA_API_CLIENT_CA_FILE" in problems(CAA_API_LISTEN="127.0.0.1:80")["CAA_API_LISTEN"]


@pytest.mark.parametrize("address", ["0.0.0.0:8443", "[::]:8443", "10.0.0.1:8443", "worker.example:8443"])
def test_a_token_travels_without_tls_only_on_the_loopback(address: str) -> None:
    found = problems(CAA_API_LISTEN=address, **TOKEN)["CAA_API_LISTEN"]
    assert "without TLS" in found
    assert address in found
    assert load(MINIMAL | TOKEN | TLS | {"CAA_API_LISTEN": address}).api_tls


def test_certificate_and_key_go_together() -> None:
    assert list(problems(CAA_API_CERT_FILE="/c")) == ["CAA_API_KEY_FILE"]
    assert list(problems(CAA_API_KEY_FILE="/k")) == ["CAA_API_CERT_FILE"]
    assert list(problems(CAA_API_CLIENT_CA_FILE="/ca")) == ["CAA_API_CERT_FILE"]
    assert load(MINIMAL | TLS | {"CAA_API_CLIENT_CA_FILE": "/ca", "CAA_API_LISTEN": "0.0.0.0:443"})


# The agent link, the ledger, initdata


def test_own_certificates_for_the_agent_link_are_three_or_none() -> None:
    three = {"CACERT_FILE": "/ca", "CERT_FILE": "/c", "CERT_KEY": "/k"}
    assert load(MINIMAL | three).cert_key == "/k"
    for key in three:
        assert list(problems(**{k: v for k, v in three.items() if k != key})) == [key]


def test_cipher_suites_are_for_tls_1_2_only() -> None:
    suites = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    assert len(load(MINIMAL | {"TLS_CIPHER_SUITES": suites}).tls_cipher_suites) == 2
    found = problems(TLS_CIPHER_SUITES=suites, TLS_MIN_VERSION="VersionTLS13")
    assert list(found) == ["TLS_CIPHER_SUITES"]


@pytest.mark.parametrize("url", ["mysql://caa:hunter2@db/x", "hunter2", "postgres+x://caa:hunter2@db/x"])
def test_a_bad_ledger_url_is_named_without_its_password(url: str) -> None:
    found = problems(CAA_LEDGER_URL=url)["CAA_LEDGER_URL"]
    assert "hunter2" not in found
    assert "sqlite:///" in found


def test_a_relative_ledger_file_is_refused() -> None:
    assert "absolute" in problems(CAA_LEDGER_URL="sqlite:///ledger.db")["CAA_LEDGER_URL"]


def test_settings_shown_hold_no_password() -> None:
    settings = load(MINIMAL | {"CAA_LEDGER_URL": "postgresql://caa:hunter2@db/x"})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def test_initdata_is_kept_as_it_came() -> None:
    text = packed('algorithm = "sha256"\nversion = "0.1.0"\n[data]\n')
    assert load(MINIMAL | {"INITDATA": text}).initdata == text


@pytest.mark.parametrize(
    "bad",
    [
        "!",
        "aGVsbG8=",
        packed("not [ toml"),
        packed('x = "1"')[:-12],
        packed("#" + " " * 1_000_000),
        base64.b64encode(gzip.compress(b"\xff", mtime=0)).decode(),
    ],
)
def test_initdata_that_is_not_base64_of_gzip_of_toml_is_refused(bad: str) -> None:
    assert "base64 of gzip of TOML" in problems(INITDATA=bad)["INITDATA"]


def test_the_collectors_url_has_no_user_and_a_refused_one_is_not_shown() -> None:
    found = problems(CAA_TRACES_ENDPOINT="https://user:hidden@collector/v1/traces")["CAA_TRACES_ENDPOINT"]
    assert "OTEL_EXPORTER_OTLP_HEADERS" in found
    assert "hidden" not in found
    for url in ("https://collector/v1/traces", "http://[fd00::1]:4318/v1/traces?token=x", ""):
        settings = load(MINIMAL | {"CAA_TRACES_ENDPOINT": url})
        assert settings.traces_endpoint == url
        assert "collector" not in repr(settings)
