"""Removes from the environment that runs it what no program there reads, and compiles the rest: see `main`.

Data that is read by name stays, above all botocore's: of its services only those that the providers speak are kept.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# What `boto3.client` is called with (providers/aws, imagebuilder), with what those need to log in.
AWS_SERVICES = frozenset({"ec2", "ebs", "s3", "sts", "ssm", "iam", "sso", "sso-oidc", "service-quotas", "pricing"})
STUBS = ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h")
# Databases that the ledger is never on, test suites under other names, and colours for languages that nobody prints.
UNUSED = (
    *(f"sqlalchemy/dialects/{name}" for name in ("mssql", "mysql", "oracle")),
    "sqlalchemy/testing",
    "jsonschema/benchmarks",
    "pygments/lexers/[!_]*",
)
# Read by people in a traceback, and by Alembic.
OURS = ("caa", "providers", "imagebuilder", "migrations")


def useless(site: Path) -> Iterator[Path]:
    """Files and directories, in any order; some may be inside others."""
    for pattern in STUBS:
        yield from site.rglob(pattern)
    yield from (path for path in site.rglob("tests") if path.is_dir())
    for pattern in UNUSED:
        yield from site.glob(pattern)
    for sdk in ("botocore", "ibm_botocore", "boto3", "ibm_boto3"):
        data = site / sdk / "data"
        for service in (path for path in data.glob("*") if path.is_dir()):
            if service.name in AWS_SERVICES:
                # Of the versions of an API the newest is taken.
                yield from sorted(service.iterdir())[:-1]
            else:
                yield service


def strip(site: Path) -> None:
    """Take debugging symbols out of extension modules. Bundled libraries were patched, and may not bear it."""
    found = [path for path in site.rglob("*.so") if not path.parent.name.endswith(".libs")]
    if found:
        subprocess.run(["strip", "--strip-unneeded", *found], check=True)


def compile_all(site: Path) -> None:
    """Compile everything, and keep the source of what is ours alone: that of others is a fifth of the image.

    Trusted by hash, not time: the root file system is read-only later, and copies have other times.
    """
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for path in sorted(site.iterdir()):
        ours = path.name in OURS
        if path.is_dir():
            compileall.compile_dir(path, quiet=1, legacy=not ours, invalidation_mode=mode, maxlevels=50)
        elif path.suffix == ".py":
            compileall.compile_file(path, quiet=1, legacy=True, invalidation_mode=mode)
        if not ours:
            sources = path.rglob("*.py") if path.is_dir() else [path] if path.suffix == ".py" else []
            for source in sources:
                if source.with_suffix(".pyc").exists():
                    source.unlink()


def main() -> None:
    """Remove, strip, compile."""
    site = Path(sysconfig.get_path("purelib"))
    for path in list(useless(site)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    strip(site)
    compile_all(site)


if __name__ == "__main__":
    main()
