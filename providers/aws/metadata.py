"""What the worker node's own instance metadata (IMDSv2) says, for keys that are not set."""

from __future__ import annotations

import http.client
import threading
from urllib.parse import urlsplit

from providers.aws.settings import AwsKeys
from providers.base import UnavailableError

# The service is on the same host and answers in milliseconds; where there is none, packets vanish.
TIMEOUT_SECONDS = 1.0
# Long enough for the few reads that one token is for.
_SESSION_SECONDS = "60"


class WorkerMetadata:
    """Reads on demand and remembers: a worker's place never changes while it runs."""

    def __init__(self, keys: AwsKeys) -> None:
        self._disabled = keys.metadata_disabled
        self._endpoint = keys.metadata_endpoint.rstrip("/")
        self._lock = threading.Lock()
        self._known: dict[str, str | None] = {}

    def region(self) -> str:
        """Raises UnavailableError naming the key to set."""
        return self._required("placement/region", "AWS_REGION")

    def subnet(self) -> str:
        """The subnet of the worker's first interface. Raises UnavailableError."""
        return self._required(f"{self._interface('AWS_SUBNET_ID')}/subnet-id", "AWS_SUBNET_ID")

    def security_groups(self) -> tuple[str, ...]:
        """Those of the worker's first interface. Raises UnavailableError."""
        return tuple(self._required(f"{self._interface('AWS_SG_IDS')}/security-group-ids", "AWS_SG_IDS").split())

    def key_pair(self) -> str:
        """The worker's key pair; "" when it has none, or when there is no metadata: pod VMs need no key pair."""
        with self._lock:
            if "public-keys" not in self._known:
                try:
                    self._known["public-keys"] = self._get("public-keys/")
                except OSError:
                    # Remembered too, for the same launch must be asked for in the same way.
                    self._known["public-keys"] = None
            listed = self._known["public-keys"] or ""
        return listed.partition("\n")[0].partition("=")[2]  # "0=name"

    def _interface(self, key: str) -> str:
        return f"network/interfaces/macs/{self._required('mac', key)}"

    def _required(self, path: str, key: str) -> str:
        with self._lock:
            value = self._known.get(path)
            if value is None:
                try:
                    value = self._get(path)
                except OSError as error:
                    raise UnavailableError(
                        "NoMetadata",
                        f"{key} is not set, and the worker's instance metadata at {self._endpoint} cannot be read "
                        f"({error}); set {key}",
                    ) from error
                if not value:
                    raise UnavailableError(
                        "NoMetadata", f"{key} is not set, and the worker's instance metadata has no {path}; set {key}"
                    )
                self._known[path] = value
        return value

    def _get(self, path: str) -> str | None:
        """A value; None if there is no such. Raises OSError. Straight to the host, never through a proxy."""
        if self._disabled:
            raise OSError("AWS_EC2_METADATA_DISABLED is true")
        place = urlsplit(self._endpoint)
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(
                "PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": _SESSION_SECONDS}
            )
            reply = connection.getresponse()
            token = reply.read().decode("ascii", "replace")
            if reply.status != 200:
                raise OSError(f"status {reply.status} for a session token")
            connection.request("GET", f"/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token})
            reply = connection.getresponse()
            text = reply.read().decode("utf-8", "replace").strip()
            if reply.status == 404:
                return None
            if reply.status != 200:
                raise OSError(f"status {reply.status} for {path}")
            return text
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer: {error}") from error
        finally:
            connection.close()
