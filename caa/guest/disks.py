"""Which block device is data disk number N of this pod VM. Each cloud says it in another way."""

from __future__ import annotations

import time
from pathlib import Path

from caa.guest.log import log
from caa.ttrpc.frames import Code, StatusError

# A disk is attached with the VM, or while it boots. Half of what the incumbent's guest waits in all.
_PATIENCE_SECONDS = 45.0
_POLL_SECONDS = 0.2


class Disks:
    """The VM's disks. All arguments are for tests; the pod VM uses the defaults."""

    def __init__(
        self,
        devices: Path = Path("/dev"),
        blocks: Path = Path("/sys/block"),
        mounts: Path = Path("/proc/self/mounts"),
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self._devices = devices
        self._blocks = blocks
        self._mounts = mounts
        self._patience = patience

    def find(self, lun: int, disk_id: str) -> Path:
        """The device, as soon as it is there. Raises StatusError NOT_FOUND naming number and id."""
        deadline = time.monotonic() + self._patience
        while (device := self._look(lun, disk_id)) is None:
            if time.monotonic() >= deadline:
                raise StatusError(
                    Code.NOT_FOUND,
                    f"no data disk {lun} (disk_id {disk_id[:100]!r}) after {self._patience:.0f} s; "
                    f"there are {', '.join(sorted(path.name for path in self._blocks.iterdir())) or 'none'}",
                )
            time.sleep(_POLL_SECONDS)
        log(f"data disk {lun} is {device}")
        return device

    def _look(self, lun: int, disk_id: str) -> Path | None:
        # EBS: the serial number is the volume's id. No other disk will do, whatever its number.
        if disk_id.startswith("vol-"):
            return self._by_serial(disk_id.replace("-", ""))
        # Azure: links by the number, made by rules of the image.
        for link in (f"disk/azure/data/by-lun/{lun}", f"disk/azure/scsi1/lun{lun}"):
            if (self._devices / link).exists():
                return (self._devices / link).resolve()
        # virtio: vda is the system's, the data disks follow in order.
        if (self._blocks / "vda").exists():
            name = f"vd{chr(ord('b') + lun)}"
            return self._devices / name if lun < 25 and (self._blocks / name).exists() else None
        return self._by_scsi_lun(lun)

    def _by_serial(self, serial: str) -> Path | None:
        for block in sorted(self._blocks.iterdir()):
            try:
                if (block / "device/serial").read_text().strip() == serial:
                    return self._devices / block.name
            except (OSError, UnicodeDecodeError):
                continue
        return None

    def _by_scsi_lun(self, lun: int) -> Path | None:
        """Host 0 holds the system's disks on the clouds that number by LUN, so it comes last and only if blank."""
        found: list[tuple[bool, str]] = []
        for block in self._blocks.iterdir():
            address = _scsi_address(block)
            if address is None or address[3] != lun or self._in_use(block.name):
                continue
            partitioned = any((part / "partition").exists() for part in block.iterdir())
            if address[0] != 0 or not partitioned:
                found.append((address[0] == 0, block.name))
        return self._devices / min(found)[1] if found else None

    def _in_use(self, name: str) -> bool:
        devices = (line.partition(" ")[0] for line in self._mounts.read_text("utf-8", "replace").splitlines())
        return any(device.startswith(f"/dev/{name}") for device in devices)


def _scsi_address(block: Path) -> tuple[int, int, int, int] | None:
    """Host, channel, target and LUN, the name of the directory that `device` links to."""
    parts = (block / "device").resolve().name.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        return None
    host, channel, target, lun = map(int, parts)
    return host, channel, target, lun
