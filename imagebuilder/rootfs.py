"""The root file system: a minimal Debian, the kernel's modules, the guest's code, our units and the payload."""

from __future__ import annotations

import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.bootstrap import bootstrap
from imagebuilder.modules import below, choose
from imagebuilder.platforms import PLATFORMS
from imagebuilder.recipe import AGENT, GUEST_PARTS, RECIPE, Inputs, Recipe, lines, plain_mode
from imagebuilder.steps import Progress, tell
from imagebuilder.tools import BuildError, run

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
    "usr/lib/{triple}/libapt-pkg.so.6.0",
    "usr/lib/{triple}/perl-base",
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
class Kernel:
    """The kernel's image, its release name, and systemd's EFI program that starts it."""

    vmlinuz: Path
    release: str
    stub: Path


@dataclass(frozen=True, slots=True)
class RootFs:
    """A finished root: its directory, and the kernel beside it."""

    path: Path
    kernel: Kernel


def build_rootfs(work: Path, inputs: Inputs, recipe: Recipe, progress: Progress) -> RootFs:
    """Make the root below `work`. Raises ImageError."""
    root, platform = work / "root", PLATFORMS[inputs.arch]
    begun = time.time()
    bootstrap(root, work, inputs, progress)
    tell(progress, "kernel")
    kernel = _take_kernel(root, work, inputs.arch)
    tell(progress, "files")
    _copy(RECIPE / "root", root)
    _copy_guest(root, recipe.guest_source)
    if recipe.payload:
        _overlay(root, recipe.payload, inputs.source_date_epoch)
    _settle_units(root, inputs)
    for name in _UNNEEDED:
        _remove(root / name.format(triple=platform.triple))
    for name in ("var/log", "boot", "media/cidata"):
        _directory(root / name)
    for name, text in (("etc/machine-id", ""), ("etc/hostname", "podvm\n")):  # systemd draws an id per boot
        (root / name).write_text(text)
        (root / name).chmod(0o644)
    _remove(root / "etc/resolv.conf")
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/resolv.conf")
    _settle_times(root, begun, inputs.source_date_epoch)
    return RootFs(root, kernel)


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


def _take_kernel(root: Path, work: Path, arch: str) -> Kernel:
    """Take the kernel image, the modules a pod VM can use, and systemd's stub out of their packages."""
    packages = root / "taken-apart"
    tree = work / "kernel"
    tree.mkdir()
    stub = Path("usr/lib/systemd/boot/efi", PLATFORMS[arch].stub)
    _unpack(next(packages.glob("systemd-boot-efi_*.deb")), tree, f"./{stub}")
    _unpack(next(packages.glob("linux-image-*.deb")), tree, "./lib/modules/*", "./boot/vmlinuz-*")
    shutil.rmtree(packages)
    modules = next((tree / "lib/modules").iterdir())
    run(["depmod", "-b", tree, modules.name])
    chosen = set(choose(modules, lines("kernel-modules.txt", arch), below, "kernel-modules.txt"))
    for path in modules.rglob("*.ko"):
        if str(path.relative_to(modules)) not in chosen:
            path.unlink()
    target = root / "usr/lib/modules" / modules.name
    _directory(target.parent)
    shutil.move(modules, target)
    run(["depmod", "-b", root, modules.name])
    return Kernel(next((tree / "boot").iterdir()), modules.name, tree / stub)


def _unpack(package: Path, tree: Path, *names: str) -> None:
    archive = tree.with_name("package.tar")
    run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "sh", package, archive])
    run(["tar", "-xf", archive, "-C", tree, "--wildcards", *names])
    archive.unlink()


def _copy(source: Path, target: Path) -> None:
    """A tree of ours over the root: without what Python compiled, and with the same modes in every checkout."""
    for path in [source, *sorted(source.rglob("*"))]:
        copy = target / path.relative_to(source)
        if "__pycache__" in path.parts:
            continue
        if path.is_dir():
            _directory(copy)
        else:
            shutil.copyfile(path, copy)
            copy.chmod(stat.S_IMODE(plain_mode(path.stat().st_mode)))


def _copy_guest(root: Path, guest_source: Path) -> None:
    target = root / "usr/lib/python3/dist-packages" / guest_source.name
    _directory(target)
    for part in GUEST_PARTS:
        _copy(guest_source / part, target / part)
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
    _directory(path.parent)
    path.unlink(missing_ok=True)
    os.symlink(target, path)


def _directory(path: Path) -> None:
    """Make it and what is missing above it, with the same mode under any umask."""
    for one in (*reversed(path.parents), path):
        if not one.exists():
            one.mkdir()
            one.chmod(0o755)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
