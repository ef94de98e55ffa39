"""The emulated IBM Cloud as a test sees it: a process to start, keys that lead there, and control methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.clouds.emulated import TlsEmulator
from tests.clouds.ibm.api import API_KEY
from tests.clouds.ibm.conditions import MAX_PAGE
from tests.clouds.ibm.names import name_of

REGION = "us-south"


@dataclass(frozen=True)
class Seed:
    """What a launch names, by id."""

    region: str
    vpc: str
    subnets: dict[str, str]  # zone -> subnet
    security_group: str
    cluster_group: str  # kube-c0ffee
    key: str
    images: dict[str, str]  # x86_64, s390x, and secure: one of Secure Execution

    @property
    def zones(self) -> list[str]:
        return list(self.subnets)


class IbmEmulator(TlsEmulator):
    """One region. What may be kept (`keeping`): virtual_network_interfaces, volumes."""

    def __init__(self, region: str = REGION) -> None:
        super().__init__("tests.clouds.ibm", name_of, "--region", region)
        self.region = region

    @property
    def object_storage_url(self) -> str:
        """Of S3 clients, path style."""
        return f"{self.url}/cos"

    def environ(self, url: str = "") -> dict[str, str]:
        """What leads a provider here, or to `url` (a proxy), and nowhere else. Tags always come here."""
        place = url or self.url
        return {
            "IBMCLOUD_API_KEY": API_KEY,
            "IBMCLOUD_IAM_ENDPOINT": f"{place}/identity/token",
            "IBMCLOUD_VPC_ENDPOINT": f"{place}/v1",
            "IBMCLOUD_TAGGING_ENDPOINT": self.url,
            "IBMCLOUD_METADATA_ENDPOINT": self.control_url,
            "IBMCLOUD_ZONE": f"{self.region}-1",
            "REQUESTS_CA_BUNDLE": str(self.ca_file),
        }

    # Control verbs

    def seed(self, zones: int = 3, subnet_bits: int = 20) -> Seed:
        """A network in 127.50.0.0/16 with a subnet of `subnet_bits` in each zone, groups, a key and three images."""
        return Seed(**self._do("seed", zones=zones, subnet_bits=subnet_bits))

    def dedicated(self, zone: str, vcpus: int = 4) -> tuple[str, str]:
        """A dedicated host with room for so many vCPUs, and its group, which has endless room."""
        made = self._do("dedicated", zone=zone, vcpus=vcpus)
        return str(made["host"]), str(made["group"])

    def other_instance(self, prototype: dict[str, Any]) -> str:
        """Somebody else's instance; its id."""
        return str(self._do("other_instance", prototype=prototype))

    def leave(self, name: str, zone: str, user_tags: list[str]) -> None:
        """A volume and an interface of that name that nothing uses."""
        self._do("leave", name=name, zone=zone, user_tags=user_tags)

    def worker(self, **document: Any) -> None:
        """The worker's own instance, as its metadata tells it."""
        self._do("worker", document=document)

    def delays(self, pending: float = 0.0, boot: float = 0.0, shutting_down: float = 0.0) -> None:
        """Seconds from the create call to running, from there to an answering guest, from deletion to gone."""
        self._do("delays", pending=pending, boot=boot, shutting_down=shutting_down)

    def image_delay(self, seconds: float) -> None:
        """From the import of an image until it is available."""
        self._do("image_delay", seconds=seconds)

    def quota(self, vcpus: int | None) -> None:
        """vCPUs of all instances."""
        self._do("quota", vcpus=vcpus)

    def late_addresses(self) -> None:
        """From now on an instance has its address only when it runs."""
        self._do("late_addresses")

    def page_size(self, size: int = MAX_PAGE) -> None:
        self._do("page_size", size=size)

    def counters(self) -> dict[str, Any]:
        """calls and errors by request, states, made (name -> ids), interfaces, volumes, floating_ips, tagged."""
        return dict(self._do("counters"))

    def instances(self) -> list[dict[str, Any]]:
        """All that exist, seen past every list that lags."""
        return list(self._do("instances"))

    def overview(self) -> dict[str, Any]:
        """instances in short, unused (kind -> names of what no instance has), made (name -> ids), ever (kind -> how
        many were made)."""
        return dict(self._do("overview"))

    def resources(self, kind: str) -> list[dict[str, Any]]:
        """All of a collection, such as "volumes"."""
        return list(self._do("resources", kind=kind))

    def stop(self, instance_id: str, status: str = "stopped") -> None:
        """Let an instance end by itself."""
        self._do("stop", instance_id=instance_id, status=status)
