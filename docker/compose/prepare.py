"""Finds in the emulated account what a launch names, and writes it as keys into a directory: `prepare.py DIRECTORY`.

Ids there are other ones after each start of the emulator. Beside the directory it puts the page's token, and prints it.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import boto3


def main() -> None:
    """See the module."""
    ec2 = boto3.client("ec2")
    image = ec2.register_image(
        Name="podvm",
        Architecture="x86_64",
        RootDeviceName="/dev/xvda",
        VirtualizationType="hvm",
        BootMode="uefi",
        EnaSupport=True,
    )
    keys = {
        "CLOUD_PROVIDER": "aws",
        "PODVM_AMI_ID": image["ImageId"],
        "AWS_SUBNET_ID": ec2.describe_subnets()["Subnets"][0]["SubnetId"],
        "AWS_SG_IDS": ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"],
        "DISABLECVM": "true",
    }
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        Path(sys.argv[1], key).write_text(value)
    file = Path(sys.argv[1]).with_name("token")
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(32))
    print("http://localhost:8080/ asks for this token:", file.read_text())


if __name__ == "__main__":
    main()
