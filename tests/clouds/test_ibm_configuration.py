"""What `check` says of a configuration, and where the provider finds what no key says. On the emulated IBM Cloud."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from providers import registry
from providers.base import ConfigError, DeniedError, InvalidRequestError, UnavailableError
from tests.clouds.faultproxy import Fault, Phase
from tests.clouds.ibm.api import PROFILE_ID
from tests.clouds.ibm.emulator import IbmEmulator
from tests.clouds.ibm_lab import SCOPE, TYPE, IbmLab


def found(ibm: IbmLab, **changed: str) -> dict[str, list[str]]:
    """The problems, by key."""
    problems: dict[str, list[str]] = {}
    for problem in ibm.provider(**changed).check():
        problems.setdefault(problem.key, []).append(problem.message)
    return problems


def test_a_right_configuration_has_no_problem_and_looking_makes_nothing(ibm: IbmLab) -> None:
    host, group = ibm.emulator.dedicated(ibm.zones[0])
    hosts = {"IBMCLOUD_DEDICATED_HOST_IDS": host, "IBMCLOUD_DEDICATED_HOST_GROUP_IDS": group}
    assert found(ibm, IBMCLOUD_VPC_ID=ibm.seed.vpc, IBMCLOUD_CLUSTER_ID="c0ffee", **hosts) == {}
    assert not any(name.startswith(("Create", "Delete")) for name in ibm.emulator.counters()["calls"])
    assert ibm.provider().shortages() == []


def test_every_problem_is_told_at_once_by_its_key(ibm: IbmLab) -> None:
    problems = found(
        ibm,
        IBMCLOUD_PODVM_IMAGE_ID="r006-no-image",
        IBMCLOUD_VPC_SUBNET_IDS=f"{ibm.seed.subnets[ibm.zones[0]]},r006-no-subnet",
        IBMCLOUD_SECURITY_GROUP_IDS="r006-no-group",
        IBMCLOUD_SSH_KEY_ID="r006-no-key",
        IBMCLOUD_VPC_ID="r006-no-vpc",
        IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST="bx9-1x1",
        IBMCLOUD_DEDICATED_HOST_IDS="r006-no-host",
        IBMCLOUD_CLUSTER_ID="nobody",
        IBMCLOUD_ZONE="us-south-3",
    )
    assert problems.keys() == {
        *("IBMCLOUD_PODVM_IMAGE_ID", "IBMCLOUD_VPC_SUBNET_ID", "IBMCLOUD_SECURITY_GROUP_IDS", "IBMCLOUD_SSH_KEY_ID"),
        *("IBMCLOUD_VPC_ID", "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST", "IBMCLOUD_DEDICATED_HOST_IDS"),
        *("IBMCLOUD_CLUSTER_ID", "IBMCLOUD_ZONE"),
    }
    for key, value in (
        ("IBMCLOUD_PODVM_IMAGE_ID", "r006-no-image"),
        ("IBMCLOUD_VPC_SUBNET_ID", "r006-no-subnet"),
        ("IBMCLOUD_CLUSTER_ID", "kube-nobody"),
        ("IBMCLOUD_ZONE", "us-south-3"),
    ):
        assert value in problems[key][0]


def test_a_profile_without_an_image_of_its_architecture_is_told_with_both(ibm: IbmLab) -> None:
    (message,) = found(ibm, IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST="bz2-2x8")["IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST"]
    assert "'bz2-2x8' is s390x" in message
    assert f"{ibm.seed.images['x86_64']} is x86_64" in message


def test_without_an_image_one_is_to_be_built_and_a_launch_says_that_there_is_none(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_PODVM_IMAGE_ID="")
    (problem,) = [one for one in provider.check() if one.key == "IBMCLOUD_PODVM_IMAGE_ID"]
    assert problem.image_missing
    with pytest.raises(InvalidRequestError, match="no x86_64 image; it has none"):
        provider.launch(ibm.request())


def test_profiles_that_cannot_be_confidential_are_told(ibm: IbmLab) -> None:
    assert "TDX" in found(ibm, DISABLECVM="false")["IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME"][0]


def test_a_profile_that_does_not_fit_on_the_dedicated_host_is_told(ibm: IbmLab) -> None:
    host, _ = ibm.emulator.dedicated(ibm.zones[2])
    keys = {"IBMCLOUD_VPC_SUBNET_IDS": ibm.seed.subnets[ibm.zones[0]], "IBMCLOUD_DEDICATED_HOST_IDS": host}
    assert ibm.zones[2] in found(ibm, **keys)["IBMCLOUD_DEDICATED_HOST_IDS"][0]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"IBMCLOUD_API_KEY": ""}, "IBMCLOUD_API_KEY"),
        ({"IBMCLOUD_IAM_PROFILE_ID": PROFILE_ID}, "IBMCLOUD_API_KEY"),
        ({"IBMCLOUD_API_KEY": '"quoted"'}, "IBMCLOUD_API_KEY"),
        ({"IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME": ""}, "IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME"),
        ({"IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": "BX2"}, "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST"),
        ({"TAGS": "team=blue"}, "TAGS"),
        ({"IBMCLOUD_VPC_ENDPOINT": "us-south"}, "IBMCLOUD_VPC_ENDPOINT"),
    ],
)
def test_keys_that_cannot_work_are_refused_by_name_and_never_with_a_secret(
    ibm: IbmLab, changed: dict[str, str], key: str
) -> None:
    given = {name: value for name, value in ibm.environ(**changed).items() if value}
    with pytest.raises(ConfigError) as refused:
        registry.load("ibmcloud", given)
    assert [problem.key for problem in refused.value.problems] == [key]
    assert "quoted" not in str(refused.value)


# Credentials


def test_a_key_that_iam_does_not_know_is_told_alone(ibm: IbmLab) -> None:
    problems = found(ibm, IBMCLOUD_API_KEY="unknown-key")
    assert problems.keys() == {"IBMCLOUD_API_KEY"}
    assert "BXNIM0415E" in str(problems) or "could not be found" in str(problems)
    assert "unknown-key" not in str(problems)


def test_a_trusted_profile_is_taken_on_with_the_workers_token_which_is_read_again(ibm: IbmLab, tmp_path: Path) -> None:
    token = tmp_path / "vault-token"
    keys = {
        "IBMCLOUD_API_KEY": "",
        "IBMCLOUD_IAM_PROFILE_ID": PROFILE_ID,
        "IBMCLOUD_CR_TOKEN_FILENAME": str(token),
    }
    provider = ibm.provider(**keys)
    with pytest.raises(DeniedError, match="vault-token"):
        provider.instances(SCOPE)
    token.write_text("of-this-worker")
    assert provider.launch(ibm.request()).id == ibm.one()["id"]
    assert [problem.key for problem in ibm.provider(**keys | {"IBMCLOUD_IAM_PROFILE_ID": "Profile-x"}).check()] == [
        "IBMCLOUD_IAM_PROFILE_ID"
    ]


def test_a_token_that_cannot_be_had_means_that_nothing_was_sent_and_holds_nobody_up(ibm: IbmLab) -> None:
    proxy = ibm.proxy()
    provider = ibm.provider(proxy.url)
    proxy.add(Fault.RESET, Phase.BEFORE, action="Token", times=2)
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no access token"):
            provider.launch(ibm.request())
    provider.launch(ibm.request())
    assert time.monotonic() - begun < 30  # the SDK by itself would wait for a minute
    assert len(ibm.ids()) == 1
    assert ibm.calls("Token") == 1


def test_a_certificate_of_an_unknown_ca_is_told_with_the_key_to_set(
    ibm: IbmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = ibm.provider()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    (problem,) = provider.check()
    assert "certificate" in problem.message.lower()


# The worker's own place


def test_zone_and_subnet_come_from_the_nodes_labels(ibm: IbmLab) -> None:
    subnet = ibm.seed.subnets[ibm.zones[1]]
    labels = {
        "topology.kubernetes.io/region": "us-south",
        "topology.kubernetes.io/zone": ibm.zones[1],
        "ibm-provider.kubernetes.io/subnet-id": subnet,
    }
    provider = ibm.provider(IBMCLOUD_ZONE="", IBMCLOUD_VPC_SUBNET_IDS="", **labels)
    assert provider.account == "ibmcloud/us-south"
    assert {(one.instance_type, one.zone) for one in provider.offerings()} == {(TYPE, ibm.zones[1])}
    assert provider.check() == []


def test_without_labels_they_come_from_the_workers_instance_metadata(ibm: IbmLab) -> None:
    subnet = ibm.seed.subnets[ibm.zones[2]]
    ibm.emulator.worker(zone={"name": ibm.zones[2]}, primary_network_interface={"subnet": {"id": subnet}})
    provider = ibm.provider(IBMCLOUD_ZONE="", IBMCLOUD_VPC_SUBNET_IDS="")
    assert provider.account == "ibmcloud/us-south"
    assert {one.zone for one in provider.offerings()} == {ibm.zones[2]}


def test_without_either_the_key_to_set_is_named(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_ZONE="", IBMCLOUD_VPC_SUBNET_IDS="")
    with pytest.raises(UnavailableError, match="IBMCLOUD_ZONE is not set"):
        _ = provider.account
    with pytest.raises(UnavailableError, match="set IBMCLOUD_VPC_SUBNET_ID"):
        provider.offerings()


@pytest.mark.parametrize("host", ["eu-de.iaas.cloud.ibm.com", "eu-de.private.iaas.cloud.ibm.com"])
def test_the_region_is_in_the_address_of_ibms_own_api(ibm: IbmLab, host: str) -> None:
    provider = ibm.provider(IBMCLOUD_ZONE="", IBMCLOUD_VPC_ENDPOINT=f"https://{host}/v1")
    assert provider.account == "ibmcloud/eu-de"


# User tags of instances


def test_instances_get_user_tags_after_a_list_in_one_call_and_nothing_depends_on_them(ibm: IbmLab) -> None:
    provider = ibm.provider(TAGS="team:blue")
    for _ in range(3):
        provider.launch(ibm.request())
    ibm.emulator.limits({"Tag": (0, 0.0)})
    assert len(provider.instances(SCOPE)) == 3
    provider._tagger.close()
    assert ibm.emulator.counters()["tagged"] == {}
    ibm.emulator.limits({})
    again = ibm.provider(TAGS="team:blue")
    for _ in range(2):
        again.instances(SCOPE)
    again._tagger.close()
    tagged = ibm.emulator.counters()["tagged"]
    assert sorted(tagged) == sorted(one["crn"] for one in ibm.emulator.instances())
    assert set(map(tuple, tagged.values())) == {("coco-pod-vm:prod", "caa-node:worker-1", "team:blue")}
    assert ibm.calls("Tag") == 2


def test_a_resource_group_is_asked_for_and_the_only_one_that_is_looked_at(ibm: IbmLab) -> None:
    group = "a" * 32
    provider = ibm.provider(IBMCLOUD_RESOURCE_GROUP_ID=group)
    provider.launch(ibm.request())
    assert ibm.one()["resource_group"]["id"] == group
    assert len(provider.instances(SCOPE)) == 1
    assert ibm.provider(IBMCLOUD_RESOURCE_GROUP_ID="b" * 32).instances(SCOPE) == []


def test_the_clusters_security_group_is_found_by_its_name(ibm: IbmLab, ibm_emulator: IbmEmulator) -> None:
    provider = ibm.provider(IBMCLOUD_CLUSTER_ID="c0ffee")
    provider.launch(ibm.request())
    (interface,) = ibm_emulator.resources("virtual_network_interfaces")
    assert {one["id"] for one in interface["security_groups"]} == {ibm.seed.security_group, ibm.seed.cluster_group}
