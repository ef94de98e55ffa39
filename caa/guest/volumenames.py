"""The names of cloud volumes. Apart from `volumes`, whose import takes its time, and which few pods need."""

from __future__ import annotations

from pathlib import Path

CLOUD_VOLUMES = "io.confidentialcontainers.org.cloud_volumes"
TARGET_PATH = "io.confidentialcontainers.org.peerpodvolumes.target_path"
"""Annotations that the worker sets: disks of the VM that are mounts of the container; paths to wait for."""
BASE = Path("/run/cloud-volumes")
"""Where those disks are mounted."""
