"""`caa image build` from a real registry that asks for a password."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.images.conftest import Build
from tests.lab.registry import PASSWORD, USER, Registry, layer_of
from tests.lab.smalldisk import convert, gpt_disk
from tests.lab.tokens import TokenServer

pytest.importorskip("oras")
if shutil.which("docker-registry") is None:
    pytest.skip("needs docker-registry", allow_module_level=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(autouse=True)
def _right_password(registry: Registry) -> None:
    registry.write_auth({registry.host: PASSWORD})


@pytest.fixture
def pull(build: Build, registry: Registry) -> Build:
    """Build from oci::<host>/<what is given> with the credentials."""

    def run(image: str, *arguments: str) -> object:
        return build(f"oci::{registry.host}/{image}", "--auth-file", str(registry.auth_file), *arguments)

    return run  # type: ignore[return-value]


@pytest.fixture(scope="module")
def qcow2(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return convert(disk, "qcow2", tmp_path_factory.mktemp("qcow2") / "podvm").read_bytes()


def test_an_artefact_that_is_a_disk_is_taken_by_tag_and_by_digest(
    pull: Build, registry: Registry, disk: Path, output: Path, qcow2: bytes
) -> None:
    digest = registry.push_artefact("org/artefact", "1.2", {"podvm.qcow2": qcow2})
    for reference in (":1.2", f"@{digest}", f":1.2@{digest}"):
        assert pull(f"org/artefact{reference}").code == 0
        assert output.read_bytes() == disk.read_bytes()
        output.unlink()


def test_an_artefact_may_be_packed_as_the_incumbents_are(
    pull: Build, registry: Registry, disk: Path, output: Path, qcow2: bytes
) -> None:
    packed = lzma.compress(gzip.decompress(layer_of({"podvm.qcow2": qcow2})), preset=0)
    registry.push_artefact("org/packed", "latest", {"podvm.tar.xz": packed})
    assert pull("org/packed").code == 0
    assert output.read_bytes() == disk.read_bytes()


def test_one_of_several_files_of_an_artefact_is_named(
    pull: Build, registry: Registry, disk: Path, output: Path, qcow2: bytes
) -> None:
    registry.push_artefact("org/two", "latest", {"a.qcow2": qcow2, "notes.txt": b"text"})
    assert "is an artefact of a.qcow2, notes.txt; name one of these, as in oci::" in pull("org/two").stderr
    assert pull("org/two::a.qcow2").code == 0
    assert output.read_bytes() == disk.read_bytes()


def test_a_disk_in_an_images_file_system_is_found_where_the_incumbent_has_it_and_where_it_is_named(
    pull: Build, registry: Registry, disk: Path, output: Path, qcow2: bytes
) -> None:
    layers: list[Mapping[str, bytes]] = [
        {"image/podvm.qcow2": b"old"},
        # A directory that is replaced is hidden in the layers below, not in its own.
        {"image/.wh..wh..opq": b"", "./image/podvm.qcow2": qcow2, "srv/d.raw": disk.read_bytes()},
        {"x": b""},
    ]
    registry.push_image("org/image", "1", layers)
    for path in ("", "::/image/podvm.qcow2", "::srv/d.raw"):
        assert pull(f"org/image:1{path}").code == 0
        assert output.read_bytes() == disk.read_bytes()
        output.unlink()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([{"image/podvm.qcow2": b"x"}, {"image/.wh.podvm.qcow2": b""}], "was deleted in a later layer"),
        ([{"image/podvm.qcow2": b"x"}, {".wh.image": b""}], "was deleted in a later layer"),
        ([{"image/podvm.qcow2": b"x"}, {"image/.wh..wh..opq": b""}], "was deleted in a later layer"),
        ([{"image/podvm.qcow2@": b"/etc/shadow"}], "is a link to /etc/shadow; name that"),
        ([{"../../image/podvm.qcow2": b"x"}], "has no file /image/podvm.qcow2"),
        ([{"other": b"x"}], "has no file /image/podvm.qcow2"),
        ([{"image/podvm.qcow2": b"text"}], "is not a disk"),
    ],
)
def test_an_image_without_a_disk_is_refused(
    pull: Build, registry: Registry, layers: list[Mapping[str, bytes]], words: str
) -> None:
    registry.push_image("org/bad", "1", layers)
    done = pull("org/bad:1")
    assert done.code == 1
    assert words in done.stderr
    assert f"{registry.host}/org/bad:1" in done.stderr


def test_of_an_index_the_right_architecture_is_taken(
    pull: Build, registry: Registry, disk: Path, output: Path, qcow2: bytes, tmp_path: Path
) -> None:
    arm = gpt_disk(tmp_path / "arm", "BOOTAA64.EFI").read_bytes()
    digests = {
        "amd64": registry.push_artefact("org/index", "a", {"d": qcow2}),
        "arm64": registry.push_artefact("org/index", "b", {"d": arm}),
    }
    registry.push_index("org/index", "latest", digests)
    assert pull("org/index").code == 0
    assert output.read_bytes() == disk.read_bytes()
    output.unlink()
    assert pull("org/index", "--arch", "arm64").facts["measurements"]["disk"] == hashlib.sha256(arm).hexdigest()
    output.unlink()
    assert "is there for amd64, arm64; what is asked for is s390x" in pull("org/index", "--arch", "s390x").stderr


# Credentials


def test_the_entry_for_the_longest_part_of_the_name_decides(pull: Build, registry: Registry, qcow2: bytes) -> None:
    registry.push_artefact("team/secret", "1", {"d": qcow2})
    registry.write_auth({registry.host: "wrong", f"{registry.host}/team": PASSWORD})
    assert pull("team/secret:1").code == 0


def test_the_key_of_the_configuration_names_the_credentials(
    build: Build, registry: Registry, qcow2: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push_artefact("org/key", "1", {"d": qcow2})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(registry.auth_file))
    assert build(f"oci::{registry.host}/org/key:1").code == 0


@pytest.mark.parametrize("passwords", [{}, {"other.example": PASSWORD}, {"": "wrong"}])
def test_without_the_right_password_it_is_refused_and_no_password_is_told(
    pull: Build, registry: Registry, passwords: dict[str, str]
) -> None:
    registry.write_auth({place or registry.host: password for place, password in passwords.items()})
    done = pull("org/anything:1")
    assert f"{registry.host}/org/anything:1 may not be read" in done.stderr
    assert "wrong" not in done.stderr


@pytest.mark.parametrize(
    "text", ["", "[]", '{"auths": 1}', '{"auths": {"HOST": "hunter2"}}', '{"auths": {"HOST": {"auth": "hunter2"}}}']
)
def test_a_file_of_credentials_that_is_none_is_named_without_its_content(
    pull: Build, registry: Registry, text: str
) -> None:
    registry.auth_file.write_text(text.replace("HOST", registry.host))
    done = pull("org/anything:1")
    assert f"{registry.auth_file} is not of the form" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_registry_that_wants_tokens_is_given_them(
    build: Build, tmp_path: Path, disk: Path, qcow2: bytes, output: Path
) -> None:
    """As all large registries do: the password goes to whoever gives out tokens, not to the registry."""
    with TokenServer(USER, PASSWORD) as tokens, Registry(tmp_path, tokens) as registry:
        registry.push_image("org/image", "1", [{"image/podvm.qcow2": qcow2}])
        source = f"oci::{registry.host}/org/image:1"
        assert "may not be read" in build(source).stderr
        registry.write_auth({registry.host: "wrong"})
        assert "may not be read" in build(source, "--auth-file", str(registry.auth_file)).stderr
        registry.write_auth({f"{registry.host}/org/image": PASSWORD})
        assert build(source, "--auth-file", str(registry.auth_file)).code == 0
    assert output.read_bytes() == disk.read_bytes()
    assert set(tokens.asked) == {"repository:org/image:pull"}


# What goes wrong


def test_what_is_not_there_is_told(pull: Build, registry: Registry) -> None:
    assert f"{registry.host}/org/nothing:1 does not exist: the server answered 404" in pull("org/nothing:1").stderr


def test_a_blob_that_was_changed_in_the_registry_is_refused(pull: Build, registry: Registry, qcow2: bytes) -> None:
    registry.push_artefact("org/damaged", "1", {"d": qcow2 + b"its own"})
    digest = f"sha256:{hashlib.sha256(qcow2 + b'its own').hexdigest()}"
    registry.damage(digest)
    done = pull("org/damaged:1")
    assert "has the sha256" in done.stderr
    assert digest.partition(":")[2] in done.stderr


def test_a_manifest_that_was_changed_in_the_registry_is_refused(pull: Build, registry: Registry, qcow2: bytes) -> None:
    digest = registry.push_artefact("org/forged", "1", {"forged": qcow2})
    registry.damage(digest)
    assert pull(f"org/forged@{digest}").code == 1


def test_a_registry_that_is_not_there_is_told(build: Build) -> None:
    done = build("oci::127.0.0.1:1/org/image:1")
    assert "127.0.0.1:1/org/image:1 cannot be read" in done.stderr
