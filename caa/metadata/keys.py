"""The keys of the metadata service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from providers.base import Problem
from providers.keys import CsvList, Keys

IMDS_V1, USER_DATA, CREDENTIALS, SIGNED_DOCUMENTS = "imds-v1", "user-data", "credentials", "signed-documents"
ALLOWABLE = (IMDS_V1, USER_DATA, CREDENTIALS, SIGNED_DOCUMENTS)
# Only the cloud's own service has them, and only the VM reaches it.
OF_THE_VM = (CREDENTIALS, SIGNED_DOCUMENTS)

Mode = Literal["pod", "vm", "off"]
Dialect = Literal["", "aws", "azure", "ibmcloud"]


def _allowed(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word not in ALLOWABLE:
            raise ValueError(f"must be any of {', '.join(ALLOWABLE)}, separated by commas")
    return words


class MetadataKeys(Keys):
    """What a pod is told of its VM."""

    metadata_mode: Mode = Field(
        "pod",
        alias="CAA_METADATA_MODE",
        description="Who answers a pod at 169.254.169.254 and fd00:ec2::254: pod, this service with what the pod's VM "
        "is; vm, the cloud's own service, passed on inside VMs of our image; off, nobody. In no mode does a request "
        "reach the worker's own metadata.",
    )
    metadata_dialect: Dialect = Field(
        "",
        alias="CAA_METADATA_DIALECT",
        description="How mode pod answers: aws, azure or ibmcloud; the cloud's own way if not set, and that of aws on "
        "libvirt, which has none.",
    )
    metadata_allow: Annotated[CsvList, AfterValidator(_allowed)] = Field(
        (),
        alias="CAA_METADATA_ALLOW",
        description="What pods may have besides: imds-v1 (requests without a session token, as of AWS), user-data (it "
        "holds the key of the VM's agent link), and in mode vm credentials and signed-documents.",
    )
    metadata_hop_limit: int = Field(
        1,
        alias="CAA_METADATA_HOP_LIMIT",
        ge=1,
        le=64,
        description="How many hops the answer with a session token may travel inside the pod, as EC2's "
        "HttpPutResponseHopLimit; 1 keeps it from networks inside the pod.",
    )


def metadata_problems(keys: MetadataKeys) -> Iterator[Problem]:
    """How the keys contradict each other."""
    missing = [word for word in keys.metadata_allow if word in OF_THE_VM]
    if missing and keys.metadata_mode != "vm":
        yield Problem(
            "CAA_METADATA_ALLOW",
            f"{missing[0]!r} is not allowed with CAA_METADATA_MODE={keys.metadata_mode}: only the cloud's own service "
            "has it, so the mode must be vm.",
        )


def guest_metadata(keys: MetadataKeys) -> dict[str, object] | None:
    """What the VM is told, in mode `vm`; None in others."""
    if keys.metadata_mode != "vm":
        return None
    return {"mode": "vm", "allow": list(keys.metadata_allow), "hops": keys.metadata_hop_limit}
