"""IBM Cloud VPC: the disk as a qcow2 object in a bucket, and an image that is imported from it; then the object goes.

The create call of an image takes no tags, so whose it is follows from its name, which is unique in a region, and from
what was written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ibm_boto3  # type: ignore[import-untyped]
from ibm_botocore.client import Config  # type: ignore[import-untyped]
from ibm_botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from imagebuilder.formats import from_raw
from imagebuilder.publish.base import Content, ImageName, Work, arch_of
from imagebuilder.publish.objectstorage import SENDERS, Upload
from imagebuilder.publish.patience import patiently
from providers.base import (
    ConfigError,
    DeniedError,
    InvalidRequestError,
    MissingError,
    Problem,
    ProviderError,
    ThrottledError,
    UnavailableError,
)
from providers.ibmcloud.client import CONNECT_SECONDS, READ_SECONDS, Vpc
from providers.ibmcloud.errors import NAME_TAKEN
from providers.ibmcloud.place import WorkerPlace
from providers.ibmcloud.settings import IbmCloudKeys

# What IBM Cloud takes the image for decides how it is booted, not what is in it. (Debian's word, confidential) ->
# operating system; Secure Execution needs the one of Hyper Protect.
_SYSTEMS = {
    ("amd64", False): "debian-12-amd64",
    ("amd64", True): "debian-12-amd64",
    ("s390x", False): "ubuntu-24-04-s390x",
    ("s390x", True): "hyper-protect-1-0-s390x",
}
_ARCHES = {"amd64": "amd64", "s390x": "s390x"}
# An import takes some minutes.
_POLL_SECONDS = 5.0
_GONE = frozenset({"NoSuchUpload", "NoSuchKey", "404"})


class IbmCloudPublisher:
    """One region of one account."""

    key = "IBMCLOUD_PODVM_IMAGE_ID"
    latest_key = "LATEST_IMAGE_ID"

    def __init__(self, keys: IbmCloudKeys, labels: Mapping[str, str]) -> None:
        self._keys = keys
        self._place = WorkerPlace(keys, labels)
        self._vpc = Vpc(keys, self._place)
        self._storage = _Storage(keys, self._place, self._vpc)

    @property
    def account(self) -> str:
        """The region. Clusters that share a ledger are taken to share the account."""
        return f"ibmcloud/{self._place.region()}"

    def configured(self) -> str:
        """IBMCLOUD_PODVM_IMAGE_ID. The cloud is not asked."""
        return ",".join(self._keys.image_ids)

    def publish(self, disk: Content, name: ImageName, work: Work) -> str:
        """See Publisher."""
        arch = arch_of(disk, _ARCHES, "IBM Cloud")
        image = patiently(work, lambda: self._image(name))
        if image is None:
            self._upload(disk, name, work)
            image = self._imported(name, _SYSTEMS[arch, not self._keys.disable_cvm], work)
        work.note("image", image["id"])
        self._wait(image["id"], work)
        patiently(work, lambda: self._object(name).delete({}, _is_gone))
        work.note("object", "")
        return str(image["id"])

    def exists(self, image_id: str) -> bool:
        """See Publisher."""
        try:
            return str(self._vpc.read("get_image", {"image": image_id}, id=image_id).get("status")) == "available"
        except ProviderError as error:
            if _is_missing(error):
                return False
            raise

    def in_use(self, image_id: str) -> bool:
        """Never: a boot volume is a copy."""
        return False

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """See Publisher."""
        image = self._image(name)
        if image is not None and image.get("status") != "deleting":
            try:
                self._vpc.call("delete_image", {"image": image["id"]}, id=image["id"])
            except ProviderError as error:
                if not _is_missing(error):
                    raise
        if self._keys.cos_bucket:
            self._object(name).delete(resources, _is_gone)

    def close(self) -> None:
        """Close the connections."""
        self._vpc.close()

    def check(self) -> None:
        """See Publisher."""
        if not self._keys.cos_bucket:
            raise ConfigError([Problem("IBMCLOUD_COS_BUCKET", "is required: a built image is imported from it")])

    def _upload(self, disk: Content, name: ImageName, work: Work) -> None:
        """The object, whole. Converted with the same tool the same disk gives the same bytes, so parts are kept."""
        if work.resources.get("object"):
            return
        image = disk.path.with_name(f"{disk.path.name}.qcow2")
        work.phase("convert", disk.size)
        try:
            from_raw(disk.path, "qcow2", image, lambda _phase, done, _total: work.progress(done))
            self._object(name).send(image, work, _is_gone)
        finally:
            image.unlink(missing_ok=True)
        work.note("object", _key(name))

    def _imported(self, name: ImageName, system: str, work: Work) -> dict[str, Any]:
        work.phase("import")
        href = f"cos://{self._place.region()}/{self._keys.cos_bucket}/{_key(name)}"
        prototype: dict[str, Any] = {
            "name": name.label,
            "file": {"href": href},
            "operating_system": {"name": system},
        }
        if self._keys.resource_group_id:
            prototype["resource_group"] = {"id": self._keys.resource_group_id}
        try:
            return patiently(work, lambda: self._vpc.call("create_image", image_prototype=prototype))
        except InvalidRequestError as error:
            image = patiently(work, lambda: self._image(name)) if error.reason == NAME_TAKEN else None
            if image is None:  # not made by a call whose answer was lost
                raise
            return image

    def _wait(self, image_id: str, work: Work) -> None:
        work.phase("import")
        while True:
            image = patiently(work, lambda: self._vpc.read("get_image", {"image": image_id}, id=image_id))
            match image.get("status"):
                case "available":
                    return
                case "pending":
                    work.sleep(_POLL_SECONDS)
                case status:
                    reasons = "; ".join(str(one.get("message", "")) for one in image.get("status_reasons") or [])
                    self._vpc.call("delete_image", {"image": image_id}, id=image_id)
                    raise InvalidRequestError(
                        "ImportFailed", f"IBM Cloud could not import the image: {status}, {reasons}"
                    )

    def _image(self, name: ImageName) -> dict[str, Any] | None:
        found = self._vpc.read("list_images", name=name.label).get("images", [])
        return next((one for one in found if one.get("name") == name.label), None)

    def _object(self, name: ImageName) -> Upload:
        return Upload(self._storage, self._keys.cos_bucket, _key(name))


class _Tokens:
    """The VPC client's access tokens, as the S3 client asks for them."""

    def __init__(self, vpc: Vpc) -> None:
        self.get_token = vpc.get_token

    def set_from_config(self, _config: object) -> None:
        """Proxies and certificates are the VPC client's."""


class _Storage:
    """IBM Cloud Object Storage, with the access tokens of the VPC client."""

    def __init__(self, keys: IbmCloudKeys, place: WorkerPlace, vpc: Vpc) -> None:
        self._keys = keys
        self._place = place
        self._vpc = vpc
        self._client: Any = None

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """One call. Raises ProviderError. All that are made here may be repeated."""
        self._vpc.get_token()  # what fails here is the contract's error already
        try:
            answer: dict[str, Any] = getattr(self._made(), operation)(**parameters)
        except ClientError as error:
            raise self._translate(operation, error) from error
        except BotoCoreError as error:
            raise UnavailableError("Unreachable", f"{operation} did not reach object storage: {error}") from error
        return answer

    def _made(self) -> Any:
        if self._client is None:
            region = self._place.region()
            self._client = ibm_boto3.client(
                "s3",
                region_name=region,
                endpoint_url=self._keys.cos_endpoint or f"https://s3.{region}.cloud-object-storage.appdomain.cloud",
                token_manager=_Tokens(self._vpc),
                config=Config(
                    signature_version="oauth",
                    retries={"total_max_attempts": 1},
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=2 * READ_SECONDS,
                    max_pool_connections=SENDERS,
                    s3={"addressing_style": "path"},
                    # Else parts are sent in chunks with a trailer, which is AWS's alone.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return self._client

    def _translate(self, operation: str, error: ClientError) -> ProviderError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        bucket = f"the bucket IBMCLOUD_COS_BUCKET={self._keys.cos_bucket}"
        quoted = f"({operation}: {code})"
        if code in _GONE:
            return MissingError(code, f"it is not in {bucket} {quoted}")
        if code == "NoSuchBucket":
            return InvalidRequestError("BucketMissing", f"{bucket} does not exist {quoted}")
        if status in (401, 403):
            return DeniedError("AccessDenied", f"the credentials lack the right to use {bucket} {quoted}")
        if status in (429, 503):
            return ThrottledError("Throttled", f"object storage takes fewer calls than it was sent {quoted}")
        if status >= 500:
            return UnavailableError("ServerError", f"object storage failed {quoted}")
        return InvalidRequestError("StorageRefused", f"object storage refuses {operation} on {bucket} {quoted}")


def _key(name: ImageName) -> str:
    return f"{name.label}.qcow2"


def _is_gone(error: Exception) -> bool:
    return isinstance(error, MissingError)


def _is_missing(error: ProviderError) -> bool:
    return isinstance(error, MissingError) or error.reason == "ImageMissing"
