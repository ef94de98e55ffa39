"""The AWS keys, with the incumbent's names and defaults, and a few of our own.

Credentials are found as boto finds them. Both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY come first, then AWS_PROFILE,
then boto's default chain, which covers IRSA (AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE) and the worker's instance
profile. Where the APIs are is boto's AWS_ENDPOINT_URL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, SecretStr

from providers.base import Market
from providers.keys import MARKETS, CsvList, Flag, Keys, Pairs

# Every tag of ours is below this, so that no other tool's tag is taken for one.
TAG_PREFIX = "peerpods.caa/"
# EC2's limits on tags: 50 on a resource, of which Name and ours take 8.
_MOST_TAGS = 42
_LONGEST_TAG_KEY, _LONGEST_TAG_VALUE = 128, 256


def _fit_for_ec2(tags: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    keys = [key for key, _ in tags]
    for key, text in tags:
        if key == "Name" or key.lower().startswith("aws:") or key.startswith(TAG_PREFIX):
            raise ValueError(f"the tag {key!r} is set by the service or by AWS")
        if keys.count(key) > 1:
            raise ValueError(f"the tag {key!r} is given more than once")
        if len(key) > _LONGEST_TAG_KEY or len(text) > _LONGEST_TAG_VALUE:
            raise ValueError(
                f"the tag {key!r} is too long: at most {_LONGEST_TAG_KEY} characters for a key and "
                f"{_LONGEST_TAG_VALUE} for a value"
            )
    if len(tags) > _MOST_TAGS:
        raise ValueError(f"must be at most {_MOST_TAGS} tags")
    return tags


def _each(prefix: str, example: str) -> AfterValidator:
    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.startswith(prefix):
                raise ValueError(f'must be ids such as "{example}", separated by commas')
        return values

    return AfterValidator(check)


Tags = Annotated[Pairs, AfterValidator(_fit_for_ec2)]
_TYPE = r"^[a-z0-9-]+\.[a-z0-9-]+$"


def _types(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        family, dot, size = value.partition(".")
        if not (family and dot and size):
            raise ValueError('must be instance types such as "m6a.large,m6a.xlarge"')
    return values


class AwsKeys(Keys):
    """Everything the AWS provider reads."""

    # The region is where running VMs are; the other decides by which address they are found and reached.
    needs_restart: ClassVar[frozenset[str]] = frozenset({"AWS_REGION", "USE_PUBLIC_IP"})
    of_sdk: ClassVar[Mapping[str, str]] = {
        "AWS_ROLE_ARN": "IAM role to take on, together with AWS_WEB_IDENTITY_TOKEN_FILE.",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "File with the token that AWS_ROLE_ARN is taken on with; read again when used.",
        "AWS_ROLE_SESSION_NAME": "How AWS's audit trail names the session of AWS_ROLE_ARN.",
        "AWS_DEFAULT_REGION": "Region where AWS_REGION is not set.",
        "AWS_ENDPOINT_URL": "Where all AWS APIs are, instead of at AWS.",
        "AWS_ENDPOINT_URL_EC2": "Where the EC2 API is.",
        "AWS_ENDPOINT_URL_STS": "Where the STS API is.",
        "AWS_CONFIG_FILE": "AWS's shared configuration file.",
        "AWS_SHARED_CREDENTIALS_FILE": "AWS's shared credentials file.",
        "AWS_CA_BUNDLE": "CA certificates that the APIs' certificates are checked with, PEM.",
        "AWS_USE_FIPS_ENDPOINT": "true: use the APIs' FIPS addresses.",
        "AWS_USE_DUALSTACK_ENDPOINT": "true: use API addresses that have IPv6, too.",
    }

    access_key_id: SecretStr = Field(
        SecretStr(""), alias="AWS_ACCESS_KEY_ID", description="Static credentials, together with AWS_SECRET_ACCESS_KEY."
    )
    secret_access_key: SecretStr = Field(SecretStr(""), alias="AWS_SECRET_ACCESS_KEY", description="Its secret.")
    session_token: SecretStr = Field(
        SecretStr(""), alias="AWS_SESSION_TOKEN", description="Belongs to static credentials that are temporary."
    )
    profile: str = Field("", alias="AWS_PROFILE", description="A profile of AWS's shared configuration files.")
    region: str = Field(
        "", alias="AWS_REGION", pattern=r"^[a-z0-9-]*$", description="Region of the pod VMs; the worker's if not set."
    )
    ami_id: str = Field(
        "",
        alias="PODVM_AMI_ID",
        pattern=r"^(ami-.*)?$",
        description="Image that pod VMs boot from, such as ami-0123456789abcdef0; without one it is built.",
    )
    instance_type: str = Field(
        "m6a.large",
        alias="PODVM_INSTANCE_TYPE",
        pattern=_TYPE,
        description="Instance type of a pod that asks for none.",
    )
    instance_types: Annotated[CsvList, AfterValidator(_types)] = Field(
        (),
        alias="PODVM_INSTANCE_TYPES",
        description="Instance types that pods may have beside PODVM_INSTANCE_TYPE, separated by commas.",
    )
    market: Literal["on-demand", "spot", "spot-then-on-demand"] = Field(
        "on-demand", alias="PODVM_MARKET", description="How capacity is bought."
    )
    subnet_id: str = Field(
        "",
        alias="AWS_SUBNET_ID",
        pattern=r"^(subnet-.*)?$",
        description="Subnet of the pod VMs; the worker's if neither this nor AWS_SUBNET_IDS is set.",
    )
    subnet_ids: Annotated[CsvList, _each("subnet-", "subnet-0123456789abcdef0")] = Field(
        (), alias="AWS_SUBNET_IDS", description="More subnets, best in other zones, separated by commas."
    )
    security_group_ids: Annotated[CsvList, _each("sg-", "sg-0123456789abcdef0")] = Field(
        (), alias="AWS_SG_IDS", description="Security groups, separated by commas; the worker's if not set."
    )
    key_pair: str = Field(
        "", alias="SSH_KP_NAME", description="Key pair for SSH into pod VMs; the worker's, if it has one, if not set."
    )
    use_public_ip: Flag = Field(
        False, alias="USE_PUBLIC_IP", description="Give pod VMs public addresses and reach them there."
    )
    root_volume_size: int = Field(
        30,
        alias="ROOT_VOLUME_SIZE",
        ge=0,
        le=16384,  # of gp3
        description="Size of the root volume in GiB, never smaller than the image; 0 is the image's own.",
    )
    disable_cvm: Flag = Field(
        False, alias="DISABLECVM", description="false makes confidential VMs (AMD SEV-SNP), true ordinary ones."
    )
    use_launch_template: Flag = Field(
        False,
        alias="USE_PODVM_LAUNCHTEMPLATE",
        description="Take from PODVM_LAUNCHTEMPLATE_NAME whatever the service does not set itself.",
    )
    launch_template: str = Field("kata", alias="PODVM_LAUNCHTEMPLATE_NAME", description="Name of the launch template.")
    iam_instance_profile: str = Field(
        "",
        alias="PODVM_IAM_INSTANCE_PROFILE",
        description="Name or ARN of an instance profile for pod VMs. None unless set: what runs in a pod could use it.",
    )
    tags: Tags = Field((), alias="TAGS", description="More tags for all that is made: key=value, separated by commas.")
    image_upload: Literal["ebs", "s3"] = Field(
        "ebs",
        alias="CAA_AWS_IMAGE_UPLOAD",
        description="How a built image gets to AWS: straight into a snapshot, or by way of BUCKET_NAME and the role "
        "vmimport.",
    )
    bucket: str = Field(
        "", alias="BUCKET_NAME", description="Bucket for CAA_AWS_IMAGE_UPLOAD=s3; what is put there is removed again."
    )
    metadata_endpoint: str = Field(
        "http://169.254.169.254",
        alias="AWS_EC2_METADATA_SERVICE_ENDPOINT",
        pattern=r"^http://",
        description="Where the worker's instance metadata is, as boto has it.",
    )
    metadata_disabled: Flag = Field(
        False, alias="AWS_EC2_METADATA_DISABLED", description="true: never ask the worker's instance metadata."
    )

    @property
    def all_types(self) -> tuple[str, ...]:
        """The default type first, each once."""
        return tuple(dict.fromkeys((self.instance_type, *self.instance_types)))

    @property
    def all_subnets(self) -> tuple[str, ...]:
        """Those that are set, each once."""
        return tuple(dict.fromkeys(subnet for subnet in (self.subnet_id, *self.subnet_ids) if subnet))

    @property
    def markets(self) -> tuple[Market, ...]:
        """The preferred one first."""
        return MARKETS[self.market]


KEYS = AwsKeys
