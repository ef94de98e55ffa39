"""The lab's base volume: built from this checkout, named by what it is made from, so that no old one is used.

`python -m tests.lab.image` makes it and prints its name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import libvirt

import caa
from imagebuilder.recipe import Recipe, read_inputs

URI = "qemu:///system"
POOL = "default"
NETWORK = "default"
PREFIX = "podvm-lab-"


# Beside the stand-in agent: a web server inside the pod's network namespace, if the VM has one.
PAYLOAD = Path(__file__).parent / "payload"


def volume_name() -> str:
    """The name of the volume that belongs to this checkout."""
    inputs = read_inputs(Recipe(Path(caa.__file__).parent, PAYLOAD), "amd64")
    return f"{PREFIX}{inputs.id.hex[:12]}.qcow2"


def lab_environ() -> dict[str, str]:
    """What a service on this machine's libvirt is configured by: small VMs, for two cores emulate them."""
    return {
        "CLOUD_PROVIDER": "libvirt",
        "LIBVIRT_URI": URI,
        "LIBVIRT_POOL": POOL,
        "LIBVIRT_VOL_NAME": volume_name(),
        "LIBVIRT_CPU": "1",
        "LIBVIRT_MEMORY": "512",
        "LIBVIRT_ROOT_DISK_SIZE": "2",
        "PODVM_PAYLOAD": str(PAYLOAD),
        "PODVM_IMAGES": "no-such-image",  # so that a start can tell that it is missing
    }


def ensure_lab_image() -> str:
    """Build and upload the volume if it is not there, and remove those of older checkouts that nothing uses."""
    name = volume_name()
    with tempfile.TemporaryDirectory(prefix="caa-lab-", dir="/var/tmp") as state:  # a ledger for this once
        environ = os.environ | lab_environ() | {"CAA_STATE_DIR": state}
        subprocess.run([sys.executable, "-m", "caa.cli.main", "image", "ensure"], env=environ, check=True)
    connection = libvirt.open(URI)
    try:
        pool = connection.storagePoolLookupByName(POOL)
        overlays = "".join(v.XMLDesc() for v in pool.listAllVolumes() if not v.name().startswith(PREFIX))
        for volume in pool.listAllVolumes():
            if volume.name().startswith(PREFIX) and volume.name() != name and volume.name() not in overlays:
                volume.delete()
    finally:
        connection.close()
    return name


if __name__ == "__main__":
    print(ensure_lab_image())
