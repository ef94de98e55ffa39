"""EC2's error codes, and boto's own errors, as the contract's errors: one table."""

from __future__ import annotations

from collections.abc import Mapping

from botocore import exceptions as boto  # type: ignore[import-untyped]

from providers.base import (
    CapacityError,
    DeniedError,
    InvalidRequestError,
    MissingError,
    ProviderError,
    QuotaError,
    Scope,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.meanings import LONGEST_QUOTE, About, Meaning, error_of


def _full(scope: Scope, sentence: str) -> Meaning:
    return Meaning(CapacityError, sentence, scope=scope)


_NONE_LEFT = _full(Scope.OFFERING, "AWS has no {type} left in {zone} ({market})")
_NOT_HERE = _full(Scope.OFFERING, "AWS does not offer {type} as asked for in {zone} ({market})")
_SPOT_PRICE = _full(Scope.OFFERING, "the spot price of {type} in {zone} is above the limit")
_NO_ADDRESS = _full(Scope.ZONE, "the subnet {subnet} in {zone} (AWS_SUBNET_ID) has no free address left")
_NO_STORAGE = _full(Scope.ZONE, "AWS has no room for another volume in {zone}")
_SPOT_COUNT = Meaning(
    QuotaError, "the account may have no more spot instances in this region; ask AWS to raise it", scope=Scope.MARKET
)
_VCPUS = Meaning(
    QuotaError,
    "the account's vCPU quota does not allow another {type} ({market}); ask AWS to raise it",
    scope=Scope.TYPE,
)
_QUOTA = Meaning(
    QuotaError, "a quota of the account does not allow this instance; ask AWS to raise it", scope=Scope.TYPE
)
_THROTTLED = Meaning(ThrottledError, "AWS takes fewer calls than it was sent", reason="Throttled")
_CREDENTIALS = Meaning(
    DeniedError,
    "AWS does not accept the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role)",
)
_RIGHT = Meaning(DeniedError, "the credentials lack the right to call {operation}", reason="AccessDenied")
_ACCOUNT = Meaning(DeniedError, "AWS does not let this account launch instances now")
_IMAGE = Meaning(InvalidRequestError, "PODVM_AMI_ID={image} is no image that can be used in {region}", "ImageMissing")
_SUBNET = Meaning(InvalidRequestError, "AWS_SUBNET_ID={subnet} is no subnet in {region}", "SubnetMissing")
_GROUP = Meaning(
    InvalidRequestError, "AWS_SG_IDS={groups} are not all security groups of the subnet's VPC", "GroupMissing"
)
_KEY_PAIR = Meaning(InvalidRequestError, "SSH_KP_NAME={key_pair} is no key pair in {region}", "KeyPairMissing")
_TEMPLATE = Meaning(
    InvalidRequestError,
    "PODVM_LAUNCHTEMPLATE_NAME={template} is no launch template in {region}",
    "LaunchTemplateMissing",
)
_TYPE = Meaning(
    InvalidRequestError,
    "{type} (PODVM_INSTANCE_TYPE, PODVM_INSTANCE_TYPES) is no instance type in {region}",
    "InstanceTypeUnknown",
)
_PROFILE = Meaning(
    InvalidRequestError, "PODVM_IAM_INSTANCE_PROFILE={profile} is no instance profile", "InstanceProfileMissing"
)
_VOLUME = Meaning(InvalidRequestError, "EC2 refuses the root volume (ROOT_VOLUME_SIZE={volume_size})", "VolumeRefused")
_COMBINATION = Meaning(InvalidRequestError, "EC2 refuses {operation} as it was asked for")

_TABLE: dict[str, Meaning] = {
    "InsufficientInstanceCapacity": _NONE_LEFT,
    "InsufficientHostCapacity": _NONE_LEFT,
    "InsufficientReservedInstanceCapacity": _NONE_LEFT,
    "InsufficientCapacity": _NONE_LEFT,
    "UnfulfillableCapacity": _NONE_LEFT,
    "ReservationCapacityExceeded": _NONE_LEFT,
    "Unsupported": _NOT_HERE,
    "SpotMaxPriceTooLow": _SPOT_PRICE,
    "MaxSpotInstanceCountExceeded": _SPOT_COUNT,
    "InsufficientFreeAddressesInSubnet": _NO_ADDRESS,
    "InsufficientVolumeCapacity": _NO_STORAGE,
    "VcpuLimitExceeded": _VCPUS,
    "InstanceLimitExceeded": _QUOTA,
    "VolumeLimitExceeded": _QUOTA,
    "MaxIOPSLimitExceeded": _QUOTA,
    "NetworkInterfaceLimitExceeded": _QUOTA,
    "AddressLimitExceeded": _QUOTA,
    "ResourceCountExceeded": _QUOTA,
    "ResourceLimitExceeded": _QUOTA,
    "RequestLimitExceeded": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "ThrottledException": _THROTTLED,
    "RequestThrottled": _THROTTLED,
    "RequestThrottledException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "EC2ThrottledException": _THROTTLED,
    "UnauthorizedOperation": _RIGHT,
    "AccessDenied": _RIGHT,
    "AccessDeniedException": _RIGHT,
    "AuthFailure": _CREDENTIALS,
    "InvalidClientTokenId": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "IncompleteSignature": _CREDENTIALS,
    "MissingAuthenticationToken": _CREDENTIALS,
    "ExpiredToken": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
    "InvalidIdentityToken": _CREDENTIALS,
    "IDPRejectedClaim": _CREDENTIALS,
    "RequestExpired": Meaning(
        DeniedError, "AWS takes the request for an old one; the clock of this machine may be wrong"
    ),
    "OptInRequired": _ACCOUNT,
    "Blocked": _ACCOUNT,
    "PendingVerification": _ACCOUNT,
    "InvalidAMIID.NotFound": _IMAGE,
    "InvalidAMIID.Malformed": _IMAGE,
    "InvalidAMIID.Unavailable": _IMAGE,
    "InvalidSubnetID.NotFound": _SUBNET,
    "InvalidSubnetID.Malformed": _SUBNET,
    "InvalidSubnet": _SUBNET,
    "InvalidGroup.NotFound": _GROUP,
    "InvalidGroupId.Malformed": _GROUP,
    "InvalidSecurityGroupID.NotFound": _GROUP,
    "InvalidSecurityGroupID.Malformed": _GROUP,
    "InvalidKeyPair.NotFound": _KEY_PAIR,
    "InvalidLaunchTemplateName.NotFoundException": _TEMPLATE,
    "InvalidLaunchTemplateName.MalformedException": _TEMPLATE,
    "InvalidLaunchTemplateId.NotFound": _TEMPLATE,
    "InvalidInstanceType": _TYPE,
    "InvalidInstanceType.NotFound": _TYPE,
    "InvalidIamInstanceProfile.NotFound": _PROFILE,
    "InvalidIamInstanceProfileArn.Malformed": _PROFILE,
    "InvalidBlockDeviceMapping": _VOLUME,
    "NoSuchBucket": Meaning(InvalidRequestError, "BUCKET_NAME={bucket} is no bucket", "BucketMissing"),
    "InvalidParameterCombination": _COMBINATION,
    "UnsupportedOperation": _COMBINATION,
    "IdempotentParameterMismatch": Meaning(
        InvalidRequestError, "an earlier call with the same token asked EC2 for something else"
    ),
    "IdempotentInstanceTerminated": Meaning(
        InvalidRequestError, "the instance that an earlier call of this launch made was terminated"
    ),
    "InvalidInstanceID.NotFound": Meaning(
        MissingError, "there is no instance {instance} in {region}", "InstanceMissing"
    ),
    "InvalidInstanceID.Malformed": Meaning(MissingError, "{instance} is no instance id of EC2", "InstanceMissing"),
    "OperationNotPermitted": Meaning(InvalidRequestError, "the instance is protected against {operation}"),
}

# boto's own errors that come before anything of the call was sent. Each with its subclasses.
_NEVER_SENT = (
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.MetadataRetrievalError,
    boto.CredentialRetrievalError,
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
)


def code_of(error: Exception) -> str:
    """EC2's code in an error of boto, "" if it has none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def translate(error: Exception, *, changes: bool, about: Mapping[str, str]) -> ProviderError:
    """The contract's error for a call that failed. `changes`: whether the call may have changed something.

    A refusal (status 4xx, or a code of the table whatever its status) says that nothing was done. What is neither
    leaves the outcome of a change unknown.
    """
    values = About(about)
    if isinstance(error, boto.ClientError):
        # Getting credentials is a call of its own inside this one, and its refusal another right's.
        values["operation"] = error.operation_name
        answered = _answered(error, changes=changes, values=values)
        answered.request_id = str(error.response.get("ResponseMetadata", {}).get("RequestId", ""))
        return answered
    said = f"{type(error).__name__}: {str(error)[:LONGEST_QUOTE]}"
    if isinstance(error, _NO_CREDENTIALS):
        return DeniedError("NoCredentials", f"{_CREDENTIALS.sentence}: {said}")
    if isinstance(error, boto.ParamValidationError):
        # The text would quote parameters, of which the user data is one.
        return InvalidRequestError("InvalidParameter", f"{values['operation']} was given what EC2's API does not have")
    if isinstance(error, _NEVER_SENT) or not changes:
        return UnavailableError("Unreachable", f"{values['operation']} did not reach AWS, or was not answered ({said})")
    return UnknownOutcomeError("NoAnswer", f"{values['operation']} was sent, and no answer came ({said})")


def _answered(error: boto.ClientError, *, changes: bool, values: About) -> ProviderError:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # Refusals of a right carry an encoded explanation, which says nothing to people.
    quote = str(error.response.get("Error", {}).get("Message", "")).split(" Encoded authorization failure")[0]
    quoted = f"(AWS: {code}, {quote[:LONGEST_QUOTE]})"
    meaning = _TABLE.get(code)
    if meaning is None:
        if 400 <= status < 500:
            meaning = _COMBINATION
        elif changes:
            return UnknownOutcomeError("ServerError", f"{values['operation']} failed inside AWS {quoted}")
        else:
            return UnavailableError("ServerError", f"{values['operation']} failed inside AWS {quoted}")
    reason = meaning.reason or code.replace(".", "")
    return error_of(meaning, reason, f"{meaning.sentence.format_map(values)} {quoted}", _retry_after(error))


def _retry_after(error: boto.ClientError) -> float | None:
    told = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return float(told) if str(told).isdigit() else None
