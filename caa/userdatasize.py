"""Does the user data fit the cloud? Decided before anything is launched, with the name of what is too long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from caa.errors import InvalidInputError
from caa.guestconfig import APF_PATH, AUTH_LIMIT, AUTH_PATH, INITDATA_ANNOTATION, INITDATA_PATH, GuestFile, cloud_config


class UserDataTooLargeError(InvalidInputError):
    """The pod's files are longer than the cloud takes. `field` is what its owner can make shorter."""

    reason = "UserDataTooLarge"


class Fitted(NamedTuple):
    """User data that fits, and one sentence for each file that was left out."""

    user_data: bytes
    left_out: tuple[str, ...]


# What makes each file long, in the words of whoever can change it.
_CAUSES = {
    APF_PATH: ("pod-network", "the pod network (its routes and neighbours) and the TLS certificates"),
    AUTH_PATH: ("imagePullSecrets", "the image pull secrets of the pod and its service account"),
    INITDATA_PATH: (INITDATA_ANNOTATION, f"initdata (the annotation {INITDATA_ANNOTATION}, or INITDATA)"),
}


def fit(files: Sequence[GuestFile], limit: int, cloud: str) -> Fitted:
    """The cloud-config of `files` in at most `limit` bytes, counted before any encoding of the cloud's API.

    Only an auth.json longer than AUTH_LIMIT may be left out, as incumbents do: images that need no secret still start.
    Raises UserDataTooLargeError naming the longest file, its cause and its share; ValueError as `cloud_config` does.
    """
    kept, left_out = [], []
    for file in files:
        size = len(file.content.encode())
        if file.path == AUTH_PATH and size > AUTH_LIMIT:
            what = _CAUSES[AUTH_PATH][1]
            left_out.append(f"{AUTH_PATH} was left out: {what} make {size} bytes, and guests take {AUTH_LIMIT}")
        else:
            kept.append(file)
    user_data = cloud_config(kept)
    if len(user_data) > limit:
        # The keys and names of apf.json are always there, so it is to blame only when nothing else is large.
        culprit = max(kept, key=lambda file: (len(file.content), file.path != APF_PATH))
        key, cause = _CAUSES.get(culprit.path, _CAUSES[APF_PATH])
        raise UserDataTooLargeError(
            key,
            f"the user data has {len(user_data)} bytes, and {cloud} takes at most {limit}; "
            f"{len(culprit.content)} of them are {culprit.path}: {cause}",
        )
    return Fitted(user_data, tuple(left_out))
