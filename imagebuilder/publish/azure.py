"""Azure: the disk as a fixed VHD straight into a managed disk, and a version of a gallery's image definition of that.

Needs no storage account. Every name follows from cluster and content, and every PUT of a name is the same request, so
whatever a crash cut off is asked for again. The managed disk goes when the version stands on its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.storage.blob import BlobClient

from imagebuilder.formats import from_raw
from imagebuilder.publish.azureapi import NO_WAIT, AzureApi, translated
from imagebuilder.publish.azurekeys import AzureImageKeys
from imagebuilder.publish.base import TAG_CLUSTER, Content, ImageName, Work, arch_of
from imagebuilder.publish.patience import patiently
from imagebuilder.publish.upload import send_blocks
from providers.base import InvalidRequestError, UnavailableError

# The most that one Put Page may carry.
BLOCK = 4 << 20
# Debian's words -> Azure's.
_ARCH = {"amd64": "x64", "arm64": "Arm64"}
# Longer than any upload may take; access ends with the upload in any case.
_ACCESS_SECONDS = 24 * 3600
_POLL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Vhd:
    """The disk as Azure takes it: a fixed VHD, whole MiB and a footer of 512 bytes."""

    path: Path
    size: int
    arch: str
    digest: str


class AzurePublisher:
    """One resource group."""

    key = "AZURE_IMAGE_ID"
    latest_key = "LATEST_IMAGE_ID"

    def __init__(self, keys: AzureImageKeys) -> None:
        self._keys = keys
        self._api = AzureApi(keys)

    @property
    def account(self) -> str:
        """Subscription, resource group and region."""
        keys = self._keys
        return f"azure/{keys.subscription_id}/{keys.resource_group}/{keys.region}"

    def configured(self) -> str:
        """AZURE_IMAGE_ID. Azure is not asked."""
        return self._keys.image_id

    def check(self) -> None:
        """See Publisher. What is needed the keys themselves require."""

    def publish(self, disk: Content, name: ImageName, work: Work) -> str:
        """See Publisher."""
        arch = arch_of(disk, _ARCH, "Azure")
        place = _Place(self._keys, name, arch)
        version = patiently(work, lambda: self._version(place))
        if version is None or version.provisioning_state == "Failed":
            if version is not None:
                self._remove_version(place, work)
            self._gallery(place, work)
            self._definition(place, work)
            source = self._uploaded(disk, place, work)
            self._make_version(place, source, work)
        work.note("version", place.version)
        self._wait_for_version(place, work)
        self._remove_disk(place)
        work.note("disk", "")
        return place.version_id

    def exists(self, image_id: str) -> bool:
        """See Publisher."""
        match = re.search(r"/galleries/([^/]+)/images/([^/]+)/versions/([^/]+)$", image_id)
        if match is None:
            return False
        found = self._api.ask(
            "gallery_image_versions.get",
            lambda c: c.gallery_image_versions.get(self._keys.resource_group, *match.groups()),
        )
        return found is not None and found.provisioning_state == "Succeeded"

    def in_use(self, image_id: str) -> bool:
        """Never: a VM has its own copy of the disk."""
        return False

    def delete(self, name: ImageName, resources: Mapping[str, str]) -> None:
        """See Publisher. Definition and gallery go when they are ours and nothing else is in them."""
        for arch in _ARCH.values():
            place = _Place(self._keys, name, arch)
            if _is_ours(self._version(place), name):
                self._api.end("delete the image version", lambda c: c.gallery_image_versions, place.path)
            if _is_ours(self._disk(place), name):
                self._remove_disk(place)
            self._remove_empty(place.path, name.cluster)

    def _remove_empty(self, path: tuple[str, str, str], cluster: str) -> None:
        """Definition and gallery, if they are this cluster's and have nothing in them."""
        api, group, (gallery, definition, _) = self._api, self._keys.resource_group, path
        found = api.ask("look", lambda c: c.gallery_images.get(group, gallery, definition))
        if _is_of(found, cluster) and not api.listed(
            lambda c: c.gallery_image_versions.list_by_gallery_image(group, gallery, definition)
        ):
            api.end("delete the image definition", lambda c: c.gallery_images, (gallery, definition))
        found = api.ask("look", lambda c: c.galleries.get(group, gallery))
        if _is_of(found, cluster) and not api.listed(lambda c: c.gallery_images.list_by_gallery(group, gallery)):
            api.end("delete the gallery", lambda c: c.galleries, (gallery,))

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    # Gallery, definition, version

    def _gallery(self, place: _Place, work: Work) -> None:
        group, name = self._keys.resource_group, place.path[0]
        if patiently(work, lambda: self._api.ask("galleries.get", lambda c: c.galleries.get(group, name))) is None:
            body = {"location": self._keys.region, "tags": place.common_tags}
            self._api.put(
                "make the gallery", work, lambda c: c.galleries.begin_create_or_update(group, name, body, **NO_WAIT)
            )
            self._api.until(work, lambda c: c.galleries.get(group, name))

    def _definition(self, place: _Place, work: Work) -> None:
        group, (gallery, name) = self._keys.resource_group, place.path[:2]

        def get(client: Any) -> Any:
            return client.gallery_images.get(group, gallery, name)

        found = patiently(work, lambda: self._api.ask("gallery_images.get", get))
        if found is None:
            body = {
                "location": self._keys.region,
                "tags": place.common_tags,
                "properties": {
                    "osType": "Linux",
                    "osState": "Generalized",
                    "hyperVGeneration": "V2",
                    "architecture": place.arch,
                    "features": [{"name": "SecurityType", "value": place.security}],
                    "identifier": {"publisher": "peerpods", "offer": gallery, "sku": name},
                },
            }
            self._api.put(
                "make the image definition",
                work,
                lambda c: c.gallery_images.begin_create_or_update(group, gallery, name, body, **NO_WAIT),
            )
            found = self._api.until(work, get)
        self._check_definition(found, place)

    @staticmethod
    def _check_definition(found: Any, place: _Place) -> None:
        """One that was there before must be able to hold the image."""
        has = {one.name: one.value for one in found.features or []}.get("SecurityType", "Standard")
        wrong = [
            f"{what} {is_} where {wanted} is needed"
            for what, is_, wanted in (
                ("SecurityType", has, place.security),
                ("hyperVGeneration", _plain(found.hyper_v_generation or "V1"), "V2"),
                ("architecture", _plain(found.architecture or "x64"), place.arch),
            )
            if is_ != wanted
        ]
        if wrong:
            raise InvalidRequestError(
                "DefinitionUnfit",
                f"the image definition {place.path[1]} (IMAGE_DEFINITION_NAME) in the gallery {place.path[0]} has "
                f"{', '.join(wrong)}; name another one, or remove it",
            )

    def _version(self, place: _Place) -> Any:
        return self._api.ask(
            "gallery_image_versions.get",
            lambda c: c.gallery_image_versions.get(self._keys.resource_group, *place.path),
        )

    def _make_version(self, place: _Place, source: str, work: Work) -> None:
        work.phase("import")
        region = {"name": self._keys.region, "regionalReplicaCount": 1, "storageAccountType": "Standard_LRS"}
        body = {
            "location": self._keys.region,
            "tags": place.tags,
            "properties": {
                "publishingProfile": {"targetRegions": [region], "excludeFromLatest": True},
                "storageProfile": {"osDiskImage": {"source": {"id": source}}},
            },
        }
        self._api.put(
            "make the image version",
            work,
            lambda c: c.gallery_image_versions.begin_create_or_update(
                self._keys.resource_group, *place.path, body, **NO_WAIT
            ),
        )

    def _wait_for_version(self, place: _Place, work: Work) -> None:
        work.phase("import")
        while True:
            version = patiently(work, lambda: self._version(place))
            match version.provisioning_state if version is not None else "Missing":
                case "Succeeded":
                    return
                case "Creating" | "Updating":
                    work.sleep(_POLL_SECONDS)
                case state:
                    raise UnavailableError(
                        "ImportFailed", f"the image version {place.version} is {state}; it is made anew"
                    )

    def _remove_version(self, place: _Place, work: Work) -> None:
        self._api.end("delete the image version", lambda c: c.gallery_image_versions, place.path)
        while patiently(work, lambda: self._version(place)) is not None:
            work.sleep(_POLL_SECONDS)

    # The managed disk

    def _uploaded(self, disk: Content, place: _Place, work: Work) -> str:
        """The id of a managed disk with all of the disk in it."""
        found = patiently(work, lambda: self._disk(place))
        if found is not None and found.disk_state == "Unattached":
            return str(found.id)
        vhd = disk.path.with_name(f"{disk.path.name}.vhd")
        work.phase("convert", disk.size)
        try:
            from_raw(disk.path, "vhd", vhd, lambda _phase, done, _total: work.progress(done))
            size = vhd.stat().st_size
            if found is None:
                work.save_blocks(b"", 0)
                self._make_disk(place, size, work)
            self._send(_Vhd(vhd, size, disk.arch, disk.digest), place, work)
        finally:
            vhd.unlink(missing_ok=True)
        group = self._keys.resource_group
        patiently(
            work, lambda: self._api.run("end the upload", lambda c: c.disks.begin_revoke_access(group, place.disk))
        )
        while True:
            found = patiently(work, lambda: self._disk(place))
            if found is None:
                raise UnavailableError("DiskLost", f"the managed disk {place.disk} is gone; it is made anew")
            if found.disk_state == "Unattached":
                return str(found.id)
            work.sleep(_POLL_SECONDS)

    def _make_disk(self, place: _Place, size: int, work: Work) -> None:
        body = {
            "location": self._keys.region,
            "tags": place.tags,
            "sku": {"name": "Standard_LRS"},
            "properties": {
                "osType": "Linux",
                "hyperVGeneration": "V2",
                "supportedCapabilities": {"architecture": place.arch},
                "creationData": {"createOption": "Upload", "uploadSizeBytes": size},
            },
        }
        group = self._keys.resource_group
        self._api.put(
            "make the managed disk", work, lambda c: c.disks.begin_create_or_update(group, place.disk, body, **NO_WAIT)
        )
        work.note("disk", place.disk)
        self._api.until(work, lambda c: c.disks.get(group, place.disk))

    def _send(self, vhd: _Vhd, place: _Place, work: Work) -> None:
        access = {"access": "Write", "durationInSeconds": _ACCESS_SECONDS}
        group = self._keys.resource_group
        granted = patiently(
            work,
            lambda: self._api.run(
                "get access to the disk",
                lambda c: c.disks.begin_grant_access(group, place.disk, access),
            ),
        )
        blob = BlobClient.from_blob_url(granted.access_sas, retry_total=0)

        def send(index: int, data: bytes) -> None:
            at = index * BLOCK
            piece = data[: min(BLOCK, vhd.size - at)]
            patiently(work, lambda: translated("write to the disk", lambda: _upload(blob, piece, at)))

        try:
            send_blocks(vhd, BLOCK, work, send)
        finally:
            blob.close()

    def _disk(self, place: _Place) -> Any:
        return self._api.ask("disks.get", lambda c: c.disks.get(self._keys.resource_group, place.disk))

    def _remove_disk(self, place: _Place) -> None:
        """A disk that may be written to cannot be deleted, so access ends first."""
        group = self._keys.resource_group
        found = self._disk(place)
        if found is None:
            return
        if found.disk_state == "ActiveUpload":
            self._api.run("end the upload", lambda c: c.disks.begin_revoke_access(group, place.disk))
        self._api.end("delete the managed disk", lambda c: c.disks, (place.disk,))


class _Place:
    """The names of one image's parts."""

    def __init__(self, keys: AzureImageKeys, name: ImageName, arch: str) -> None:
        self.arch = arch
        self.security = "TrustedLaunchSupported" if keys.disable_cvm else "ConfidentialVmSupported"
        self.disk = name.label
        self.tags = name.tags
        self.common_tags = {TAG_CLUSTER: name.cluster}
        gallery = keys.gallery_name or "PodVMGallery_" + re.sub(r"[^A-Za-z0-9_.]", "_", name.cluster)
        kind = "" if keys.disable_cvm else "-cvm"
        definition = keys.definition_name or f"podvm-image-{arch.lower()}{kind}"
        # Three numbers below 2^31, of 84 bits of the digest.
        self.version = ".".join(str(int(name.digest[at : at + 7], 16)) for at in (0, 7, 14))
        self.path = (gallery, definition, self.version)
        self.version_id = (
            f"/subscriptions/{keys.subscription_id}/resourceGroups/{keys.resource_group}/providers/Microsoft.Compute"
            f"/galleries/{gallery}/images/{definition}/versions/{self.version}"
        )


def _plain(value: Any) -> str:
    """A word of Azure's, which the SDK makes an enumeration of where it knows it."""
    return str(getattr(value, "value", value))


def _upload(blob: BlobClient, data: bytes, at: int) -> None:
    blob.upload_page(data, offset=at, length=len(data))


def _is_ours(found: Any, name: ImageName) -> bool:
    tags = (found.tags or {}) if found is not None else {}
    return all(tags.get(key) == value for key, value in name.tags.items())


def _is_of(found: Any, cluster: str) -> bool:
    return found is not None and (found.tags or {}).get(TAG_CLUSTER) == cluster
