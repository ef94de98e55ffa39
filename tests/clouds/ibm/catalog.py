"""Instance profiles and operating systems as the emulated region has them: names and sizes of real ones."""

from __future__ import annotations

from typing import Any

# name -> vCPUs, GiB, architecture, TDX, GPUs, GPU model
_PROFILES: dict[str, tuple[int, int, str, bool, int, str]] = {
    "bx2-2x8": (2, 8, "amd64", False, 0, ""),
    "bx2-4x16": (4, 16, "amd64", False, 0, ""),
    "bx2-8x32": (8, 32, "amd64", False, 0, ""),
    "cx2-2x4": (2, 4, "amd64", False, 0, ""),
    "mx2-2x16": (2, 16, "amd64", False, 0, ""),
    "bx3dc-2x10": (2, 10, "amd64", True, 0, ""),
    "bx3dc-4x20": (4, 20, "amd64", True, 0, ""),
    "gx3-16x80x1l4": (16, 80, "amd64", False, 1, "L4"),
    "gx3-32x160x2l4": (32, 160, "amd64", False, 2, "L4"),
    "bz2-2x8": (2, 8, "s390x", False, 0, ""),
    "bz2-4x16": (4, 16, "s390x", False, 0, ""),
    "mz2-2x16": (2, 16, "s390x", False, 0, ""),
    "bz2e-2x8": (2, 8, "s390x", False, 0, ""),
    "mz2e-2x16": (2, 16, "s390x", False, 0, ""),
}
# name -> architecture, family, vendor, version
_SYSTEMS = {
    "debian-12-amd64": ("amd64", "Debian GNU/Linux", "Debian", "12.x Bookworm"),
    "ubuntu-24-04-amd64": ("amd64", "Ubuntu Linux", "Canonical", "24.04 LTS Noble Numbat"),
    "ubuntu-24-04-s390x": ("s390x", "Ubuntu Linux", "Canonical", "24.04 LTS Noble Numbat"),
    "red-9-amd64": ("amd64", "Red Hat Enterprise Linux", "Red Hat", "9.x"),
    "red-9-s390x": ("s390x", "Red Hat Enterprise Linux", "Red Hat", "9.x"),
    "hyper-protect-1-0-s390x": ("s390x", "Hyper Protect", "IBM", "1.0"),
}


def vcpus(profile: str) -> int:
    return _PROFILES[profile][0]


def arch_of_profile(profile: str) -> str:
    return _PROFILES[profile][2]


def arch_of_system(system: str) -> str:
    return _SYSTEMS[system][0]


def profiles(base: str, zones: list[str]) -> dict[str, dict[str, Any]]:
    """All, by name."""
    return {name: _profile(base, name, zones) for name in _PROFILES}


def systems(base: str) -> dict[str, dict[str, Any]]:
    """All, by name."""
    return {name: _system(base, name) for name in _SYSTEMS}


def _system(base: str, name: str) -> dict[str, Any]:
    arch, family, vendor, version = _SYSTEMS[name]
    return {
        "allow_user_image_creation": True,
        "architecture": arch,
        "dedicated_host_only": False,
        "display_name": f"{family} {version} ({arch})",
        "family": family,
        "href": f"{base}/operating_systems/{name}",
        "name": name,
        "user_data_format": "cloud_init",
        "vendor": vendor,
        "version": version,
    }


def _fixed(value: Any) -> dict[str, Any]:
    return {"type": "fixed", "value": value}


def _enum(default: Any, values: list[Any]) -> dict[str, Any]:
    return {"type": "enum", "default": default, "values": values}


def _profile(base: str, name: str, zones: list[str]) -> dict[str, Any]:
    count, memory, arch, tdx, gpus, model = _PROFILES[name]
    profile = {
        "availability_class": _enum("standard", ["standard"]),
        "bandwidth": _fixed(4000),
        "cluster_network_attachment_count": _enum(0, [0]),
        "confidential_compute_modes": _enum("disabled", ["disabled", "tdx"] if tdx else ["disabled"]),
        "disks": [],
        "family": "gpu" if gpus else "balanced",
        "href": f"{base}/instance/profiles/{name}",
        "memory": _fixed(memory),
        "name": name,
        "network_attachment_count": {"type": "range", "min": 1, "max": 5},
        "network_bandwidth_mode": {"type": "fixed", "value": "pooled"},
        "network_interface_count": {"type": "range", "min": 1, "max": 5},
        "os_architecture": _enum(arch, [arch]),
        "port_speed": _fixed(16000),
        "reservation_terms": {"type": "enum", "values": []},
        "resource_type": "instance_profile",
        "secure_boot_modes": _enum(False, [False, True] if tdx else [False]),
        "status": "current",
        "supported_cluster_network_profiles": [],
        "threads_per_core": _enum(2, [1, 2]),
        "total_volume_bandwidth": {"type": "range", "min": 500, "max": 3500, "default": 1000, "step": 1},
        "vcpu_architecture": _fixed(arch),
        "vcpu_burst_limit": _fixed(100),
        "vcpu_count": _fixed(count),
        "vcpu_manufacturer": _fixed("ibm" if arch == "s390x" else "intel"),
        "vcpu_percentage": _enum(100, [100]),
        "volume_bandwidth_qos_modes": _enum("pooled", ["pooled", "weighted"]),
        "zones": [{"href": f"{base}/regions/{zone.rpartition('-')[0]}/zones/{zone}", "name": zone} for zone in zones],
    }
    if gpus:
        profile["gpu_count"] = _fixed(gpus)
        profile["gpu_manufacturer"] = {"type": "enum", "values": ["nvidia"]}
        profile["gpu_memory"] = _fixed(24 * gpus)
        profile["gpu_model"] = {"type": "enum", "values": [model]}
    return profile
