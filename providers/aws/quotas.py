"""What is left of the account's vCPU quotas.

EC2 counts the vCPUs of all running instances of a region in buckets by family, apart for on-demand and spot ("Amazon
EC2 instance quotas" in its user guide; the codes are those of Service Quotas).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from providers.aws.catalog import InstanceType
from providers.aws.client import Ec2
from providers.aws.settings import AwsKeys
from providers.base import Market, Problem

# What an instance type's name begins with -> bucket. Others are in the bucket "Standard".
_BUCKETS = {
    "f": "F",
    "g": "G and VT",
    "vt": "G and VT",
    "p": "P",
    "inf": "Inf",
    "trn": "Trn",
    "dl": "DL",
    "x": "X",
    "u": "High Memory",
    "hpc": "HPC",
}
_STANDARD = "Standard (A, C, D, H, I, M, R, T, Z)"
_ON_DEMAND = {
    _STANDARD: "L-1216C47A",
    "F": "L-74FC7D96",
    "G and VT": "L-DB2E81BA",
    "P": "L-417A185B",
    "Inf": "L-1945791B",
    "Trn": "L-2C3B7624",
    "DL": "L-6E869C2A",
    "X": "L-7295265B",
    "High Memory": "L-43DA4232",
    "HPC": "L-F7808C92",
}
_SPOT = {
    _STANDARD: "L-34B43A08",
    "F": "L-88CF9481",
    "G and VT": "L-3819A6DF",
    "P": "L-7212CCBC",
    "Inf": "L-B5D1601B",
    "Trn": "L-6B0D517C",
    "DL": "L-85EED4F7",
    "X": "L-E3A00192",
}
_CODES = {Market.ON_DEMAND: _ON_DEMAND, Market.SPOT: _SPOT}
# Those count until they are terminated.
_COUNTED = ["pending", "running"]


def bucket(instance_type: str) -> str:
    """The bucket of quotas that a type is counted in."""
    family = re.match(r"[a-z]+", instance_type)
    return _BUCKETS.get(family[0] if family else "", _STANDARD)


def shortages(ec2: Ec2, keys: AwsKeys, types: Mapping[str, InstanceType]) -> list[Problem]:
    """A problem for each bucket and market in which a configured type does not fit any more."""
    used: Counter[tuple[Market, str]] = Counter()
    running = [{"Name": "instance-state-name", "Values": _COUNTED}]
    for reservation in ec2.pages("describe_instances", "Reservations", Filters=running, MaxResults=1000):
        for one in reservation["Instances"]:
            market = Market.SPOT if one.get("InstanceLifecycle") == "spot" else Market.ON_DEMAND
            cpu = one.get("CpuOptions", {})
            used[market, bucket(one["InstanceType"])] += cpu.get("CoreCount", 0) * cpu.get("ThreadsPerCore", 1)
    found = []
    by_bucket: dict[tuple[Market, str], list[InstanceType]] = {}
    for kind in types.values():
        for market in keys.markets:
            by_bucket.setdefault((market, bucket(kind.name)), []).append(kind)
    for (market, name), kinds in sorted(by_bucket.items()):
        code = _CODES[market].get(name)
        if code is None:  # not sold in this market
            continue
        limit = ec2.quota(code)
        left = max(0.0, limit - used[market, name])
        short = sorted(kind.name for kind in kinds if kind.vcpus > left)
        if short:
            found.append(
                Problem(
                    "PODVM_INSTANCE_TYPES",
                    f"{', '.join(short)}: the quota of {market.value} instances of the family {name} ({code}) is "
                    f"{limit:g} vCPUs in {ec2.region}, and {left:g} are left; ask AWS for more, or choose other types",
                )
            )
    return found
