"""The root file system: a minimal Debian, the kernel's modules, the guest's code, our units and the payload."""

from __future__ import annotations

import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.modules import below, choose
from imagebuilder.recipe import AGENT, GUEST_PARTS, KERNEL_PACKAGE, RECIPE, SUITE, Inputs, Recipe, lines
from imagebuilder.tools import BuildError, run

# Runs inside mmdebstrap, with its apt, so that the kernel is fetched and verified like any other package.
_FETCH_KERNEL = """set -eu
mkdir "$1/kernel-package"
cd "$1/kernel-package"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends "$KERNEL_PACKAGE" | sed -n 's/^ *Depends: \\(linux-image-.*\\)/\\1/p')
apt-get -q -o APT::Sandbox::User=root download "$package"
"""

# Sets up dm-verity in the initrd, for which libcryptsetup would be ten times as large.
VERITY_PACKAGES = ("dmsetup",)

# Only needed to install packages, which nobody does in a pod VM.
_UNNEEDED = (
    "boot",
    "etc/apt",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/init.d",
    "usr/bin/perl",
    "usr/bin/perl5.36.0",
    "usr/lib/apt",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    # What they generate units for (fstab, terminals, encrypted disks, System V scripts) is not in this image.
    "usr/lib/systemd/system-generators",
    "usr/lib/udev/hwdb.bin",
    "usr/lib/udev/hwdb.d",
    "usr/lib/x86_64-linux-gnu/libapt-pkg.so.6.0",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/perl5",
    "usr/share/zoneinfo",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/lib/apt",
    "var/log",
)


@dataclass(frozen=True, slots=True)
class RootFs:
    """A finished root: its directory, the kernel image beside it, and the kernel's release name."""

    path: Path
    vmlinuz: Path
    release: str
    packages: dict[str, str]


def build_rootfs(work: Path, inputs: Inputs, recipe: Recipe) -> RootFs:
    """Make the root below `work`. Raises ImageError."""
    root = work / "root"
    begun = time.time()
    _bootstrap(root, work, inputs)
    packages = _installed(root)
    vmlinuz, release, kernel_version = _take_kernel(root, work)
    packages[f"linux-image-{release}"] = kernel_version
    shutil.copytree(RECIPE / "root", root, dirs_exist_ok=True, symlinks=True, copy_function=shutil.copy)
    _copy_guest(root, recipe.guest_source)
    if recipe.payload:
        _overlay(root, recipe.payload, inputs.source_date_epoch)
    _settle_units(root, inputs)
    for name in _UNNEEDED:
        _remove(root / name)
    (root / "var/log").mkdir()
    (root / "boot").mkdir()
    (root / "media/cidata").mkdir(parents=True)
    (root / "etc/machine-id").write_text("")  # systemd draws one per boot
    (root / "etc/hostname").write_text("podvm\n")
    _remove(root / "etc/resolv.conf")
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/resolv.conf")
    _settle_times(root, begun, inputs.source_date_epoch)
    return RootFs(root, vmlinuz, release, packages)


def _settle_times(root: Path, begun: float, epoch: int) -> None:
    """Everything has the same time but the files that came with one: Python's compiled files know their sources' times.

    Those of packages and payload are the same in each build. Files that this build made are younger than its beginning.
    """
    for directory, directories, names in os.walk(root):
        for name in (".", *directories, *names):
            path = os.path.join(directory, name)
            found = os.lstat(path)
            if not stat.S_ISREG(found.st_mode) or found.st_mtime >= begun:
                os.utime(path, (epoch, epoch), follow_symlinks=False)


def _bootstrap(root: Path, work: Path, inputs: Inputs) -> None:
    sources = work / "sources.list"
    sources.write_text("\n".join(_host_sources()) + "\n")
    fetch = work / "fetch-kernel"
    fetch.write_text(_FETCH_KERNEL)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
    run(
        [
            "mmdebstrap",
            "--variant=apt",
            "--mode=root",
            "--format=directory",
            f"--architectures={inputs.arch}",
            f"--include={','.join([*lines('packages.txt'), *(VERITY_PACKAGES if inputs.verity else ())])}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",  # no fsync per file: a build that dies is thrown away
            *excluded,
            f'--customize-hook=sh {fetch} "$1"',
            SUITE,
            root,
            sources,
        ],
        environment={
            "KERNEL_PACKAGE": KERNEL_PACKAGE[inputs.arch],
            "SOURCE_DATE_EPOCH": str(inputs.source_date_epoch),
            "DEBIAN_FRONTEND": "noninteractive",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )


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


def _installed(root: Path) -> dict[str, str]:
    form = "${Package} ${Version}\n"
    listing = run(["dpkg-query", f"--admindir={root / 'var/lib/dpkg'}", "--show", "--showformat", form])
    return dict(line.split() for line in listing.splitlines())


def _take_kernel(root: Path, work: Path) -> tuple[Path, str, str]:
    """Take the kernel image and the modules a pod VM can use out of the kernel package; (image, release, version)."""
    package = next((root / "kernel-package").glob("*.deb"))
    archive = work / "kernel.tar"
    run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "sh", package, archive])
    tree = work / "kernel"
    tree.mkdir()
    run(["tar", "-xf", archive, "-C", tree, "--wildcards", "./lib/modules/*", "./boot/vmlinuz-*"])
    archive.unlink()
    version = run(["dpkg-deb", "--field", package, "Version"]).strip()
    shutil.rmtree(package.parent)
    modules = next((tree / "lib/modules").iterdir())
    run(["depmod", "-b", tree, modules.name])
    chosen = set(choose(modules, lines("kernel-modules.txt"), below, "kernel-modules.txt"))
    for path in modules.rglob("*.ko"):
        if str(path.relative_to(modules)) not in chosen:
            path.unlink()
    target = root / "usr/lib/modules" / modules.name
    shutil.move(modules, target)
    run(["depmod", "-b", root, modules.name])
    return next((tree / "boot").iterdir()), modules.name, version


def _copy_guest(root: Path, guest_source: Path) -> None:
    target = root / "usr/lib/python3/dist-packages" / guest_source.name
    target.mkdir()
    for part in GUEST_PARTS:
        source = guest_source / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / part)
    # Compiled once here, as Debian does with its own: the pod VM would do it at each boot. Unchecked, for nobody edits
    # the sources there.
    command = ["python3", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    run(["chroot", root, *command, f"/usr/lib/python3/dist-packages/{guest_source.name}"])


def _overlay(root: Path, payload: Path, epoch: int) -> None:
    # --keep-directory-symlink: in a merged /usr, the payload's /bin must not replace the link of that name.
    extract: list[str | Path] = ["tar", "-C", root, "--keep-directory-symlink", "--numeric-owner", "-xpf"]
    if payload.is_dir():
        archive = root.parent / "payload.tar"
        run(["tar", "-C", payload, "--owner=0", "--group=0", f"--mtime=@{epoch}", "-cf", archive, "."])
        run([*extract, archive])
        archive.unlink()
    else:
        run([*extract, payload])


def _settle_units(root: Path, inputs: Inputs) -> None:
    units = root / "etc/systemd/system"
    for place in (units, root / "usr/lib/systemd/system"):  # what the packages enabled
        for wants in place.glob("*.wants"):
            shutil.rmtree(wants)
    agent = "kata-agent.service" if inputs.agent == "kata-agent" else "standin-agent.service"
    if inputs.agent == "kata-agent":
        (root / AGENT).chmod(0o755)
    for unit in [*lines("enabled-units.txt"), agent]:
        _link(units / "multi-user.target.wants" / unit, _unit_path(root, unit))
    _link(units / "default.target", "/lib/systemd/system/multi-user.target")


def _unit_path(root: Path, unit: str) -> str:
    for place in ("etc/systemd/system", "lib/systemd/system"):
        if (root / place / unit).exists():
            return f"/{place}/{unit}"
    raise BuildError(f"there is no unit {unit} to enable")


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.symlink(target, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
