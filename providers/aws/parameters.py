"""The one RunInstances call of a launch. Pure: the same request and place give the same bytes on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from providers.aws.catalog import Image, Subnet
from providers.aws.settings import AwsKeys
from providers.aws.tags import tags_of
from providers.base import InvalidRequestError, LaunchRequest, Market

# EC2's limit on user data before it is put into base64.
USER_DATA_LIMIT = 16 * 1024
# One hop ends in the pod VM itself: a pod in its own network namespace cannot read user data, which holds a key.
METADATA_HOPS = 1


@dataclass(frozen=True, slots=True)
class Place:
    """What a launch takes from the account. Empty `groups` and `key_pair` leave them to AWS or the launch template."""

    image: Image
    subnet: Subnet
    groups: tuple[str, ...]
    key_pair: str


def check_user_data(request: LaunchRequest) -> None:
    """Raises InvalidRequestError naming size and limit."""
    size = len(request.user_data)
    if size > USER_DATA_LIMIT:
        raise InvalidRequestError(
            "UserDataTooLarge",
            f"the user data of {request.name!r} has {size} bytes, and EC2 takes at most {USER_DATA_LIMIT}; "
            "initdata (INITDATA, or the pod's annotation) is the part that grows",
        )


def run_instances(request: LaunchRequest, keys: AwsKeys, place: Place) -> dict[str, Any]:
    """The parameters, as boto takes them (which puts the user data into base64).

    Whatever can be said is said, though it may be AWS's default, for in launch template mode the template would
    otherwise decide.
    """
    tags = tags_of(request, keys.tags)
    parameters: dict[str, Any] = {
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": request.token,
        "ImageId": place.image.id,
        "InstanceType": request.offering.instance_type,
        "UserData": request.user_data,
        "NetworkInterfaces": [_interface(keys, place)],
        "BlockDeviceMappings": [_root_volume(keys, place.image)],
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": METADATA_HOPS,
        },
        # A pod VM that shuts itself down is of no more use, and stopped it would cost its volume for ever.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume", "network-interface")
        ],
    }
    if place.key_pair:
        parameters["KeyName"] = place.key_pair
    if not keys.disable_cvm:
        parameters["CpuOptions"] = {"AmdSevSnp": "enabled"}
    if request.offering.market is Market.SPOT:
        parameters["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    if keys.iam_instance_profile:
        kind = "Arn" if keys.iam_instance_profile.startswith("arn:") else "Name"
        parameters["IamInstanceProfile"] = {kind: keys.iam_instance_profile}
    if keys.use_launch_template:
        parameters["LaunchTemplate"] = {"LaunchTemplateName": keys.launch_template}
        parameters["DisableApiTermination"] = False  # or nothing could end what the template protects
    return parameters


def _interface(keys: AwsKeys, place: Place) -> dict[str, Any]:
    """The primary interface, spelled out, for only so can it have a public address and go with the instance."""
    interface: dict[str, Any] = {"DeviceIndex": 0, "SubnetId": place.subnet.id, "DeleteOnTermination": True}
    if place.groups:
        interface["Groups"] = list(place.groups)
    if keys.use_public_ip:
        interface["AssociatePublicIpAddress"] = True
    return interface


def _root_volume(keys: AwsKeys, image: Image) -> dict[str, Any]:
    """The root volume of the image that is used, which need not be the configured one."""
    ebs: dict[str, Any] = {"VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    if keys.root_volume_size:
        ebs["VolumeSize"] = max(keys.root_volume_size, image.root_size)
    return {"DeviceName": image.root_device, "Ebs": ebs}
