"""A seeded account of the emulated EC2, and boto3 on it, for the tests of the harness."""

from __future__ import annotations

from typing import Any

import boto3  # type: ignore[import-untyped,unused-ignore]
from botocore.config import Config  # type: ignore[import-untyped,unused-ignore]
from botocore.exceptions import ClientError  # type: ignore[import-untyped,unused-ignore]

from tests.clouds.aws.emulator import REGION, AwsEmulator, Seed


class Account:
    """Calls are real boto3 calls, and single ones: no retry hides an error."""

    def __init__(self, emulator: AwsEmulator, ec2: Any, seed: Seed) -> None:
        self.emulator, self.ec2, self.seed = emulator, ec2, seed

    def request(self, zone: int = 0, **changes: Any) -> dict[str, Any]:
        """Parameters of RunInstances for one m6a.large; a change to None leaves a parameter out."""
        request = {
            "ImageId": self.seed.images["x86_64"],
            "InstanceType": "m6a.large",
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": self.seed.subnets[self.seed.zones[zone]],
            "SecurityGroupIds": [self.seed.security_group],
            "KeyName": self.seed.key_name,
            **changes,
        }
        return {key: value for key, value in request.items() if value is not None}

    def run(self, zone: int = 0, **changes: Any) -> dict[str, Any]:
        """Launch one; returns the instance of the reply."""
        return dict(self.ec2.run_instances(**self.request(zone, **changes))["Instances"][0])

    def launch(self, zone: int = 0, **changes: Any) -> str:
        """Launch one; returns its id."""
        return str(self.run(zone, **changes)["InstanceId"])

    def instances(self, **arguments: Any) -> list[dict[str, Any]]:
        """The instances in one page of DescribeInstances."""
        return instances_of(self.ec2.describe_instances(**arguments))

    def one(self, instance_id: str) -> dict[str, Any]:
        return self.instances(InstanceIds=[instance_id])[0]

    def state(self, instance_id: str) -> str:
        return str(self.one(instance_id)["State"]["Name"])

    def terminate(self, *ids: str) -> list[dict[str, Any]]:
        return list(self.ec2.terminate_instances(InstanceIds=list(ids))["TerminatingInstances"])

    def refusal(self, call: Any, **arguments: Any) -> tuple[str, int]:
        """Error code and HTTP status of a call that must fail."""
        try:
            answer = call(**arguments)
        except ClientError as error:
            return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise AssertionError(f"accepted: {answer}")

    def launch_refusal(self, zone: int = 0, **changes: Any) -> tuple[str, int]:
        return self.refusal(self.ec2.run_instances, **self.request(zone, **changes))


def instances_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all reservations of one reply."""
    return [instance for reservation in page["Reservations"] for instance in reservation["Instances"]]


def ec2_client(url: str, attempts: int = 1, read_timeout: float = 30) -> Any:
    """A boto3 client; `attempts` includes the first. To be closed."""
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"}, read_timeout=read_timeout)
    session = boto3.session.Session(aws_access_key_id="AKIAIOSFODNN7EXAMPLE", aws_secret_access_key="-")
    return session.client("ec2", endpoint_url=url, region_name=REGION, config=config)
