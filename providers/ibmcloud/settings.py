"""The IBM Cloud VPC keys, with the incumbent's names and defaults, and a few of our own.

Exactly one of IBMCLOUD_API_KEY and IBMCLOUD_IAM_PROFILE_ID says who asks. Where region, zone or subnet are not set they
are the worker's own (see `place`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, SecretStr

from providers.keys import CsvList, Flag, Keys

# What IBM Cloud's tagging service takes: 1 to 128 of these.
_TAG = re.compile(r"[A-Za-z0-9:_ .-]{1,128}")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9-]*")


def _tags(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _TAG.fullmatch(value):
            raise ValueError(f'must be a list such as "team:blue,test"; {value!r} is not 1 to 128 of [A-Za-z0-9:_ .-]')
    return values


def _profiles(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not _PROFILE.fullmatch(value):
            raise ValueError('must be instance profiles such as "bx2-2x8,bz2-2x8"')
    return values


class IbmCloudKeys(Keys):
    """Everything the IBM Cloud provider reads."""

    # Where running VMs are, and which are looked at.
    needs_restart: ClassVar[frozenset[str]] = frozenset({"IBMCLOUD_VPC_ENDPOINT", "IBMCLOUD_RESOURCE_GROUP_ID"})
    of_sdk: ClassVar[Mapping[str, str]] = {
        "REQUESTS_CA_BUNDLE": "CA certificates that the APIs' certificates are checked with, PEM.",
    }

    api_key: SecretStr = Field(SecretStr(""), alias="IBMCLOUD_API_KEY", description="API key of a user or service id.")
    iam_profile_id: str = Field(
        "",
        alias="IBMCLOUD_IAM_PROFILE_ID",
        description="Trusted profile to take on instead of an API key, with the worker's compute resource token.",
    )
    cr_token_file: str = Field(
        "/var/run/secrets/tokens/vault-token",
        alias="IBMCLOUD_CR_TOKEN_FILENAME",
        description="File with the compute resource token for IBMCLOUD_IAM_PROFILE_ID; read again when used.",
    )
    iam_endpoint: str = Field(
        "https://iam.cloud.ibm.com/identity/token",
        alias="IBMCLOUD_IAM_ENDPOINT",
        pattern=r"^https?://",
        description="Where access tokens are asked for.",
    )
    vpc_endpoint: str = Field(
        "",
        alias="IBMCLOUD_VPC_ENDPOINT",
        pattern=r"^(https?://.*)?$",
        description="Where the VPC API is; https://REGION.iaas.cloud.ibm.com/v1 if not set.",
    )
    tagging_endpoint: str = Field(
        "https://tags.global-search-tagging.cloud.ibm.com",
        alias="IBMCLOUD_TAGGING_ENDPOINT",
        pattern=r"^https?://",
        description="Where the tagging API is.",
    )
    metadata_endpoint: str = Field(
        "http://169.254.169.254",
        alias="IBMCLOUD_METADATA_ENDPOINT",
        pattern=r"^http://",
        description="Where the worker's instance metadata is.",
    )
    resource_group_id: str = Field(
        "",
        alias="IBMCLOUD_RESOURCE_GROUP_ID",
        description="Resource group of all that is made, and the only one looked at; the account's default if not set.",
    )
    profile: str = Field(
        "",
        alias="IBMCLOUD_PODVM_INSTANCE_PROFILE_NAME",
        pattern=r"^[a-z0-9-]*$",
        description="Instance profile of a pod that asks for none; the first of the list if not set.",
    )
    profiles: Annotated[CsvList, AfterValidator(_profiles)] = Field(
        (),
        alias="IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST",
        description="Instance profiles that pods may have beside the default, separated by commas.",
    )
    image_ids: CsvList = Field(
        (),
        alias="IBMCLOUD_PODVM_IMAGE_ID",
        description="Images that pod VMs boot from, separated by commas; of each architecture the first is used. "
        "Without one it is built.",
    )
    cos_bucket: str = Field(
        "",
        alias="IBMCLOUD_COS_BUCKET",
        pattern=r"^[a-z0-9.-]*$",
        description="Bucket of object storage that a built image is imported from; the VPC image service must be "
        "authorized to read it.",
    )
    cos_endpoint: str = Field(
        "",
        alias="IBMCLOUD_COS_ENDPOINT",
        pattern=r"^(https?://.*)?$",
        description="Where the bucket is; https://s3.REGION.cloud-object-storage.appdomain.cloud if not set.",
    )
    zone: str = Field(
        "",
        alias="IBMCLOUD_ZONE",
        pattern=r"^[a-z0-9-]*$",
        description="Zone of the pod VMs, such as us-south-1; the worker's if not set.",
    )
    subnet_id: str = Field(
        "",
        alias="IBMCLOUD_VPC_SUBNET_ID",
        description="Subnet of the pod VMs; the worker's if neither this nor IBMCLOUD_VPC_SUBNET_IDS is set.",
    )
    subnet_ids: CsvList = Field(
        (), alias="IBMCLOUD_VPC_SUBNET_IDS", description="More subnets, best in other zones, separated by commas."
    )
    vpc_id: str = Field("", alias="IBMCLOUD_VPC_ID", description="VPC of the pod VMs; the subnet's if not set.")
    ssh_key_id: str = Field("", alias="IBMCLOUD_SSH_KEY_ID", description="Key for SSH into pod VMs.")
    cluster_id: str = Field(
        "",
        alias="IBMCLOUD_CLUSTER_ID",
        description="Id of an IBM Cloud Kubernetes cluster, whose security group kube-ID pod VMs get as well.",
    )
    security_group_ids: CsvList = Field(
        (),
        alias="IBMCLOUD_SECURITY_GROUP_IDS",
        description="Security groups, separated by commas; the VPC's default one if there is none.",
    )
    dedicated_host_ids: CsvList = Field(
        (),
        alias="IBMCLOUD_DEDICATED_HOST_IDS",
        description="Dedicated hosts, separated by commas; in each zone the first of it is used.",
    )
    dedicated_host_group_ids: CsvList = Field(
        (),
        alias="IBMCLOUD_DEDICATED_HOST_GROUP_IDS",
        description="Dedicated host groups, separated by commas; used where there is no host, or when it is full.",
    )
    disable_cvm: Flag = Field(
        True,
        alias="DISABLECVM",
        description="false makes confidential VMs (Intel TDX, on s390x Secure Execution), true ordinary ones.",
    )
    tags: Annotated[CsvList, AfterValidator(_tags)] = Field(
        (), alias="TAGS", description="More user tags for pod VMs and their volumes, separated by commas."
    )

    @property
    def default_profile(self) -> str:
        """Of a pod that asks for none; "" when none is configured at all."""
        return next(iter(self.all_profiles), "")

    @property
    def all_profiles(self) -> tuple[str, ...]:
        """The default one first, each once."""
        return tuple(dict.fromkeys(name for name in (self.profile, *self.profiles) if name))

    @property
    def all_subnets(self) -> tuple[str, ...]:
        """Those that are set, each once."""
        return tuple(dict.fromkeys(subnet for subnet in (self.subnet_id, *self.subnet_ids) if subnet))


KEYS = IbmCloudKeys
