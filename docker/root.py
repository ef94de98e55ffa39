"""Leaves of a Debian root only what some packages need: `root.py PACKAGE...`, inside it, as root.

The package manager, shells for people, Perl and the like go. What stays keeps its entry in dpkg's own list, so that
scanners for vulnerable versions find exactly what is there.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

DPKG = Path("/var/lib/dpkg")
# Dependencies of maintainer scripts, which never run again, and what Debian counts as always there.
WITHOUT = frozenset({"adduser", "debconf", "dpkg", "init-system-helpers", "openssl", "passwd", "perl-base", "tzdata"})
# Of packages that stay: what none of our programs reads or runs. libc converts between Unicode and ASCII by itself.
NEVER_READ = (
    "/usr/lib/*-linux-gnu/gconv",
    "/usr/lib/python3.*/pydoc_data",
    "/usr/lib/python3.*/test",
    "/usr/lib/python3.*/lib2to3",
    "/usr/bin/qemu-io",
    "/usr/bin/qemu-nbd",
    "/usr/bin/qemu-storage-daemon",
    "/usr/share/bash-completion",
)
_MERGED = re.compile(r"^/(bin|sbin|lib|lib32|lib64|libx32)/")


def stanzas(status: str) -> dict[str, str]:
    """Package -> its part of dpkg's status file."""
    found = {}
    for stanza in status.split("\n\n"):
        if match := re.match(r"Package: (\S+)", stanza):
            found[match[1]] = stanza
    return found


def needed(packages: Mapping[str, str], roots: Iterable[str]) -> set[str]:
    """The roots and all that they depend on. Raises KeyError for a root that is not installed."""
    provided = {
        name: package
        for package, stanza in packages.items()
        for name in (package, *_names(stanza, "Provides"))
        if name == package or name not in packages
    }
    keep: set[str] = set()
    todo = [provided[root] for root in roots]
    while todo:
        package = todo.pop()
        if package not in keep:
            keep.add(package)
            wanted = {*_names(packages[package], "Depends"), *_names(packages[package], "Pre-Depends")}
            todo += [provided[name] for name in wanted if name in provided and provided[name] not in WITHOUT]
    return keep


def _names(stanza: str, field: str) -> Iterator[str]:
    """Of alternatives all: those that are not installed do not matter."""
    if match := re.search(rf"^{field}: (.*)$", stanza, re.MULTILINE):
        yield from (re.split(r"[\s:(]", one.strip())[0] for one in re.split(r"[,|]", match[1]))


def _listed(package: str) -> set[str]:
    return {
        _MERGED.sub(r"/usr/\1/", line)
        for file in _of_package(package, "list")
        for line in file.read_text().splitlines()
    }


def _of_package(package: str, suffix: str = "*") -> Iterator[Path]:
    yield from (DPKG / "info").glob(f"{package}.{suffix}")
    yield from (DPKG / "info").glob(f"{package}:*.{suffix}")


def _remove(paths: Iterable[str]) -> None:
    """Files, and directories that are empty then. Links to directories are the root's own layout."""
    for name in sorted(paths, reverse=True):
        path = Path(name)
        if path.is_symlink() and path.is_dir():
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def main() -> None:
    """See the module."""
    packages = stanzas((DPKG / "status").read_text())
    keep = needed(packages, sys.argv[1:])
    kept_files = {path for package in keep for path in _listed(package)}
    gone_files: set[str] = set()
    for package in packages.keys() - keep:
        gone_files |= _listed(package) - kept_files
        for file in list(_of_package(package)):
            file.unlink()
    _remove(gone_files)
    for pattern in NEVER_READ:
        for path in Path("/").glob(pattern[1:]):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (DPKG / "status").write_text("\n\n".join(packages[name].strip("\n") for name in sorted(keep)) + "\n")
    for place in ("/usr/bin", "/usr/sbin", "/etc/alternatives"):
        for link in Path(place).iterdir():
            if link.is_symlink() and not os.path.exists(link):
                link.unlink()


if __name__ == "__main__":
    main()
