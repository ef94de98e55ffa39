"""What the image builder asks of Azure and what its emulator answers, against the models of Microsoft's SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from azure.mgmt.compute import models

from tests.clouds.azure.shape import misfits
from tests.clouds.azure_image_lab import GROUP, TOKEN, Cloud, emptied, server
from tests.clouds.imagelab import image_lab, make_disk

# What is asked for, by verb and the kind of resource, and what the answer to it is.
ASKED: dict[str, tuple[Any, Any]] = {
    "PUT galleries": (models.Gallery, models.Gallery),
    "PUT galleries/images": (models.GalleryImage, models.GalleryImage),
    "PUT galleries/images/versions": (models.GalleryImageVersion, models.GalleryImageVersion),
    "PUT disks": (models.Disk, models.Disk),
    "POST disks/beginGetAccess": (models.GrantAccessData, models.AccessUri),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud where an image was built."""
    directory = tmp_path_factory.mktemp("azure")
    disk = make_disk(directory / "disk.raw", size=4 << 20, blocks=2)
    with server(directory) as emulator, emptied(emulator) as cloud:
        with image_lab(directory, cloud.environ(), disk) as lab:
            lab.run("ensure")
        yield cloud


def asked(cloud: Cloud) -> dict[str, list[tuple[str, Any]]]:
    """Path and body of each request with one, by verb and kind."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for record in cloud.way.records:
        method, _, path = record.action.partition(" ")
        if path.startswith(GROUP) and record.body:
            below = path.removeprefix(f"{GROUP}/").split("/")
            kinds = [*below[::2], *below[-1:]] if method == "POST" and len(below) % 2 == 0 else below[::2]
            found.setdefault(f"{method} {'/'.join(kinds)}", []).append((path, json.loads(record.body)))
    return found


def test_all_that_is_asked_for_with_a_body_is_looked_at_here(built: Cloud) -> None:
    assert set(asked(built)) == set(ASKED)


@pytest.mark.parametrize("kind", ASKED)
def test_every_key_and_word_that_the_builder_sends_is_the_sdks(built: Cloud, kind: str) -> None:
    model, _ = ASKED[kind]
    for _, body in asked(built)[kind]:
        assert misfits(model, body, asked=True) == []
        text = json.dumps(body)
        for key in set(re.findall(r'"(\w+)": ', json.dumps({**body, "tags": {}}))) - {"tags"}:
            misspelt = json.loads(text.replace(f'"{key}": ', f'"{key}z": '))
            assert misfits(model, misspelt, asked=True), f"nobody misses {key}"


@pytest.mark.parametrize("kind", ASKED)
def test_every_key_and_word_of_the_answers_is_the_sdks(built: Cloud, kind: str) -> None:
    method, _, _ = kind.partition(" ")
    path, body = asked(built)[kind][0]
    # The disk is gone when the image is there, and a version wants one that nobody writes to any more.
    disk, made = asked(built)["PUT disks"][0]
    built.http.delete(disk, headers=TOKEN)
    built.http.put(disk, json=made, headers=TOKEN)
    if "versions" in kind:
        _, access = asked(built)["POST disks/beginGetAccess"][0]
        for verb in ("beginGetAccess", "endGetAccess"):
            built.http.post(f"{disk}/{verb}", json=access, headers=TOKEN)
    answer = built.http.request(method, path, json=body, headers=TOKEN)
    # Of a disk the API's definition has no 201, and the SDK takes it for a failure.
    assert answer.status_code in ((200, 202) if "disks" in kind else (200, 201, 202))
    for word in ("Azure-AsyncOperation", "Location"):
        assert answer.headers[word].startswith("https://")
    assert int(answer.headers["Retry-After"]) >= 0
    operation = built.http.get(answer.headers["Azure-AsyncOperation"], headers=TOKEN).json()
    assert operation["status"] == "Succeeded"
    _, model = ASKED[kind]
    found = built.http.get(answer.headers["Location"] if method == "POST" else path, headers=TOKEN)
    assert misfits(model, found.json()) == []


def test_refusals_have_the_shape_of_an_arm_error(built: Cloud) -> None:
    for method, path, body in (
        ("GET", f"{GROUP}/disks/none", None),
        ("PUT", f"{GROUP}/galleries/none/images/none", {"location": "westeurope"}),
        ("DELETE", f"{GROUP}/galleries/podvmgallery_prod", None),
    ):
        answer = built.http.request(method, path, json=body, headers=TOKEN)
        assert answer.status_code in (404, 409)
        assert misfits(models.ApiError, answer.json()["error"]) == []
