"""Every key: that it is documented, that the incumbent's are there, and which misspelt one was meant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.configdocs import markdown
from caa.configuring import known_names
from caa.knownkeys import WITHOUT_USE, every_key, keys_of, suspects
from caa.sources import Source
from providers import registry

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def words(text: str) -> set[str]:
    """The names in a block of them."""
    return set(text.split())


# The incumbent's keys for all clouds, with those of its entry point and its image building that are the service's.
COMMON = words("""
    CLOUD_PROVIDER REMOTE_HYPERVISOR_ENDPOINT PODS_DIR PAUSE_IMAGE FORWARDER_PORT CACERT_FILE CERT_FILE CERT_KEY
    TLS_SKIP_VERIFY TLS_MIN_VERSION TLS_CIPHER_SUITES PROXY_TIMEOUT TUNNEL_TYPE VXLAN_PORT INITDATA CLOUD_CONFIG_VERIFY
    PEERPODS_LIMIT_PER_NODE ENABLE_SCRATCH_SPACE EXTERNAL_NETWORK_VIA_PODVM POD_SUBNET_CIDRS NODE_NAME
    PODVM_IMAGE_URI PODVM_DISTRO BOOT_FIPS
    CRI_RUNTIME_ENDPOINT ENABLE_CLOUD_PROVIDER_EXTERNAL_PLUGIN CLOUD_PROVIDER_EXTERNAL_PLUGIN_PATH
    CLOUD_PROVIDER_EXTERNAL_PLUGIN_HASH
""")
CLOUDS = {
    "aws": words("""
        AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_ROLE_ARN AWS_WEB_IDENTITY_TOKEN_FILE AWS_REGION
        PODVM_AMI_ID PODVM_INSTANCE_TYPE PODVM_INSTANCE_TYPES AWS_SUBNET_ID AWS_SG_IDS SSH_KP_NAME USE_PUBLIC_IP
        ROOT_VOLUME_SIZE DISABLECVM USE_PODVM_LAUNCHTEMPLATE PODVM_LAUNCHTEMPLATE_NAME TAGS
    """),
    "libvirt": words("""
        LIBVIRT_URI LIBVIRT_POOL LIBVIRT_NET LIBVIRT_VOL_NAME LIBVIRT_LAUNCH_SECURITY LIBVIRT_EFI_FIRMWARE LIBVIRT_CPU
        LIBVIRT_MEMORY LIBVIRT_CPUSET LIBVIRT_ROOT_DISK_SIZE DISABLECVM
    """),
    "azure": words("""
        AZURE_CLIENT_ID AZURE_CLIENT_SECRET AZURE_TENANT_ID AZURE_SUBSCRIPTION_ID AZURE_REGION AZURE_RESOURCE_GROUP
        AZURE_SUBNET_ID AZURE_NSG_ID AZURE_IMAGE_ID AZURE_INSTANCE_SIZE AZURE_INSTANCE_SIZES SSH_USERNAME DISABLECVM
        ENABLE_SECURE_BOOT USE_PUBLIC_IP ROOT_VOLUME_SIZE TAGS
    """),
    "ibmcloud": words("""
        IBMCLOUD_API_KEY IBMCLOUD_IAM_PROFILE_ID IBMCLOUD_IAM_ENDPOINT IBMCLOUD_VPC_ENDPOINT IBMCLOUD_RESOURCE_GROUP_ID
        IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST IBMCLOUD_PODVM_IMAGE_ID IBMCLOUD_ZONE
        IBMCLOUD_VPC_SUBNET_ID IBMCLOUD_VPC_ID IBMCLOUD_SSH_KEY_ID IBMCLOUD_CLUSTER_ID IBMCLOUD_SECURITY_GROUP_IDS
        IBMCLOUD_DEDICATED_HOST_IDS IBMCLOUD_DEDICATED_HOST_GROUP_IDS DISABLECVM TAGS
    """),
}


def documented() -> dict[str, set[str]]:
    """Names in the tables of the written file, by the cloud in the heading ("" for all)."""
    found: dict[str, set[str]] = {}
    for part in DOCS.read_text().split("\n## ")[1:]:
        heading = part.splitlines()[0]
        cloud = match[1] if (match := re.search(r"CLOUD_PROVIDER=([\w-]+)", heading)) else heading
        found[cloud] = set(re.findall(r"^(?:\| |- )`([A-Z0-9_]+)`", part, re.MULTILINE))
    return found


# What is documented


def test_the_written_file_is_what_the_code_says_now() -> None:
    assert DOCS.read_text() == markdown(), "write it anew: caa config docs > docs/configuration.md"


def test_the_command_prints_that_file() -> None:
    command = [sys.executable, "-m", "caa.cli.main", "config", "docs"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == DOCS.read_text()


def test_every_key_of_the_incumbent_that_concerns_all_clouds_is_documented() -> None:
    found = documented()
    without_use = found["Keys of the incumbent without a use"]
    assert found["All clouds"] | without_use >= COMMON
    assert without_use == set(WITHOUT_USE)
    assert not found["All clouds"] & without_use


def test_every_cloud_is_documented_with_the_incumbents_keys() -> None:
    assert CLOUDS.keys() == set(registry.names())
    found = documented()
    for cloud in registry.names():
        assert CLOUDS[cloud] <= found[cloud], cloud


def test_every_key_has_a_name_a_sentence_and_something_allowed() -> None:
    for key in every_key():
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", key.name)
        assert key.description.endswith("."), key.name
        assert key.allowed, key.name


def test_defaults_and_ranges_are_those_of_the_code() -> None:
    keys = {key.name: key for key in keys_of("aws")}
    assert (keys["PROXY_TIMEOUT"].default, keys["PROXY_TIMEOUT"].allowed) == ("5m", "duration")
    assert (keys["ROOT_VOLUME_SIZE"].default, keys["ROOT_VOLUME_SIZE"].allowed) == ("30", "0 to 16384")
    assert (keys["DISABLECVM"].default, keys["DISABLECVM"].allowed) == ("false", "true, false")
    assert keys["PODVM_AMI_ID"].default == ""
    assert keys["CLOUD_PROVIDER"].default is None
    assert keys["CAA_API_LISTEN"].allowed == "host:port"
    assert keys["NODE_NAME"].default == ""  # of the machine that the file is written on, it would be


def test_what_a_start_takes_applies_at_once_and_what_the_process_stands_on_needs_a_restart() -> None:
    live = {key.name for key in keys_of("aws") if key.live}
    assert live >= {
        *("PODVM_AMI_ID", "PODVM_INSTANCE_TYPE", "PODVM_INSTANCE_TYPES", "TAGS", "PEERPODS_LIMIT_PER_NODE"),
        *("PROXY_TIMEOUT", "INITDATA", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SUBNET_ID", "AWS_SG_IDS"),
    }
    assert not live & {
        *("CLOUD_PROVIDER", "CAA_CLUSTER_ID", "NODE_NAME", "CAA_STATE_DIR", "CAA_RUN_DIR", "CAA_LEDGER_URL"),
        *("CAA_API_SOCKET", "CAA_API_LISTEN", "REMOTE_HYPERVISOR_ENDPOINT", "PODS_DIR", "AWS_REGION", "CACERT_FILE"),
        *("CAA_CONFIG_DIR", "CAA_SECRET_DIR", "VXLAN_PORT", "FORWARDER_PORT", "AWS_ENDPOINT_URL"),
    }


def test_keys_that_may_hold_secrets_are_known() -> None:
    secret = {key.name for key in every_key() if key.secret}
    assert secret == {
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("CAA_LEDGER_URL", "INITDATA", "LIBVIRT_URI", "IBMCLOUD_API_KEY", "AZURE_CLIENT_SECRET"),
        "CAA_TRACES_ENDPOINT",
    }


# What was meant


def meant(*names: str) -> dict[str, str]:
    given = dict.fromkeys(names, Source.CONFIG_MAP)
    return {suspect.name: suspect.meant for suspect in suspects(given, known_names())}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("PODVM_INSTANCE_TYPS", "PODVM_INSTANCE_TYPES"),
        ("PODVM_INSTANSE_TYPE", "PODVM_INSTANCE_TYPE"),
        ("AWS_SUBNETS_ID", "AWS_SUBNET_ID"),
        ("AWS_SECURITY_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
        ("LIBVIRT_VOLNAME", "LIBVIRT_VOL_NAME"),
        ("PROXYTIMEOUT", "PROXY_TIMEOUT"),
        ("proxy-timeout", "PROXY_TIMEOUT"),
        ("DISABLE_CVM", "DISABLECVM"),
        ("PEERPODS_LIMIT_PERNODE", "PEERPODS_LIMIT_PER_NODE"),
        ("CAA_STATEDIR", "CAA_STATE_DIR"),
        ("CAA_COLOUR", ""),
    ],
)
def test_a_near_miss_is_told_with_the_key_that_was_meant(name: str, key: str) -> None:
    assert meant(name) == {name: key}


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_VPC_ID", "AWS_MAX_ATTEMPTS", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_NAME", "AWS_RETRY_MODE"),
        *("LIBVIRT_DEBUG", "LIBVIRT_DEFAULT_URI", "LIBVIRT_LOG_OUTPUTS", "LIBVIRT_DIR_NAME", "LIBVIRT_IMAGE_ID"),
        *("INSTANCE_TYPE", "SUBNET_ID", "VPC_ID", "BOOT_FIPS", "IMAGE_NAME", "DEBUG", "LATEST_AMI_ID"),
        *("PATH", "HOME", "HOSTNAME", "POD_UID", "POD_NAMESPACE", "SSL_CERT_FILE", "SSL_CERT_DIR", "TERM", "TZ"),
        *("KUBERNETES_SERVICE_HOST", "KUBERNETES_PORT_443_TCP", "HTTPS_PROXY", "NO_PROXY", "PYTHONWARNINGS"),
    ],
)
def test_keys_of_others_are_left_alone(name: str) -> None:
    assert meant(name) == {}


def test_what_kubernetes_sets_for_a_service_named_like_us_is_left_alone() -> None:
    names = ["CAA_SERVICE_HOST", "CAA_SERVICE_PORT", "CAA_SERVICE_PORT_HTTPS", "CAA_PORT", "CAA_PORT_443_TCP_ADDR"]
    assert suspects(dict.fromkeys(names, Source.ENVIRONMENT), known_names()) == []
    assert len(suspects(dict.fromkeys(names, Source.CONFIG_MAP), known_names())) == len(names)


def test_no_known_key_is_suspect_whichever_cloud_it_is_of() -> None:
    assert meant(*known_names(), *WITHOUT_USE) == {}


@given(st.sampled_from(sorted(known_names())), st.data())
def test_a_letter_left_out_of_a_longer_key_is_seen(key: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(key) - 1))
    name = key[:at] + key[at + 1 :]
    if len(key) >= 8 and name not in known_names() | WITHOUT_USE.keys():
        assert name in meant(name)


def test_the_sentence_names_key_source_and_what_was_meant() -> None:
    (suspect,) = suspects({"TAGZ_": Source.SECRET, "CAA_LOG_LEVL": Source.ENVIRONMENT}, known_names())
    assert str(suspect) == (
        "CAA_LOG_LEVL (environment) is no key of this service and has no effect; did you mean CAA_LOG_LEVEL?"
    )
