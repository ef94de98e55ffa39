"""Running the host's tools: which are needed, where they come from, and errors a person can act on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Tool -> Debian package that has it.
PACKAGES = {
    "apt-get": "apt",
    "chroot": "coreutils",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "objcopy": "binutils",
    "qemu-img": "qemu-utils",
    "sfdisk": "fdisk",
    "tar": "tar",
}
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(Exception):
    """The image cannot be built. str() says why and what to do."""


def check_tools(extra_files: dict[Path, str]) -> None:
    """Raise BuildError naming every missing tool or file (`extra_files`: file -> package) and its Debian package."""
    missing = {tool: package for tool, package in PACKAGES.items() if shutil.which(tool, path=_SYSTEM_PATH) is None}
    missing |= {str(path): package for path, package in extra_files.items() if not path.exists()}
    if missing:
        names = ", ".join(f"{tool} (package {package})" for tool, package in sorted(missing.items()))
        raise BuildError(f"missing on this host: {names}; apt-get install {' '.join(sorted(set(missing.values())))}")


def run(command: Sequence[str | Path], *, text: str | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a tool and return its output. Raises BuildError with the end of what it printed."""
    words = [str(word) for word in command]
    settled = {**os.environ, "PATH": _SYSTEM_PATH, "LC_ALL": "C.UTF-8", **(environment or {})}
    done = subprocess.run(words, input=text or "", capture_output=True, text=True, errors="replace", env=settled)
    if done.returncode != 0:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        hint = " (the disk is full)" if "No space left on device" in tail else ""
        raise BuildError(f"{words[0]} failed with exit code {done.returncode}{hint}: {tail}")
    return done.stdout
