"""Images and profiles of two architectures on the emulated IBM Cloud: which go together, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from caa.sizing import IMAGE, MACHINE_TYPE, MEMORY, VCPUS, NoOfferingError, Policy, rank, requirements
from providers.base import InvalidRequestError, Offering
from providers.ibmcloud.provider import IbmCloudProvider
from tests.clouds.ibm_lab import TYPE, IbmLab

PROFILES = "bx2-4x16,bz2-2x8,bz2-4x16,mz2-2x16,bz2e-2x8"


def mixed(ibm: IbmLab, **changed: str) -> IbmCloudProvider:
    images = f"{ibm.seed.images['x86_64']},{ibm.seed.images['s390x']}"
    keys = {"IBMCLOUD_PODVM_IMAGE_ID": images, "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": PROFILES, **changed}
    return ibm.provider(**keys)


def chosen(provider: IbmCloudProvider, annotations: Mapping[str, str], allowed: tuple[str, ...] = ()) -> Offering:
    """The offering that the service would ask for first."""
    policy = Policy(provider.default_type, provider.default_image, images=allowed)
    wanted = requirements(annotations)
    arch = provider.image_arch(policy.image(wanted))
    return rank(wanted, provider.offerings(), policy, arch)[0]


def launched_with(ibm: IbmLab, provider: IbmCloudProvider, offering: Offering, image: str = "") -> tuple[str, str]:
    """Profile and image of the instance that comes of it."""
    provider.launch(ibm.request(offering=offering, image=image))
    made = ibm.emulator.instances()[-1]
    return made["profile"]["name"], made["image"]["id"]


@pytest.mark.parametrize("profile", ["bz2-2x8", "mz2-2x16"])
def test_an_s390x_profile_gets_the_s390x_image_of_a_mixed_list(ibm: IbmLab, profile: str) -> None:
    provider = mixed(ibm)
    offering = chosen(provider, {MACHINE_TYPE: profile})
    assert offering.arch == "s390x"
    assert launched_with(ibm, provider, offering) == (profile, ibm.seed.images["s390x"])


def test_a_pod_that_names_no_profile_runs_on_the_architecture_of_the_default_one(ibm: IbmLab) -> None:
    provider = mixed(ibm)
    assert launched_with(ibm, provider, chosen(provider, {})) == (TYPE, ibm.seed.images["x86_64"])
    assert chosen(provider, {VCPUS: "4", MEMORY: "9000"}).instance_type == "bx2-4x16"
    on_z = mixed(ibm, IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME="bz2-2x8")
    assert launched_with(ibm, on_z, chosen(on_z, {})) == ("bz2-2x8", ibm.seed.images["s390x"])
    assert chosen(on_z, {VCPUS: "4", MEMORY: "9000"}).instance_type == "bz2-4x16"


def test_a_pod_that_names_the_s390x_image_gets_a_profile_that_runs_it(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST=PROFILES)
    image = ibm.seed.images["s390x"]
    offering = chosen(provider, {IMAGE: image, VCPUS: "2", MEMORY: "8192"}, allowed=(image,))
    assert launched_with(ibm, provider, offering, image)[1] == image
    assert offering.arch == "s390x"


def test_an_s390x_profile_and_an_amd64_image_are_refused_in_words_before_any_call(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST=PROFILES)
    with pytest.raises(NoOfferingError, match=r'"bz2-2x8"\) is s390x, and the image is x86_64'):
        chosen(provider, {MACHINE_TYPE: "bz2-2x8"})
    image = ibm.seed.images["x86_64"]
    with pytest.raises(InvalidRequestError) as refused:
        provider.launch(ibm.request(profile="bz2-2x8", image=image))
    assert refused.value.reason == "ArchitectureMismatch"
    assert str(refused.value) == f"the profile bz2-2x8 is s390x, and the image {image} is x86_64"
    with pytest.raises(InvalidRequestError, match=f"has no s390x image; it has {image}"):
        provider.launch(ibm.request(profile="bz2-2x8"))
    assert ibm.calls("CreateInstance") == 0


def test_a_secure_execution_image_needs_a_profile_with_secure_execution(ibm: IbmLab) -> None:
    secure = ibm.seed.images["secure"]
    keys = {"IBMCLOUD_PODVM_IMAGE_ID": secure, "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": "bz2-2x8,bz2e-2x8,mz2e-2x16"}
    provider = ibm.provider(IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME="bz2e-2x8", DISABLECVM="false", **keys)
    usable = {one.instance_type for one in provider.offerings() if not one.unusable}
    assert usable == {"bz2e-2x8", "mz2e-2x16"}
    assert launched_with(ibm, provider, chosen(provider, {})) == ("bz2e-2x8", secure)
    with pytest.raises(InvalidRequestError, match=rf"{secure} \(hyper-protect-1-0-s390x\) boots with Secure Execution"):
        provider.launch(ibm.request(profile="bz2-2x8"))


def test_confidential_vms_of_amd64_are_tdx_with_secure_boot_and_other_profiles_are_told_with_the_reason(
    ibm: IbmLab,
) -> None:
    keys = {"IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": "bx3dc-2x10,bz2-2x8,bz2e-2x8"}
    provider = mixed(ibm, DISABLECVM="false", **keys)
    reasons = {one.instance_type: one.unusable for one in provider.offerings()}
    assert reasons["bx3dc-2x10"] == reasons["bz2e-2x8"] == ""
    assert "TDX" in reasons[TYPE]
    assert "Secure Execution" in reasons["bz2-2x8"]
    launched_with(ibm, provider, chosen(provider, {MACHINE_TYPE: "bx3dc-2x10"}))
    made = ibm.one()
    assert (made["confidential_compute_mode"], made["enable_secure_boot"]) == ("tdx", True)


def test_ordinary_vms_say_so_where_a_profile_could_do_otherwise(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST="bx3dc-2x10")
    launched_with(ibm, provider, chosen(provider, {MACHINE_TYPE: "bx3dc-2x10"}))
    made = ibm.one()
    assert (made["confidential_compute_mode"], made["enable_secure_boot"]) == ("disabled", False)


def test_offerings_are_profiles_by_zone_with_their_gpus(ibm: IbmLab) -> None:
    provider = ibm.provider(IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST="gx3-32x160x2l4")
    ibm.emulator.page_size(4)
    found = {(one.instance_type, one.zone): one for one in provider.offerings()}
    assert found.keys() == {(name, zone) for name in (TYPE, "gx3-32x160x2l4") for zone in ibm.zones}
    gpu = found["gx3-32x160x2l4", ibm.zones[0]]
    assert (gpu.vcpus, gpu.memory_mib, gpu.gpus, gpu.gpu_model, gpu.arch) == (32, 160 * 1024, 2, "L4", "x86_64")
