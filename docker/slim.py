"""Removes from the environment that runs it what no program there reads: tests, type stubs, C sources.

Data that is read by name stays, above all botocore's: of its services only those that the providers speak are kept.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# What `boto3.client` is called with (providers/aws, imagebuilder), with what those need to log in.
AWS_SERVICES = frozenset({"ec2", "ebs", "s3", "sts", "ssm", "iam", "sso", "sso-oidc", "service-quotas", "pricing"})
STUBS = ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h")


def useless(site: Path) -> Iterator[Path]:
    """Files and directories, in any order; some may be inside others."""
    for pattern in STUBS:
        yield from site.rglob(pattern)
    yield from (path for path in site.rglob("tests") if path.is_dir())
    for sdk in ("botocore", "ibm_botocore"):
        data = site / sdk / "data"
        if data.is_dir():
            yield from (path for path in data.iterdir() if path.is_dir() and path.name not in AWS_SERVICES)


def main() -> None:
    """See the module."""
    site = Path(sysconfig.get_path("purelib"))
    for path in list(useless(site)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
