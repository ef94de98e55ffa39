"""The service's own keys: `peer-pods-cm` and `peer-pods-secret` as environment -> typed, checked settings.

They may be files, too (`caa.sources`). The keys of each cloud are read by its provider. Here are the keys the incumbent
has for all clouds, under its names, and the `CAA_` keys, which are new.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from caa.agentproxy.tls import CIPHER_SUITES
from caa.errors import InvalidInputError
from caa.guestconfig import check_initdata, decode_initdata
from caa.images.keys import ImageKeys
from caa.kubernetes.keys import KubernetesKeys
from caa.metadata.keys import MetadataKeys, metadata_problems
from caa.podnetwork.worker import TunnelSettings
from caa.settingtypes import (
    AbsolutePath,
    CipherSuites,
    CollectorUrl,
    Level,
    Listen,
    OptionalPath,
    PodsDir,
    SocketPath,
    SomeTime,
)
from providers.base import ConfigError, Problem
from providers.keys import CsvList, Flag, read_keys

_LEDGER_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
# These go into tags and labels of every cloud, of which this is the common alphabet.
_Label = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"


class Settings(ImageKeys, MetadataKeys, KubernetesKeys):
    """What the service itself is configured by. Made by `load` only, for it also checks keys against each other."""

    secret: ClassVar[frozenset[str]] = frozenset({"CAA_LEDGER_URL", "CAA_TRACES_ENDPOINT", "INITDATA"})

    config_dir: AbsolutePath | None = Field(
        None,
        alias="CAA_CONFIG_DIR",
        description="Directory with a file for each key, as Kubernetes mounts a ConfigMap; over all else. Changes in "
        "it are taken over by the running service. Of the environment only.",
    )
    secret_dir: AbsolutePath | None = Field(
        None,
        alias="CAA_SECRET_DIR",
        description="The same for a Secret; over the environment, below CAA_CONFIG_DIR. Of the environment only.",
    )
    cloud_provider: str = Field(
        alias="CLOUD_PROVIDER",
        pattern=r"^[a-z][a-z0-9-]*$",
        description="The cloud that runs the pod VMs: the name of a provider, such as aws, azure, ibmcloud or libvirt.",
    )
    cluster_id: str = Field(
        "default",
        alias="CAA_CLUSTER_ID",
        pattern=_Label,
        max_length=63,
        description="Names this cluster in the owner tags of every instance. Must differ between clusters that share "
        "a cloud account, or each would remove the other's VMs.",
    )
    node_name: str = Field(
        default_factory=socket.gethostname,
        alias="NODE_NAME",
        pattern=_Label,
        max_length=253,
        description="The name of this worker node. Without it, the machine's host name.",
    )
    state_dir: AbsolutePath = Field(
        Path("/var/lib/caa"),
        alias="CAA_STATE_DIR",
        description="Holds what must survive a reboot: the node's keys and, unless told otherwise, the ledger.",
    )
    run_dir: AbsolutePath = Field(
        Path("/run/peerpod"),
        alias="CAA_RUN_DIR",
        description="Holds sockets. CAA_API_SOCKET, REMOTE_HYPERVISOR_ENDPOINT and PODS_DIR are below it by default.",
    )
    start_proxy: Flag = Field(
        True,
        alias="CAA_START_PROXY",
        description="Whether this service starts an agent proxy (`caa proxy`) where none answers in CAA_RUN_DIR; false "
        "where something else runs it, such as its own DaemonSet.",
    )
    ledger_url: str = Field(
        "sqlite:////var/lib/caa/ledger.db",
        alias="CAA_LEDGER_URL",
        repr=False,  # may hold a password
        description="The ledger's database: a sqlite or postgresql URL. By default ledger.db in CAA_STATE_DIR.",
    )
    api_socket: SocketPath = Field(
        Path("/run/peerpod/caa.sock"),
        alias="CAA_API_SOCKET",
        description="Unix socket of the REST interface, for root only. By default caa.sock in CAA_RUN_DIR.",
    )
    api_listen: Listen = Field(
        None,
        alias="CAA_API_LISTEN",
        description="Address of the REST interface over TCP, host:port or [IPv6 address]:port; off by default. "
        "Needs CAA_API_TOKEN_FILE or CAA_API_CLIENT_CA_FILE, and TLS unless the address is a loopback one.",
    )
    api_token_file: AbsolutePath | None = Field(
        None,
        alias="CAA_API_TOKEN_FILE",
        description="File with the bearer token that TCP callers must give. Not readable by others; read again "
        "when it changes.",
    )
    operator_token_file: AbsolutePath | None = Field(
        None,
        alias="CAA_OPERATOR_TOKEN_FILE",
        description="File with another token, for people: who logs into the page with it may stop sandboxes there, put "
        "right what an audit found, and have a failed image built again. Needs CAA_API_TOKEN_FILE.",
    )
    api_cert_file: AbsolutePath | None = Field(
        None, alias="CAA_API_CERT_FILE", description="Certificate chain of the REST interface over TCP, PEM."
    )
    api_key_file: AbsolutePath | None = Field(
        None, alias="CAA_API_KEY_FILE", description="Private key that belongs to CAA_API_CERT_FILE, PEM."
    )
    api_client_ca_file: AbsolutePath | None = Field(
        None,
        alias="CAA_API_CLIENT_CA_FILE",
        description="CA certificates, PEM. When set, TCP callers must show a client certificate that one of them "
        "signed, and the token too if CAA_API_TOKEN_FILE is set.",
    )
    metrics_listen: Listen = Field(
        None,
        alias="CAA_METRICS_LISTEN",
        description="Address where /metrics, /livez, /readyz and /startupz alone are served over plain HTTP, host:port "
        "or [IPv6 address]:port, to anybody; off by default.",
    )
    hypervisor_socket: SocketPath = Field(
        Path("/run/peerpod/hypervisor.sock"),
        alias="REMOTE_HYPERVISOR_ENDPOINT",
        description="Unix socket that Kata's shim calls. By default hypervisor.sock in CAA_RUN_DIR.",
    )
    pods_dir: PodsDir = Field(
        Path("/run/peerpod/pods"),
        alias="PODS_DIR",
        description="Holds a directory per sandbox with its agent socket. By default pods in CAA_RUN_DIR.",
    )
    forwarder_port: int = Field(
        15150, alias="FORWARDER_PORT", ge=1, le=65535, description="TCP port of the agent forwarder in the pod VM."
    )
    proxy_timeout: SomeTime = Field(
        300.0,
        alias="PROXY_TIMEOUT",
        description="How long a new pod VM may take until its agent answers, such as 5m.",
    )
    ca_cert_file: OptionalPath = Field(
        "",
        alias="CACERT_FILE",
        description="CA that signed the certificate inside the pod VM image, PEM. Set with CERT_FILE and CERT_KEY to "
        "use your own certificates; without the three, the service makes its own.",
    )
    cert_file: OptionalPath = Field(
        "", alias="CERT_FILE", description="Client certificate for the connection to pod VMs, PEM."
    )
    cert_key: OptionalPath = Field(
        "", alias="CERT_KEY", description="File with the private key that belongs to CERT_FILE, PEM."
    )
    tls_min_version: Literal["", "VersionTLS12", "VersionTLS13"] = Field(
        "",
        alias="TLS_MIN_VERSION",
        description="Oldest TLS version between worker and pod VM: VersionTLS12 (the default) or VersionTLS13.",
    )
    tls_cipher_suites: CipherSuites = Field(
        (),
        alias="TLS_CIPHER_SUITES",
        description="Cipher suites between worker and pod VM for TLS 1.2: IANA names, separated by commas. "
        "Not together with TLS_MIN_VERSION=VersionTLS13, whose suites are fixed.",
    )
    initdata: str = Field(
        "",
        alias="INITDATA",
        repr=False,
        description="Initdata for pods that bring none: base64 of gzip of TOML.",
    )
    enable_scratch_space: Flag = Field(
        False, alias="ENABLE_SCRATCH_SPACE", description="Tell pod VMs to use an encrypted scratch space."
    )
    tunnel_type: Literal["vxlan"] = Field(
        "vxlan", alias="TUNNEL_TYPE", description="How the pod's network is carried to the pod VM; there is one way."
    )
    vxlan_port: int = Field(
        4789, alias="VXLAN_PORT", ge=1, le=65535, description="UDP port of the tunnels, the same on all nodes."
    )
    host_interface: str = Field(
        "",
        alias="HOST_INTERFACE",
        description="The worker's interface that tunnels leave by; the one with the default route if not set.",
    )
    external_network_via_podvm: Flag = Field(
        False,
        alias="EXTERNAL_NETWORK_VIA_PODVM",
        description="Traffic that leaves the cluster goes out of the pod VM, not through the tunnel.",
    )
    pod_subnet_cidrs: CsvList = Field(
        (),
        alias="POD_SUBNET_CIDRS",
        description="With EXTERNAL_NETWORK_VIA_PODVM: what goes through the tunnel all the same, separated by commas.",
    )
    limit_per_node: int = Field(
        10,
        alias="PEERPODS_LIMIT_PER_NODE",
        description="How many pod VMs this node may have at once; below 0 there is no limit.",
    )
    log_format: Literal["console", "json"] = Field(
        "console", alias="CAA_LOG_FORMAT", description="How log lines look: console for people, json for programs."
    )
    log_level: Level = Field(
        "INFO", alias="CAA_LOG_LEVEL", description="The least important log lines that are written."
    )
    images: CsvList = Field(
        (),
        alias="PODVM_IMAGES",
        description="Images that pods may name by annotation, separated by commas; without it only the configured one.",
    )
    prices_file: AbsolutePath | None = Field(
        None,
        alias="CAA_PRICES_FILE",
        description="Prices for an hour, YAML or JSON, of instance types such as m6a.large, or m6a.large@spot: of what "
        "is large enough for a pod the cheapest is chosen. Without it the one with the least memory.",
    )
    traces_endpoint: CollectorUrl = Field(
        "",
        alias="CAA_TRACES_ENDPOINT",
        repr=False,
        description="Where a trace of each start is sent, by OTLP over HTTP, such as http://collector:4318/v1/traces; "
        "nowhere if not set. Needs the extra tracing. OTEL_EXPORTER_OTLP_HEADERS is honoured.",
    )

    @property
    def api_tls(self) -> bool:
        """Whether the REST interface speaks TLS over TCP."""
        return self.api_cert_file is not None

    @property
    def tunnel_settings(self) -> TunnelSettings:
        """The keys of the pod network."""
        return TunnelSettings(
            host_interface=self.host_interface,
            vxlan_port=self.vxlan_port,
            external_network_via_podvm=self.external_network_via_podvm,
            pod_subnet_cidrs=self.pod_subnet_cidrs,
        )


# What each start takes from the configuration that holds when it begins. Sockets, directories, certificates, tunnels
# and names belong to the process and to what is running; a new key is among those unless it is named here.
LIVE_KEYS = frozenset(
    {
        "PROXY_TIMEOUT",
        "INITDATA",
        "ENABLE_SCRATCH_SPACE",
        "CAA_LOG_FORMAT",
        "CAA_LOG_LEVEL",
        "PEERPODS_LIMIT_PER_NODE",
        "PODVM_IMAGES",
        *(str(field.alias) for field in MetadataKeys.model_fields.values()),
    }
)
Settings.needs_restart = frozenset(str(field.alias) for field in Settings.model_fields.values()) - LIVE_KEYS


def load(environ: Mapping[str, str]) -> Settings:
    """Read and check everything. Raises ConfigError with every problem, each naming its key.

    Keys are first read one by one; how they go together is only checked when each is right.
    """
    settings = read_keys(Settings, derived(environ) | {k: v for k, v in environ.items() if v.strip()})
    problems = list(_contradictions(settings))
    if problems:
        raise ConfigError(problems)
    return settings


def ledger_url(environ: Mapping[str, str]) -> str:
    """The ledger's URL alone, for commands that need nothing else to be configured. Raises ConfigError."""
    url = environ.get("CAA_LEDGER_URL", "").strip() or derived(environ)["CAA_LEDGER_URL"]
    problems = list(_ledger_problems(url))
    if problems:
        raise ConfigError(problems)
    return url


def api_socket(environ: Mapping[str, str]) -> str:
    """The path of the REST interface's unix socket, for its clients."""
    return environ.get("CAA_API_SOCKET", "").strip() or derived(environ)["CAA_API_SOCKET"]


def derived(environ: Mapping[str, str]) -> dict[str, str]:
    """Defaults that follow from CAA_STATE_DIR and CAA_RUN_DIR; from a bad one nothing follows, so it is one problem."""
    state, run = (
        Path(given) if (given := environ.get(key, "").strip()).startswith("/") else default
        for key, default in (("CAA_STATE_DIR", Path("/var/lib/caa")), ("CAA_RUN_DIR", Path("/run/peerpod")))
    )
    return {
        "CAA_LEDGER_URL": f"sqlite:///{state / 'ledger.db'}",
        "CAA_API_SOCKET": str(run / "caa.sock"),
        "REMOTE_HYPERVISOR_ENDPOINT": str(run / "hypervisor.sock"),
        "PODS_DIR": str(run / "pods"),
    }


def _contradictions(settings: Settings) -> Iterator[Problem]:
    yield from metadata_problems(settings)
    yield from _api_problems(settings)
    yield from _ledger_problems(settings.ledger_url)
    yield from _initdata_problems(settings.initdata)
    if settings.config_namespace and not settings.kubernetes:
        yield Problem("CAA_KUBERNETES", "is required to be true when CAA_CONFIG_NAMESPACE is set.")
    if settings.pull_secrets and not settings.kubernetes:
        yield Problem("CAA_KUBERNETES", "is required to be true when CAA_PULL_SECRETS is.")
    own = {
        "CACERT_FILE": settings.ca_cert_file,
        "CERT_FILE": settings.cert_file,
        "CERT_KEY": settings.cert_key,
    }
    missing = [key for key, path in own.items() if not path]
    if 0 < len(missing) < len(own):
        for key in missing:
            yield Problem(key, "is required when any of CACERT_FILE, CERT_FILE and CERT_KEY is set.")
    if settings.tls_cipher_suites and settings.tls_min_version == "VersionTLS13":
        suites = ",".join(settings.tls_cipher_suites)
        yield Problem(
            "TLS_CIPHER_SUITES", f"{suites!r} is not allowed: must be empty when TLS_MIN_VERSION is VersionTLS13."
        )
    elif settings.tls_cipher_suites and CIPHER_SUITES.keys().isdisjoint(settings.tls_cipher_suites):
        suites, allowed = ",".join(settings.tls_cipher_suites), ", ".join(CIPHER_SUITES)
        yield Problem("TLS_CIPHER_SUITES", f"{suites!r} is not allowed: at least one must be of {allowed}.")


def _api_problems(settings: Settings) -> Iterator[Problem]:
    if (settings.api_cert_file is None) != (settings.api_key_file is None):
        key = "CAA_API_CERT_FILE" if settings.api_cert_file is None else "CAA_API_KEY_FILE"
        yield Problem(key, "is required: CAA_API_CERT_FILE and CAA_API_KEY_FILE go together.")
    if settings.api_client_ca_file is not None and settings.api_cert_file is None and settings.api_key_file is None:
        yield Problem(
            "CAA_API_CERT_FILE", "is required when CAA_API_CLIENT_CA_FILE is set, for client certificates need TLS."
        )
    listen = settings.api_listen
    if settings.operator_token_file is not None and settings.api_token_file is None:
        yield Problem("CAA_OPERATOR_TOKEN_FILE", "is not allowed without CAA_API_TOKEN_FILE.")
    if listen is None:
        return
    if settings.api_token_file is None and settings.api_client_ca_file is None:
        yield Problem(
            "CAA_API_LISTEN", f"'{listen}' is not allowed without CAA_API_TOKEN_FILE or CAA_API_CLIENT_CA_FILE."
        )
    elif not settings.api_tls and not listen.loopback:
        yield Problem(
            "CAA_API_LISTEN",
            f"'{listen}' is not allowed without TLS: set CAA_API_CERT_FILE and CAA_API_KEY_FILE, "
            "or listen on a loopback address such as 127.0.0.1.",
        )


def _ledger_problems(url: str) -> Iterator[Problem]:
    """The URL itself is never shown, for it may hold a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _LEDGER_SCHEMES:
        shown = f"a URL of the kind {scheme!r}" if separator else "what is set"
        yield Problem("CAA_LEDGER_URL", f"{shown} is not allowed: must begin with sqlite:/// or postgresql://.")
    elif scheme == "sqlite" and not rest.startswith("//"):
        yield Problem("CAA_LEDGER_URL", f"{url!r} is not allowed: must be sqlite:/// and an absolute path.")


def _initdata_problems(initdata: str) -> Iterator[Problem]:
    """The value is never shown: it is long, and says nothing to people."""
    if not initdata:
        return
    try:
        check_initdata(decode_initdata(initdata, "INITDATA"), "INITDATA")
    except InvalidInputError as error:
        yield Problem("INITDATA", f"is not allowed: must be base64 of gzip of TOML ({error}).")
