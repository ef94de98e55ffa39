"""Where clouds answer a VM's questions about itself. Standard library only: worker and pod VM use it."""

from __future__ import annotations

METADATA_ADDRESSES = ("169.254.169.254", "fd00:ec2::254")
"""What a pod VM sends there never leaves the pod's namespace on the worker by the way of other packets, for the
worker's own service would answer. `metadatadoor` may lead it elsewhere."""
METADATA_PORT = 80
