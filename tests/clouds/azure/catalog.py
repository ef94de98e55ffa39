"""VM sizes of the emulated region, as Microsoft.Compute/skus tells them."""

from __future__ import annotations

from typing import Any

# Name -> family, vCPUs, GiB, architecture, GPUs, confidential, spot.
SIZES: dict[str, tuple[str, int, float, str, int, bool, bool]] = {
    "Standard_DC2as_v5": ("standardDCASv5Family", 2, 8, "x64", 0, True, True),
    "Standard_DC4as_v5": ("standardDCASv5Family", 4, 16, "x64", 0, True, True),
    "Standard_EC4as_v5": ("standardECASv5Family", 4, 32, "x64", 0, True, True),
    "Standard_D2as_v5": ("standardDASv5Family", 2, 8, "x64", 0, False, True),
    "Standard_D4as_v5": ("standardDASv5Family", 4, 16, "x64", 0, False, True),
    "Standard_F2s_v2": ("standardFSv2Family", 2, 4, "x64", 0, False, True),
    "Standard_E2as_v5": ("standardEASv5Family", 2, 16, "x64", 0, False, True),
    "Standard_B2als_v2": ("standardBalsv2Family", 2, 4, "x64", 0, False, False),
    "Standard_D2ps_v5": ("standardDPSv5Family", 2, 8, "Arm64", 0, False, True),
    "Standard_NC4as_T4_v3": ("Standard NCASv3_T4 Family", 4, 28, "x64", 1, False, True),
    "Standard_E4-2as_v5": ("standardEASv5Family", 4, 32, "x64", 0, False, True),
    "Standard_D2_v5": ("standardDv5Family", 2, 8, "x64", 0, False, True),
    "Standard_DS2_v2": ("standardDSv2Family", 2, 7, "x64", 0, False, True),
}
_PREMIUM = {"PremiumIO": "True", "HyperVGenerations": "V1,V2"}
# What some have that is not as most have it.
_OTHER = {
    "Standard_E4-2as_v5": {"vCPUsAvailable": "2"},
    "Standard_D2_v5": {"PremiumIO": "False"},
    "Standard_DS2_v2": {"HyperVGenerations": "V1", "TrustedLaunchDisabled": "True"},
}


_USUAL = dict(SIZES)


def reset() -> None:
    """Forget what was added."""
    SIZES.clear()
    SIZES.update(_USUAL)


def add(name: str, family: str, cpus: int, memory: float) -> None:
    """Another size, ordinary in all else."""
    SIZES[name] = (family, cpus, memory, "x64", 0, False, True)


def vcpus(size: str) -> int:
    """Of one VM."""
    return SIZES[size][1]


def skus(location: str, barred: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them; `barred` has restrictions: size, and zones or none for the region."""
    return [_sku(name, location, [one for one in barred if one["size"] == name]) for name in SIZES]


def _sku(name: str, location: str, barred: list[dict[str, Any]]) -> dict[str, Any]:
    family, cpus, memory, arch, gpus, confidential, spot = SIZES[name]
    has = {
        "vCPUs": cpus,
        "MemoryGB": f"{memory:g}",
        "CpuArchitectureType": arch,
        "GPUs": gpus,
        "LowPriorityCapable": spot,
        **_PREMIUM,
        **_OTHER.get(name, {}),
    }
    if confidential:
        has["ConfidentialComputingType"] = "SNP"
    return {
        "resourceType": "virtualMachines",
        "name": name,
        "tier": "Standard",
        "size": name.removeprefix("Standard_"),
        "family": family,
        "locations": [location],
        "locationInfo": [{"location": location, "zones": ["1", "2", "3"], "zoneDetails": []}],
        "capabilities": [{"name": key, "value": str(value)} for key, value in has.items() if value not in (0,)],
        "restrictions": [
            {
                "type": "Zone" if one.get("zones") else "Location",
                "values": [location],
                "restrictionInfo": {"locations": [location], "zones": one.get("zones", [])},
                "reasonCode": one.get("reason", "NotAvailableForSubscription"),
            }
            for one in barred
        ],
    }
