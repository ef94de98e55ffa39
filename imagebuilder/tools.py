"""Running the host's tools: which are needed, where they come from, and errors a person can act on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from imagebuilder.errors import ImageError, no_space

# Tool -> Debian package that has it.
PACKAGES = {
    "aarch64-linux-gnu-objcopy": "binutils-aarch64-linux-gnu",
    "apt-get": "apt",
    "chroot": "coreutils",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "mcopy": "mtools",
    "mdir": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "objcopy": "binutils",
    "qemu-img": "qemu-utils",
    "sfdisk": "fdisk",
    "tar": "tar",
    "veritysetup": "cryptsetup-bin",
}
# The usual one, so that what tools write has the same modes wherever they run.
_UMASK = 0o022
# A tool that was asked to end has so long until it is made to.
_ENDING_SECONDS = 10.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class BuildError(ImageError):
    """The image cannot be built by the recipe."""

    def __init__(self, sentence: str) -> None:
        super().__init__("BuildFailed", sentence)


class MissingToolError(ImageError):
    """This machine lacks programs that the work needs."""

    def __init__(self, missing: Mapping[str, str]) -> None:
        names = ", ".join(f"{tool} (package {package})" for tool, package in sorted(missing.items()))
        packages = " ".join(sorted(set(missing.values())))
        super().__init__("MissingTool", f"missing on this host: {names}; apt-get install {packages}")


def check_tools(tools: Iterable[str], extra_files: Mapping[Path, str] | None = None) -> None:
    """Raise MissingToolError naming every missing tool or file (`extra_files`: file -> package) and its package."""
    missing = {tool: PACKAGES[tool] for tool in tools if shutil.which(tool, path=_SYSTEM_PATH) is None}
    missing |= {str(path): package for path, package in (extra_files or {}).items() if not path.exists()}
    if missing:
        raise MissingToolError(missing)


def run(command: Sequence[str | Path], *, text: str | None = None, environment: dict[str, str] | None = None) -> str:
    """Run a tool and return its output. Raises ImageError with the end of what it printed."""
    words = [str(word) for word in command]
    pipe = subprocess.PIPE
    # A group of its own: tools have children, which must not go on writing when we give up.
    with subprocess.Popen(
        words,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        env=_settled(environment),
        process_group=0,
        umask=_UMASK,
    ) as process:
        try:
            printed, complained = process.communicate(text or "")
        except BaseException:
            _end_group(process)
            raise
    if process.returncode != 0:
        raise _failed(words[0], process.returncode, complained or printed)
    return printed


def run_with_percent(command: Sequence[str | Path], tell: Callable[[float], None]) -> None:
    """Run a tool that prints "(63.02/100%)" as it goes on; `tell` is called with 0 to 1. Raises ImageError."""
    words = [str(word) for word in command]
    printed = b""
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, env=_settled(None)) as process,
    ):
        try:
            assert process.stdout is not None
            while piece := os.read(process.stdout.fileno(), 4096):
                printed = (printed + piece)[-4096:]
                if shares := re.findall(rb"\(([0-9.]+)/100%\)", printed):
                    tell(min(float(shares[-1]) / 100, 1.0))
        except BaseException:  # whoever is told may want the end of it
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            raise _failed(words[0], process.returncode, errors.read())


def _end_group(process: subprocess.Popen[str]) -> None:
    """mmdebstrap unmounts what it mounted when it is asked to end, so it is asked first."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_SECONDS)


def _settled(environment: dict[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PATH": _SYSTEM_PATH, "LC_ALL": "C.UTF-8", **(environment or {})}


def _failed(tool: str, code: int, printed: str) -> ImageError:
    tail = printed.strip()[-2000:]
    if "No space left on device" in tail:
        return no_space(f"{tool} failed with exit code {code} (the disk is full): {tail}")
    return BuildError(f"{tool} failed with exit code {code}: {tail}")
