"""The publisher of each cloud. Only that cloud's SDK is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imagebuilder.publish.base import Publisher
from providers.base import ConfigError, Problem
from providers.keys import read_keys


def supported(cloud: str) -> bool:
    """Whether images can be built for this cloud."""
    return cloud in _CLOUDS


def load(cloud: str, environ: Mapping[str, str]) -> Publisher:
    """The publisher of a cloud that is supported. Raises ConfigError. Nothing is asked of the cloud yet."""
    try:
        return _CLOUDS[cloud](environ)
    except ImportError as error:
        needed = f"pip install peerpod-cloud-adaptor[{cloud}]"
        raise ConfigError(
            [Problem("CLOUD_PROVIDER", f"{cloud!r} needs a library that is not installed ({error}): {needed}")]
        ) from error


def _aws(environ: Mapping[str, str]) -> Publisher:
    from imagebuilder.publish.aws import AwsPublisher
    from providers.aws.settings import AwsKeys

    return AwsPublisher(read_keys(AwsKeys, environ))


def _libvirt(environ: Mapping[str, str]) -> Publisher:
    from imagebuilder.publish.libvirt import LibvirtPublisher
    from providers.libvirt.settings import LibvirtKeys

    return LibvirtPublisher(read_keys(LibvirtKeys, environ), named=bool(environ.get("LIBVIRT_VOL_NAME", "").strip()))


def _azure(environ: Mapping[str, str]) -> Publisher:
    from imagebuilder.publish.azure import AzurePublisher
    from imagebuilder.publish.azurekeys import AzureImageKeys

    return AzurePublisher(read_keys(AzureImageKeys, environ))


def _ibmcloud(environ: Mapping[str, str]) -> Publisher:
    from imagebuilder.publish.ibmcloud import IbmCloudPublisher
    from providers.ibmcloud.place import LABELS
    from providers.ibmcloud.settings import IbmCloudKeys

    labels = {label: environ[label] for label in LABELS if label in environ}
    return IbmCloudPublisher(read_keys(IbmCloudKeys, environ), labels)


_CLOUDS: dict[str, Callable[[Mapping[str, str]], Publisher]] = {
    "aws": _aws,
    "azure": _azure,
    "ibmcloud": _ibmcloud,
    "libvirt": _libvirt,
}
