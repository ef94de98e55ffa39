"""What the values of the service's keys may be: addresses, paths, times. Each says what is allowed."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from providers.keys import CsvList, Duration

# sun_path of Linux: 108 bytes with the terminating zero.
SUN_PATH_BYTES = 107
# What the Go shim makes of an agent socket path: it parses it as a URL and splits it at ":".
_URL_CHARACTERS = frozenset(":%?#")
# The longest sandbox id a container runtime gives, and the socket's name, which is the incumbent's.
_LONGEST_AGENT_SOCKET = f"{'0' * 64}/agent.ttrpc"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen. `host` is a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this machine can connect. A name is judged by itself, not by what it resolves to."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def _host_port(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "off":
        return None
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})", value)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError('must be "off", "host:port" or "[IPv6 address]:port" with a port from 1 to 65535')
    if match["v6"]:
        try:
            ipaddress.IPv6Address(match["v6"])
        except ValueError:
            raise ValueError("must have an IPv6 address between the brackets") from None
    return HostPort(match["v6"] or match["host"], int(match["port"]))


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _absolute_if_any(path: str) -> str:
    return str(_absolute(Path(path))) if path else path


def _socket_path(path: Path) -> Path:
    if len(bytes(_absolute(path))) > SUN_PATH_BYTES:
        raise ValueError(f"must be at most {SUN_PATH_BYTES} bytes long, the limit of a unix socket's path")
    return path


def _pods_dir(path: Path) -> Path:
    if _URL_CHARACTERS & set(str(_absolute(path))):
        raise ValueError('must not contain any of ":%?#", which Kata\'s shim cannot read in an agent socket path')
    longest = SUN_PATH_BYTES - len(_LONGEST_AGENT_SOCKET) - 1
    if len(bytes(path)) > longest:
        raise ValueError(f"must be at most {longest} bytes long, so that an agent socket below it can be bound")
    return path


def _cipher_suites(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"TLS_[A-Z0-9]+_[A-Z0-9_]+", name):
            raise ValueError(
                'must be IANA names such as "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", separated by commas'
            )
    return names


def _more_than_nothing(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


def _collector(url: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.path
    except ValueError:  # brackets, or a port that is none
        whole = None
    if url and (not whole or "@" in parts.netloc or parts.fragment or re.search(r"\s", url)):
        raise ValueError(
            'must be a URL such as "http://collector:4318/v1/traces", with its path and without a user; credentials go '
            "into OTEL_EXPORTER_OTLP_HEADERS"
        )
    return url


def _level(value: Any) -> Any:
    """Log levels may be written small; what is none stays as it was given, for the error shows it."""
    return value.upper() if isinstance(value, str) and value.upper() in _LEVELS else value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
OptionalPath = Annotated[str, AfterValidator(_absolute_if_any)]
"""The agent link takes these as text; "" when not set."""
SocketPath = Annotated[Path, AfterValidator(_socket_path)]
PodsDir = Annotated[Path, AfterValidator(_pods_dir)]
"""Holds a directory for each sandbox with its agent socket."""
Listen = Annotated[HostPort | None, BeforeValidator(_host_port)]
"""host:port, or None for "off"."""
CollectorUrl = Annotated[str, AfterValidator(_collector)]
"""An http or https URL with a path; "" when not set."""
SomeTime = Annotated[Duration, AfterValidator(_more_than_nothing)]
"""Seconds, more than none."""
CipherSuites = Annotated[CsvList, AfterValidator(_cipher_suites)]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_level)]
