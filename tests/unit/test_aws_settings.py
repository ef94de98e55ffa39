"""The AWS keys: the incumbent's names and defaults, and refusals that name key and value."""

from __future__ import annotations

import pytest

from providers import registry
from providers.aws.provider import create
from providers.aws.settings import AwsKeys
from providers.base import ConfigError, Market
from providers.keys import read_keys

LEAST = {"PODVM_AMI_ID": "ami-0123456789abcdef0"}


def refusal(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        create(LEAST | environ)
    return str(caught.value)


def test_the_defaults_are_those_of_the_incumbent() -> None:
    keys = read_keys(AwsKeys, LEAST)
    assert keys.instance_type == "m6a.large"
    assert keys.root_volume_size == 30
    assert keys.launch_template == "kata"
    assert (keys.disable_cvm, keys.use_public_ip, keys.use_launch_template) == (False, False, False)
    assert keys.all_types == ("m6a.large",)
    assert keys.all_subnets == ()
    assert keys.markets == (Market.ON_DEMAND,)


def test_an_empty_value_counts_as_unset() -> None:
    keys = read_keys(AwsKeys, LEAST | {"PODVM_INSTANCE_TYPE": "", "AWS_SUBNET_ID": " ", "ROOT_VOLUME_SIZE": ""})
    assert (keys.instance_type, keys.subnet_id, keys.root_volume_size) == ("m6a.large", "", 30)


def test_types_and_subnets_are_listed_once_with_the_default_first() -> None:
    keys = read_keys(
        AwsKeys,
        LEAST
        | {
            "PODVM_INSTANCE_TYPES": "c6a.large, m6a.large,r6a.large",
            "AWS_SUBNET_ID": "subnet-b",
            "AWS_SUBNET_IDS": "subnet-a,subnet-b",
        },
    )
    assert keys.all_types == ("m6a.large", "c6a.large", "r6a.large")
    assert keys.all_subnets == ("subnet-b", "subnet-a")


def test_tags_are_split_at_the_first_equals_sign() -> None:
    keys = read_keys(AwsKeys, LEAST | {"TAGS": "team = blue, formula=a=b,empty="})
    assert keys.tags == (("team", "blue"), ("formula", "a=b"), ("empty", ""))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("TAGS", "team", 'no key or no "="'),
        ("TAGS", "Name=mine", "set by the service"),
        ("TAGS", "aws:x=y", "set by the service"),
        ("TAGS", "peerpods.caa/cluster=other", "set by the service"),
        ("TAGS", "a=1,a=2", "more than once"),
        ("TAGS", ",".join(f"k{n}=v" for n in range(43)), "at most 42"),
        ("TAGS", f"a={'x' * 257}", "too long"),
        ("PODVM_AMI_ID", "podvm", "podvm"),
        ("PODVM_INSTANCE_TYPE", "large", "large"),
        ("PODVM_INSTANCE_TYPES", "m6a.large,m6a", "m6a.xlarge"),
        ("PODVM_MARKET", "cheap", "spot-then-on-demand"),
        ("AWS_SG_IDS", "default", "sg-0123456789abcdef0"),
        ("AWS_SUBNET_ID", "vpc-1", "vpc-1"),
        ("AWS_SUBNET_IDS", "subnet-1,vpc-1", "subnet-0123456789abcdef0"),
        ("ROOT_VOLUME_SIZE", "-1", "-1"),
        ("DISABLECVM", "maybe", "true or false"),
        ("AWS_REGION", "us east", "us east"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "ftp://h", "ftp://h"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(key: str, value: str, says: str) -> None:
    told = refusal(**{key: value})
    assert key in told
    assert says in told


def test_without_an_image_one_is_built() -> None:
    provider = create({})
    assert provider.default_image == ""
    provider.close()


def test_every_bad_key_is_told_at_once() -> None:
    told = refusal(PODVM_MARKET="cheap", ROOT_VOLUME_SIZE="big")
    assert "PODVM_MARKET" in told
    assert "ROOT_VOLUME_SIZE" in told


def test_half_of_the_static_credentials_is_refused_without_showing_it() -> None:
    told = refusal(AWS_ACCESS_KEY_ID="AKIAVERYSECRET")
    assert "AWS_SECRET_ACCESS_KEY: is required" in told
    assert "AKIAVERYSECRET" not in told
    told = refusal(AWS_SECRET_ACCESS_KEY="hush")
    assert "AWS_ACCESS_KEY_ID: is required" in told
    assert "hush" not in told


def test_an_unknown_profile_is_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert "AWS_PROFILE: 'nobody' is not allowed" in refusal(AWS_PROFILE="nobody")


def test_credentials_never_show() -> None:
    keys = read_keys(AwsKeys, LEAST | {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "hush"})
    assert "hush" not in repr(keys)
    assert "AKIA1" not in repr(keys)


def test_the_registry_knows_aws() -> None:
    assert "aws" in registry.names()
    assert registry.load("aws", LEAST).name == "aws"
