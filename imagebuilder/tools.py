"""Running the host's tools: which are needed, where they come from, and errors a person can act on."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
# Of what a failed tool printed; people see the end of it.
_LINES_KEPT = 40
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
    with contextlib.ExitStack() as stack:
        # Files and no pipes: what a tool left running may hold a pipe open for ever.
        given, printed, complained = (
            stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(3)
        )
        given.write(text or "")
        given.seek(0)
        with _started(words, environment, stdin=given, stdout=printed, stderr=complained) as process:
            pass
        for file in (printed, complained):
            file.seek(0)
        if process.returncode != 0:
            raise _failed(words[0], process.returncode, complained.read() or printed.read())
        return printed.read()


def run_watched(
    command: Sequence[str | Path],
    told: Callable[[str], bool],
    *,
    name: str = "",
    environment: dict[str, str] | None = None,
) -> None:
    """Run a tool (`name` if that is not the first word); `told` gets each line of what it prints, as it comes.

    It returns whether the line is of no use to people when the tool fails, and may raise to end the tool.
    Raises ImageError.
    """
    words = [str(word) for word in command]
    kept = collections.deque[str](maxlen=_LINES_KEPT)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with _started(words, environment, text=True, errors="replace", **streams) as process:
        assert process.stdout is not None
        for line in process.stdout:  # a carriage return ends one, too
            if not told(line.rstrip("\n")):
                kept.append(line)
    if process.returncode != 0:
        raise _failed(name or words[0], process.returncode, "".join(kept))


def run_with_percent(command: Sequence[str | Path], tell: Callable[[float], None]) -> None:
    """Run a tool that prints "(63.02/100%)" as it goes on; `tell` is called with 0 to 1. Raises ImageError."""

    def told(line: str) -> bool:
        match = re.search(r"\(([0-9.]+)/100%\)", line)
        if match:
            tell(min(float(match[1]) / 100, 1.0))
        return match is not None or not line

    run_watched(command, told)


_running: dict[subprocess.Popen[Any], float] = {}
"""Tools that run now, and when each was asked to end; 0 while nobody did."""
_running_lock = threading.Lock()


def end_running() -> None:
    """Have every tool of this process end: the first call asks, one that comes ten seconds later kills.

    From another thread than the one that waits for the tool, which then gets the error.
    """
    with _running_lock:
        now = time.monotonic()
        for process, asked in _running.items():
            if not asked:
                _running[process] = now
                _signal(process, signal.SIGTERM)
            elif now - asked >= _ENDING_SECONDS:
                _signal(process, signal.SIGKILL)


@contextlib.contextmanager
def _started(words: list[str], environment: dict[str, str] | None, **streams: Any) -> Iterator[subprocess.Popen[Any]]:
    """A tool in a group of its own: it has children, which must not go on writing when we give up, or it does."""
    settled = _settled(environment)
    with subprocess.Popen(words, env=settled, process_group=0, umask=_UMASK, **streams) as process:
        with _running_lock:
            _running[process] = 0.0
        try:
            yield process
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except BaseException:
            _ask_to_end(process)
            raise
        finally:
            with _running_lock:
                del _running[process]
            # Whatever is left of it. It is not reaped yet, so the number is nobody else's.
            _signal(process, signal.SIGKILL)


def _ask_to_end(process: subprocess.Popen[Any]) -> None:
    """mmdebstrap unmounts what it mounted when it is asked to end, so it has some time for that."""
    _signal(process, signal.SIGTERM)
    until = time.monotonic() + _ENDING_SECONDS
    while time.monotonic() < until and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        time.sleep(0.05)


def _signal(process: subprocess.Popen[Any], sign: signal.Signals) -> None:
    """To the whole group; SIGKILL also to descendants in groups of their own, such as dpkg's, which apt starts so."""
    others = _descendants(process.pid) if sign is signal.SIGKILL else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _settled(environment: dict[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PATH": _SYSTEM_PATH, "LC_ALL": "C.UTF-8", **(environment or {})}


def _failed(tool: str, code: int, printed: str) -> ImageError:
    tail = printed.strip()[-2000:]
    if "No space left on device" in tail:
        return no_space(f"{tool} failed with exit code {code} (the disk is full): {tail}")
    return BuildError(f"{tool} failed with exit code {code}: {tail}")
