"""EC2's codes and boto's errors in the contract's words."""

from __future__ import annotations

import pytest
from botocore import exceptions as boto  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from providers.aws.errors import _TABLE, code_of, translate
from providers.base import (
    CapacityError,
    DeniedError,
    InvalidRequestError,
    OfferingRefusedError,
    ProviderError,
    QuotaError,
    Scope,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)
from providers.meanings import About

ABOUT = {
    "operation": "RunInstances",
    "type": "m6a.large",
    "zone": "us-east-1a",
    "market": "spot",
    "region": "us-east-1",
    "image": "ami-1",
    "groups": "sg-1",
}


def answer(code: str, status: int, message: str = "AWS says so", **headers: str) -> Exception:
    made: Exception = boto.ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        },
        "RunInstances",
    )
    return made


def told(error: Exception, *, changes: bool = True) -> ProviderError:
    return translate(error, changes=changes, about=ABOUT)


@pytest.mark.parametrize(
    ("code", "status", "kind", "reason"),
    [
        # Capacity comes with status 500, which must not make a refusal an unknown outcome.
        ("InsufficientInstanceCapacity", 500, CapacityError, "InsufficientInstanceCapacity"),
        ("InsufficientHostCapacity", 500, CapacityError, "InsufficientHostCapacity"),
        ("UnfulfillableCapacity", 500, CapacityError, "UnfulfillableCapacity"),
        ("Unsupported", 400, CapacityError, "Unsupported"),
        ("SpotMaxPriceTooLow", 400, CapacityError, "SpotMaxPriceTooLow"),
        ("VcpuLimitExceeded", 400, QuotaError, "VcpuLimitExceeded"),
        ("InstanceLimitExceeded", 400, QuotaError, "InstanceLimitExceeded"),
        ("RequestLimitExceeded", 503, ThrottledError, "Throttled"),
        ("Throttling", 400, ThrottledError, "Throttled"),
        ("UnauthorizedOperation", 403, DeniedError, "AccessDenied"),
        ("AuthFailure", 401, DeniedError, "AuthFailure"),
        ("ExpiredToken", 400, DeniedError, "ExpiredToken"),
        ("InvalidAMIID.NotFound", 400, InvalidRequestError, "ImageMissing"),
        ("InvalidSubnetID.NotFound", 400, InvalidRequestError, "SubnetMissing"),
        ("InvalidGroup.NotFound", 400, InvalidRequestError, "GroupMissing"),
        ("InvalidKeyPair.NotFound", 400, InvalidRequestError, "KeyPairMissing"),
        ("IdempotentParameterMismatch", 400, InvalidRequestError, "IdempotentParameterMismatch"),
        ("SomethingNew.OfAws", 400, InvalidRequestError, "SomethingNewOfAws"),
        ("InternalError", 500, UnknownOutcomeError, "ServerError"),
        ("Unavailable", 503, UnknownOutcomeError, "ServerError"),
        ("", 0, UnknownOutcomeError, "ServerError"),
    ],
)
def test_a_code_of_ec2_has_one_meaning(code: str, status: int, kind: type[ProviderError], reason: str) -> None:
    error = told(answer(code, status))
    assert type(error) is kind
    assert error.reason == reason
    assert "AWS says so" in str(error)


@pytest.mark.parametrize(
    ("code", "scope"),
    [
        ("InsufficientInstanceCapacity", Scope.OFFERING),
        ("InsufficientFreeAddressesInSubnet", Scope.ZONE),
        ("InsufficientVolumeCapacity", Scope.ZONE),
        ("MaxSpotInstanceCountExceeded", Scope.MARKET),
    ],
)
def test_a_refused_offering_says_how_far_it_reaches(code: str, scope: Scope) -> None:
    error = told(answer(code, 500))
    assert isinstance(error, OfferingRefusedError)
    assert error.scope is scope


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (boto.EndpointConnectionError(endpoint_url="http://e"), UnavailableError),
        (boto.ConnectTimeoutError(endpoint_url="http://e"), UnavailableError),
        (boto.ProxyConnectionError(proxy_url="http://p"), UnavailableError),
        (boto.CredentialRetrievalError(provider="p", error_msg="m"), UnavailableError),
        (boto.ReadTimeoutError(endpoint_url="http://e"), UnknownOutcomeError),
        (boto.ConnectionClosedError(endpoint_url="http://e"), UnknownOutcomeError),
        (boto.HTTPClientError(error="cut off"), UnknownOutcomeError),
        (boto.SSLError(endpoint_url="http://e", error="bad"), UnknownOutcomeError),
        (ResponseParserError("no XML"), UnknownOutcomeError),
        (boto.NoCredentialsError(), DeniedError),
        (boto.PartialCredentialsError(provider="p", cred_var="v"), DeniedError),
        (boto.ParamValidationError(report="UserData: hush"), InvalidRequestError),
    ],
)
def test_an_error_of_the_way_to_aws_says_whether_anything_was_sent(given: Exception, kind: type[ProviderError]) -> None:
    error = told(given)
    assert type(error) is kind
    assert "RunInstances" in str(error) or kind is DeniedError
    assert "hush" not in str(error)


def test_a_read_that_failed_did_nothing() -> None:
    for error in (boto.ReadTimeoutError(endpoint_url="http://e"), answer("InternalError", 500), ResponseParserError()):
        assert type(told(error, changes=False)) is UnavailableError


def test_a_throttle_carries_the_servers_word() -> None:
    error = told(answer("RequestLimitExceeded", 503, **{"retry-after": "7"}))
    assert isinstance(error, ThrottledError)
    assert error.retry_after == 7.0
    error = told(answer("RequestLimitExceeded", 503))
    assert isinstance(error, ThrottledError)
    assert error.retry_after is None


def test_every_sentence_can_be_formed_and_names_its_key_and_value() -> None:
    for code, meaning in _TABLE.items():
        assert "{" not in str(told(answer(code, 400))), code
        assert meaning.sentence.format_map(About({}))
    assert "PODVM_AMI_ID=ami-1" in str(told(answer("InvalidAMIID.NotFound", 400)))
    assert "AWS_SG_IDS=sg-1" in str(told(answer("InvalidGroup.NotFound", 400)))
    assert "m6a.large left in us-east-1a (spot)" in str(told(answer("InsufficientInstanceCapacity", 500)))


def test_the_encoded_half_of_a_refusal_is_left_out() -> None:
    message = "You are not authorized. Encoded authorization failure message: " + "x" * 4000
    said = str(told(answer("UnauthorizedOperation", 403, message)))
    assert "You are not authorized" in said
    assert "xxx" not in said


def test_only_answers_have_a_code() -> None:
    assert code_of(answer("Throttling", 400)) == "Throttling"
    assert code_of(ValueError()) == ""
