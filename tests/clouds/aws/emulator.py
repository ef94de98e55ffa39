"""The emulated EC2 as a test sees it: a process to start, an environment for SDKs, and control methods."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from tests.clouds.aws.conditions import EC2_LIMITS, MAX_PAGE
from tests.clouds.emulated import Controls
from tests.clouds.process import ServerProcess

REGION = "us-east-1"


@dataclass(frozen=True)
class Seed:
    """What a launch names, by id."""

    region: str
    vpc: str
    subnets: dict[str, str]  # zone -> subnet, 4,091 addresses each unless asked otherwise
    security_group: str
    key_name: str
    images: dict[str, str]  # x86_64 and arm64 -> AMI

    @property
    def zones(self) -> list[str]:
        return list(self.subnets)


class AwsEmulator(Controls):
    """Context manager: the process runs inside it. Starts without limits, delays, or anything seeded."""

    def __init__(self, region: str = REGION) -> None:
        self.region = region
        self.server = ServerProcess("tests.clouds.aws", ["--region", region])

    def __enter__(self) -> AwsEmulator:
        self.server.__enter__()
        self.port = int(self.server.ready_line)
        self._http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self.server.__exit__(kind, value, trace)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self, url: str = "") -> dict[str, str]:
        """What leads an AWS SDK here, or to `url` (a proxy), and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-checked",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    # Control verbs

    def seed(self, zones: int = 3, subnet_bits: int = 20) -> Seed:
        """A network 127.50.0.0/16 with a subnet of `subnet_bits` in each zone, a group, a key pair and two images."""
        return Seed(**self._do("seed", zones=zones, subnet_bits=subnet_bits))

    def delays(self, pending: float = 0.0, boot: float = 0.0, shutting_down: float = 0.0) -> None:
        """Seconds from launch to running, from there to an answering guest, from terminate to terminated."""
        self._do("delays", pending=pending, boot=boot, shutting_down=shutting_down)

    def quota(self, **vcpus: int) -> None:
        """`on_demand` and `spot` vCPUs; a market that is not given has no quota."""
        self._do("quota", vcpus={market.replace("_", "-"): limit for market, limit in vcpus.items()})

    def limits(self, limits: dict[str, tuple[float, float]] | None = None) -> None:
        """Request limits, EC2's own unless given; {} for none."""
        self._do("limits", limits=EC2_LIMITS if limits is None else limits)

    def page_size(self, size: int = MAX_PAGE) -> None:
        self._do("page_size", size=size)

    def counters(self) -> dict[str, Any]:
        """calls and errors by action, states, tokens (token -> ids), interfaces, volumes."""
        return dict(self._do("counters"))

    def disks(self) -> dict[str, Any]:
        """images (id -> name), snapshots with tags (id -> status), ebs: what its direct APIs got."""
        return dict(self._do("disks"))

    def end(self, instance_id: str, code: str, message: str = "") -> None:
        """Let EC2 end an instance by itself, e.g. "Server.SpotInstanceTermination"."""
        self._do("end", instance_id=instance_id, code=code, message=message)

    def guests(self) -> dict[str, str]:
        """Address, private or public -> id of the instance whose guest answers there now."""
        return dict(self._do("guests")["guests"])
