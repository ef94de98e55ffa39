"""Where the worker is, for keys that are not set: its node's labels first, then its own instance metadata.

The labels come in the mapping that the provider is built from, under the labels' own names, so whoever can ask
Kubernetes for the node only has to add them there.
"""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from providers.base import UnavailableError
from providers.ibmcloud.settings import IbmCloudKeys

REGION_LABEL = "topology.kubernetes.io/region"
ZONE_LABEL = "topology.kubernetes.io/zone"
# One is of the provider's CSI driver, the other of IBM Cloud Kubernetes Service.
SUBNET_LABELS = ("ibm-provider.kubernetes.io/subnet-id", "ibm-cloud.kubernetes.io/subnet-id")
LABELS = (REGION_LABEL, ZONE_LABEL, *SUBNET_LABELS)

# The service is on the same host and answers in milliseconds; where there is none, packets vanish.
TIMEOUT_SECONDS = 1.0
# Long enough for the one read that a token is for; the shortest that the service gives is 5.
_TOKEN_SECONDS = 60
_METADATA_VERSION = "2025-01-21"
# Public and private addresses of the API begin with the region.
_ENDPOINT = re.compile(r"https?://(?P<region>[a-z0-9-]+)\.(private\.)?iaas\.cloud\.ibm\.com")


class WorkerPlace:
    """Reads on demand and remembers: a worker's place never changes while it runs."""

    def __init__(self, keys: IbmCloudKeys, labels: Mapping[str, str]) -> None:
        self._keys = keys
        self._labels = labels
        self._lock = threading.Lock()
        self._instance: dict[str, Any] | None = None

    def region(self) -> str:
        """Raises UnavailableError naming the key to set."""
        given = self._keys.zone.rpartition("-")[0] or self._labels.get(REGION_LABEL, "")
        if given:
            return given
        named = _ENDPOINT.match(self._keys.vpc_endpoint)
        return named["region"] if named else self.zone().rpartition("-")[0]

    def zone(self) -> str:
        """Raises UnavailableError naming the key to set."""
        given = self._keys.zone or self._labels.get(ZONE_LABEL, "")
        return given or self._metadata("IBMCLOUD_ZONE", ("zone", "name"))

    def subnet(self) -> str:
        """Raises UnavailableError naming the key to set."""
        given = next((self._labels[label] for label in SUBNET_LABELS if self._labels.get(label)), "")
        return given or self._metadata("IBMCLOUD_VPC_SUBNET_ID", ("primary_network_interface", "subnet", "id"))

    def vpc_endpoint(self) -> str:
        """IBMCLOUD_VPC_ENDPOINT, else the region's. Raises UnavailableError naming the key to set."""
        return self._keys.vpc_endpoint or f"https://{self.region()}.iaas.cloud.ibm.com/v1"

    def _metadata(self, key: str, path: tuple[str, ...]) -> str:
        try:
            with self._lock:
                if self._instance is None:
                    self._instance = self._read()
                found: Any = self._instance
            for name in path:
                found = found.get(name, {}) if isinstance(found, dict) else {}
            if not isinstance(found, str) or not found:
                raise ValueError(f"it has no {'.'.join(path)}")
        except (OSError, ValueError) as error:
            raise UnavailableError(
                "NoMetadata",
                f"{key} is not set, the node's labels do not tell it, and the worker's instance metadata at "
                f"{self._keys.metadata_endpoint} does not either ({error}); set {key}",
            ) from error
        return found

    def _read(self) -> dict[str, Any]:
        """The worker's own instance. Raises OSError, ValueError. Straight to the host, never through a proxy."""
        place = urlsplit(self._keys.metadata_endpoint)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT_SECONDS)
        version = f"?version={_METADATA_VERSION}"
        try:
            body = json.dumps({"expires_in": _TOKEN_SECONDS})
            headers = {"Metadata-Flavor": "ibm", "Content-Type": "application/json"}
            token = _asked(connection, "PUT", "/instance_identity/v1/token" + version, headers, body)["access_token"]
            return _asked(connection, "GET", "/metadata/v1/instance" + version, {"Authorization": f"Bearer {token}"})
        except (http.client.HTTPException, KeyError) as error:
            raise OSError(f"no answer of an instance metadata service: {error!r}") from error
        finally:
            connection.close()


def _asked(
    connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: str = ""
) -> dict[str, Any]:
    connection.request(method, path, body or None, dict(headers))
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        raise OSError(f"status {reply.status} for {path.partition('?')[0]}")
    answer = json.loads(text)
    if not isinstance(answer, dict):
        raise ValueError(f"{path.partition('?')[0]} is no object")
    return answer
