"""The EC2 client: made when first needed, shared by all threads, never retrying, never waiting without bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from providers.aws.errors import translate
from providers.aws.metadata import WorkerMetadata
from providers.aws.settings import AwsKeys
from providers.base import ConfigError, Problem, UnavailableError

# A handshake inside AWS takes milliseconds; past this the packets are being dropped.
CONNECT_SECONDS = 5
# RunInstances was seen to take up to 5 s; six times that is a lost answer, which the service then asks for again.
READ_SECONDS = 30
# As many as the service has threads for calls; fewer would make calls open and throw away connections.
CONNECTIONS = 16


class Ec2:
    """Calls of the EC2 API by their names, with the contract's errors. `service` may be another one of AWS's APIs."""

    def __init__(self, keys: AwsKeys, worker: WorkerMetadata, service: str = "ec2") -> None:
        self._keys = keys
        self._worker = worker
        self._service = service
        self._lock = threading.Lock()
        self._session = _session(keys)
        self._client: Any = None
        self._region = ""

    @property
    def region(self) -> str:
        """AWS_REGION, else boto's configuration, else the worker's own. Raises UnavailableError."""
        if not self._region:
            self._region = self._keys.region or str(self._session.region_name or "") or self._worker.region()
        return self._region

    def call(self, operation: str, about: Mapping[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
        """One call that may change something. Raises ProviderError; `about` has values for its sentence."""
        return self._call(operation, about or {}, parameters, changes=True)

    def read(self, operation: str, about: Mapping[str, str] | None = None, **parameters: Any) -> dict[str, Any]:
        """One call that changes nothing. Raises ProviderError."""
        return self._call(operation, about or {}, parameters, changes=False)

    def pages(
        self, operation: str, key: str, about: Mapping[str, str] | None = None, **parameters: Any
    ) -> Iterator[dict[str, Any]]:
        """Every item under `key` of a listing, page by page. Raises ProviderError."""
        while True:
            page = self.read(operation, about, **parameters)
            yield from page.get(key, [])
            token = page.get("NextToken")
            if not token:
                return
            parameters["NextToken"] = token

    def quota(self, code: str) -> float:
        """The value of one of EC2's quotas in this account and region. Raises ProviderError."""
        client = self._session.client("service-quotas", region_name=self.region, config=_config())
        try:
            reply = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            about = {"operation": "GetServiceQuota", "region": self.region}
            raise translate(error, changes=False, about=about) from error
        finally:
            client.close()
        return float(reply["Quota"]["Value"])

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(
        self, operation: str, about: Mapping[str, str], parameters: dict[str, Any], *, changes: bool
    ) -> dict[str, Any]:
        client = self._made()
        try:
            result: dict[str, Any] = getattr(client, operation)(**parameters)
        except (ClientError, BotoCoreError, ResponseParserError) as error:
            values = {"operation": _camel(operation), "region": self.region, **about}
            raise translate(error, changes=changes, about=values) from error
        return result

    def _made(self) -> Any:
        """The client. boto's clients may be shared by threads, but making one may not happen twice at once."""
        if self._client is None:
            region = self.region
            with self._lock:
                if self._client is None:
                    try:
                        self._client = self._session.client(self._service, region_name=region, config=_config())
                    except (BotoCoreError, ValueError) as error:
                        raise UnavailableError(
                            "NoClient", f"no client of {self._service} for AWS_REGION={region}: {error}"
                        ) from error
        return self._client


def _config() -> Config:
    return Config(
        retries={"total_max_attempts": 1, "mode": "standard"},  # the service retries, with the same token
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        user_agent_extra=f"peerpod-cloud-adaptor/{metadata.version('peerpod-cloud-adaptor')}",
    )


def _session(keys: AwsKeys) -> Any:
    """Raises ConfigError. Static credentials, else the profile, else boto's chain."""
    key_id, secret = keys.access_key_id.get_secret_value(), keys.secret_access_key.get_secret_value()
    if bool(key_id) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if key_id else "AWS_ACCESS_KEY_ID"
        raise ConfigError([Problem(missing, "is required: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together.")])
    try:
        if key_id:
            token = keys.session_token.get_secret_value() or None
            return boto3.session.Session(
                aws_access_key_id=key_id, aws_secret_access_key=secret, aws_session_token=token
            )
        return boto3.session.Session(profile_name=keys.profile or None)
    except BotoCoreError as error:
        raise ConfigError([Problem("AWS_PROFILE", f"{keys.profile!r} is not allowed: {error}")]) from error


def _camel(operation: str) -> str:
    return "".join(word.capitalize() for word in operation.split("_"))
