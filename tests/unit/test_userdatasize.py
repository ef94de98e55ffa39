"""User data against the limits of the clouds, before anything is launched."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.errors import InvalidInputError
from caa.guestconfig import AUTH_LIMIT, AUTH_PATH, INITDATA_ANNOTATION, auth_json, cloud_config, guest_files
from caa.userdatasize import UserDataTooLargeError, fit
from providers.aws.provider import AwsProvider
from providers.libvirt.provider import LibvirtProvider

AZURE_LIMIT = 65536 // 4 * 3  # 65,536 characters of base64


def test_what_fits_is_sent_whole_to_the_last_byte() -> None:
    files = guest_files(apf="{}", auth='{"auths":{}}', initdata="H4sI", scratch_space=True)
    size = len(cloud_config(files))
    assert fit(files, size, "EC2") == (cloud_config(files), ())
    with pytest.raises(UserDataTooLargeError, match=f"has {size} bytes, and EC2 takes at most {size - 1}; "):
        fit(files, size - 1, "EC2")


def test_an_auth_json_beyond_its_limit_is_left_out_and_said_so() -> None:
    fits, too_long = "x" * AUTH_LIMIT, "x" * (AUTH_LIMIT + 1)
    assert fit(guest_files(apf="{}", auth=fits), 16384, "EC2").left_out == ()
    user_data, [said] = fit(guest_files(apf="{}", auth=too_long), 16384, "EC2")
    assert user_data == cloud_config(guest_files(apf="{}"))
    assert "12289 bytes, and guests take 12288" in said
    assert AUTH_PATH in said
    assert "pull secrets" in said


@pytest.mark.parametrize(
    ("auth", "initdata", "field", "part"),
    [
        (
            100,
            15000,
            INITDATA_ANNOTATION,
            f"15000 of them are /run/peerpod/initdata: initdata (the annotation {INITDATA_ANNOTATION}",
        ),
        (12000, 4000, "imagePullSecrets", "12000 of them are /run/peerpod/auth.json: the image pull secrets"),
    ],
)
def test_the_longest_file_is_named_with_its_cause(auth: int, initdata: int, field: str, part: str) -> None:
    files = guest_files(apf="{" + "a" * 2800, auth="x" * auth, initdata="H" * initdata)
    with pytest.raises(UserDataTooLargeError) as caught:
        fit(files, AwsProvider.user_data_limit, "aws")
    assert part in str(caught.value)
    assert (caught.value.field, caught.value.reason) == (field, "UserDataTooLarge")
    assert "xxx" not in str(caught.value)
    assert isinstance(caught.value, InvalidInputError)


@given(st.integers(0, 20000), st.integers(0, 70000), st.sampled_from([16384, AZURE_LIMIT, 256 << 10]))
def test_the_answer_is_always_within_the_limit(auth: int, initdata: int, limit: int) -> None:
    files = guest_files(apf="{}", auth="x" * auth, initdata="H" * initdata)
    try:
        user_data, left_out = fit(files, limit, "cloud")
    except UserDataTooLargeError:
        assert len(cloud_config(files)) > limit
        return
    assert len(user_data) <= limit
    assert bool(left_out) == (auth > AUTH_LIMIT)
    assert len(base64.b64encode(user_data)) <= (limit + 2) // 3 * 4


def test_each_provider_says_its_clouds_limit() -> None:
    assert (AwsProvider.user_data_limit, LibvirtProvider.user_data_limit) == (16384, 262144)


def test_auth_json_is_one_line_in_a_fixed_order() -> None:
    assert auth_json({"b": "Yjp4", "a": "YTp4"}) == '{"auths":{"a":{"auth":"YTp4"},"b":{"auth":"Yjp4"}}}'
    assert auth_json({}) == ""
