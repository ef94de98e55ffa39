"""A minimal Debian with the recipe's packages, made by mmdebstrap with the host's mirror, and how far that is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from imagebuilder.platforms import PLATFORMS
from imagebuilder.recipe import SUITE, Inputs, lines
from imagebuilder.steps import STEPS, Progress, tell
from imagebuilder.tools import BuildError, run, run_watched

# Runs inside mmdebstrap, with its apt, so that both are fetched and verified like any other package. They are not
# installed, but taken apart.
_FETCH = """set -eu
mkdir "$1/taken-apart"
cd "$1/taken-apart"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends "$KERNEL_PACKAGE" | sed -n 's/^ *Depends: \\(linux-image-.*\\)/\\1/p')
apt-get -q -o APT::Sandbox::User=root download "$package" systemd-boot-efi
"""

# Sets up dm-verity in the initrd, for which libcryptsetup would be ten times as large.
_VERITY_PACKAGES = ("dmsetup",)

# What mmdebstrap says as it begins something -> the step of ours.
_BEGINS = {
    "I: running apt-get update": "package lists",
    "I: downloading packages": "download",
    "I: extracting archives": "unpack packages",
    "I: installing essential packages": "install the base",
    "I: installing remaining packages": "install packages",
    "I: running --customize-hook": "kernel",
}


class Reader:
    """Reads what mmdebstrap says, with what apt and dpkg say within it. `told`: step, and its share that is done."""

    def __init__(self, told: Callable[[str, float], None]) -> None:
        self._told = told
        self._step = next(iter(STEPS))
        self._packages = 1
        self._seen = 0

    def line(self, line: str) -> bool:
        """One line; whether it is of no use to people when the tool fails."""
        begun = next((step for words, step in _BEGINS.items() if line.startswith(words)), "")
        if begun:
            self._step, self._seen = begun, 0
        elif match := re.search(r"\b(\d+) newly installed", line):
            self._packages = max(1, int(match[1]))
        elif line.startswith(self._counts()):
            self._seen += 1
        else:
            return False
        self._told(self._step, self._seen / (self._packages * len(self._counts())))
        return not begun

    def _counts(self) -> tuple[str, ...]:
        """What is said once for each package."""
        match self._step:
            case "download":
                return ("Get:",)
            case "install the base" | "install packages":
                return ("Unpacking ", "Setting up ")
            case _:
                return ("\0",)


def bootstrap(root: Path, work: Path, inputs: Inputs, progress: Progress) -> None:
    """Make the directory `root`, with the packages of the kernel and of systemd's stub in taken-apart/.

    Raises ImageError.
    """
    packages = [*lines("packages.txt", inputs.arch), *(_VERITY_PACKAGES if inputs.verity else ())]
    sources = work / "sources.list"
    sources.write_text("\n".join(_host_sources()) + "\n")
    fetch = work / "fetch"
    fetch.write_text(_FETCH)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    reader = Reader(lambda step, share: tell(progress, step, share))
    run_watched(
        [
            *_own_mounts(),
            "mmdebstrap",
            "--verbose",  # so that it tells what apt and dpkg do
            "--variant=apt",
            "--mode=root",
            "--format=directory",
            f"--architectures={inputs.arch}",
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",  # no fsync per file: a build that dies is thrown away
            *excluded,
            f'--customize-hook=sh {fetch} "$1"',
            SUITE,
            root,
            sources,
        ],
        reader.line,
        name="mmdebstrap",
        environment={
            "KERNEL_PACKAGE": PLATFORMS[inputs.arch].kernel,
            "SOURCE_DATE_EPOCH": str(inputs.source_date_epoch),
            "DEBIAN_FRONTEND": "noninteractive",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


def _own_mounts() -> list[str]:
    """What gives a command mounts of its own: mmdebstrap's /proc and /sys in the root go with it, however it ends.

    Where that is not allowed it cannot mount anything either, and does without.
    """
    prefix = ["unshare", "--mount"]
    try:
        run([*prefix, "true"])
    except BuildError:
        return []
    return prefix


def _host_sources() -> list[str]:
    """The host's own Debian sources for our suite, as apt resolved them: the mirror is the host's choice."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    found = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian"])
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    kept = [line for line in dict.fromkeys(found.splitlines()) if line.split()[2] in suites]
    if not any(line.split()[2] == SUITE for line in kept):
        raise BuildError(
            f"the host's apt knows no Debian {SUITE} archive; add one to /etc/apt/sources.list.d and run apt-get update"
        )
    return kept
