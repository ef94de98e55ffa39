"""Service Quotas of EC2, which moto does not have: the vCPUs that a test set, for every bucket of a market."""

from __future__ import annotations

import json
from collections.abc import Mapping

TARGET = "ServiceQuotasV20190624.GetServiceQuota"
# EC2's codes of spot quotas; all others that are asked for are of on-demand ones.
_SPOT = ("L-34B43A08", "L-88CF9481", "L-3819A6DF", "L-7212CCBC", "L-B5D1601B", "L-6B0D517C", "L-85EED4F7", "L-E3A00192")
# What stands for "no quota was set".
_ENDLESS = 1_000_000.0


def answer(body: bytes, vcpus: Mapping[str, int]) -> bytes:
    """The reply to GetServiceQuota."""
    asked = json.loads(body)
    value = vcpus.get("spot" if asked["QuotaCode"] in _SPOT else "on-demand", _ENDLESS)
    quota = {"ServiceCode": asked["ServiceCode"], "QuotaCode": asked["QuotaCode"], "Value": float(value)}
    return json.dumps({"Quota": quota}).encode()
