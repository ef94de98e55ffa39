"""The rights that the manifests give to a container, and processes that have those and no others."""

from __future__ import annotations

from pathlib import Path

import yaml

NODE = Path(__file__).parents[2] / "docker" / "kubernetes" / "node"
# linux/capability.h has 41; the newest is CHECKPOINT_RESTORE.
_COUNT = 41
_NUMBERS = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "SYS_ADMIN": 21}


def granted(name: str) -> list[str]:
    """What the container of `serve` or `proxy` may do, as its manifest has it."""
    manifest = yaml.safe_load((NODE / f"{name}.yaml").read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities["drop"] == ["ALL"]
    return list(capabilities.get("add", []))


def confined(capabilities: list[str], root: Path | None = None) -> list[str]:
    """The beginning of a command that runs a shell's program, the next argument, as root with these rights alone.

    With `root` as its root directory, where there is `sh` only.
    """
    kept = {_NUMBERS[name] for name in capabilities}
    drop = ",".join(str(number) for number in range(_COUNT) if number not in kept)
    inside = [f"--chroot={root}"] if root else []
    return ["capsh", *inside, f"--drop={drop}", "--shell=/bin/sh", "--", "-c"]
