"""The emulated EC2, for the service in its image."""

from tests.clouds.conftest import account, aws_emulator, ec2, proxy

__all__ = ["account", "aws_emulator", "ec2", "proxy"]
