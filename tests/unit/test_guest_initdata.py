"""Initdata in the pod VM: what is written, what is measured, what is refused. And provisioning as a whole."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caa.guest import cloudconfig, initdata
from caa.guest.initdata import FILES, NONE_GIVEN, NONE_GIVEN_FILES, InitdataError, read_initdata
from caa.guest.userdata import ALLOWED, provision
from caa.guest.writefiles import UserDataError
from caa.guestconfig import auth_json, cloud_config, guest_files
from caa.guestconfig import initdata as worker_initdata

GOLDEN = Path(__file__).with_name("golden")
TOML = b"""algorithm = "sha384"
version = "0.1.0"

[data]
"aa.toml" = '''
[token_configs]
url = "https://kbs"
'''
"cdh.toml" = "socket = 1\\n"
"policy.rego" = '''
package agent_policy
'''
"""
# Everything a guest may find written, and what becomes of it, relative to its root.
EVER = {path[1:] for path in (*ALLOWED, *FILES.values(), initdata.DIGEST)}


def packed(toml: bytes) -> str:
    return base64.b64encode(gzip.compress(toml, mtime=0)).decode()


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if not path.is_dir()}


def provisioned(tmp_path: Path, user_data: bytes) -> dict[str, str]:
    provision(user_data, tmp_path / "root")
    return tree(tmp_path / "root")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_digest_is_that_of_the_toml_text_and_comes_before_the_files_it_measures(algorithm: str) -> None:
    toml = TOML.replace(b"sha384", algorithm.encode())
    files = read_initdata(packed(toml))
    assert list(files) == ["/run/peerpod/initdata.digest", *FILES.values()]
    assert files["/run/peerpod/initdata.digest"] == hashlib.new(algorithm, toml).hexdigest()
    assert files["/run/peerpod/aa.toml"] == '[token_configs]\nurl = "https://kbs"\n'
    assert files["/run/peerpod/policy.rego"] == "package agent_policy\n"


def test_a_vm_without_initdata_attests_to_the_empty_one() -> None:
    assert gzip.decompress(base64.b64decode(NONE_GIVEN)) == initdata.NONE_GIVEN_TOML
    assert read_initdata(NONE_GIVEN) == NONE_GIVEN_FILES
    assert list(NONE_GIVEN_FILES) == ["/run/peerpod/initdata.digest", "/run/peerpod/aa.toml"]


def test_a_stock_workers_user_data_becomes_the_files_a_stock_guest_has(tmp_path: Path) -> None:
    text = (GOLDEN / "stock-user-data.yaml").read_text().replace("@INITDATA@", packed(TOML))
    files = provisioned(tmp_path, text.encode())
    assert set(files) == EVER
    assert json.loads(files["run/peerpod/apf.json"])["pod-name"] == "web-0"
    assert files["run/peerpod/auth.json"] == '{"auths":{"quay.io":{"auth":"dXNlcjpwYXNz"}}}\n'
    assert files["run/peerpod/initdata"] == packed(TOML) + "\n"
    assert files["run/peerpod/scratch-space.marker"] == ""
    assert files["run/peerpod/cdh.toml"] == "socket = 1\n"  # of the initdata, which is measured
    assert files["run/peerpod/initdata.digest"] == hashlib.sha384(TOML).hexdigest()
    modes = {path: stat.S_IMODE((tmp_path / "root" / path).stat().st_mode) for path in files}
    assert {path for path, mode in modes.items() if mode != 0o644} == {"run/peerpod/apf.json", "run/peerpod/auth.json"}


def test_what_our_worker_sends_becomes_the_same_files(tmp_path: Path) -> None:
    network = json.loads((GOLDEN / "apf.json").read_text())["pod-network"]
    text = (GOLDEN / "apf.json").read_text()
    auth = auth_json({"quay.io": "dXNlcjpwYXNz"})
    sent = guest_files(apf=text, auth=auth, initdata=worker_initdata(TOML.decode()), scratch_space=True)
    files = provisioned(tmp_path, cloud_config(sent))
    assert set(files) == EVER
    assert files["run/peerpod/apf.json"] == text + "\n"
    assert json.loads(files["run/peerpod/apf.json"])["pod-network"] == network
    assert files["run/peerpod/initdata.digest"] == hashlib.sha384(TOML).hexdigest()


def test_without_initdata_the_ready_made_one_is_written_and_provisioning_again_changes_nothing(tmp_path: Path) -> None:
    sent = cloud_config(guest_files(apf="{}"))
    first = provisioned(tmp_path, sent)
    assert first == {
        "run/peerpod/apf.json": "{}\n",
        "run/peerpod/initdata": NONE_GIVEN,
        "run/peerpod/initdata.digest": hashlib.sha256(initdata.NONE_GIVEN_TOML).hexdigest(),
        "run/peerpod/aa.toml": "",
    }
    assert provisioned(tmp_path, sent) == first


def test_initdata_that_the_image_brought_is_used(tmp_path: Path) -> None:
    there = tmp_path / "root/run/peerpod/initdata"
    there.parent.mkdir(parents=True)
    there.write_text(packed(TOML))
    files = provisioned(tmp_path, cloud_config(guest_files(apf="{}")))
    assert files["run/peerpod/initdata.digest"] == hashlib.sha384(TOML).hexdigest()


WRONG = [
    ("%%%", "is not base64"),
    ("é", "is not base64"),
    ("AAAA", "is not base64 of gzip"),
    (packed(TOML)[:-24], "is not base64 of gzip"),
    (base64.b64encode(gzip.compress(TOML, mtime=0) + b"more").decode(), "something follows it"),
    (packed(b"#" * (2 << 20)), "unpacks to more than 1048576 bytes"),
    (packed(b"\xff"), "not UTF-8 at byte 0"),
    (packed(b"algorithm"), "is not TOML"),
    (packed(b'version = "1"'), "algorithm is 'None'; allowed: sha256, sha384, sha512"),
    (packed(b'algorithm = "md5"'), "algorithm is 'md5'; allowed: sha256, sha384, sha512"),
    (packed(b'algorithm = ["sha256"]'), "algorithm is"),
    (packed(b'algorithm = "sha256"\nversion = 1'), "version is '1'; allowed: text"),
    (packed(b'algorithm = "sha256"\ndata = 1'), "data is not a table"),
    (packed(b'algorithm = "sha256"\n[data]\n"aa.toml" = 1'), "data.'aa.toml' is not text"),
    (packed(b'algorithm = "sha256"\n[data.a]\n"aa.toml" = "x"'), "data.'a' is not text"),
]


@pytest.mark.parametrize(("text", "part"), WRONG)
def test_initdata_in_error_is_told_and_nothing_at_all_is_written(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(InitdataError) as caught:
        read_initdata(text)
    assert part in str(caught.value)
    files = [{"path": "/run/peerpod/apf.json", "content": "x"}, {"path": "/run/peerpod/initdata", "content": text}]
    with pytest.raises(InitdataError):
        provision(json.dumps({"write_files": files}).encode(), tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../apf.json",
        "/etc/passwd",
        "./aa.toml",
        "aa.toml/",
        "AA.toml",
        "aa.toml\\u0000",
        "apf.json",
        "initdata.digest",
        "",
    ],
)
def test_names_that_are_not_the_three_are_skipped_whatever_path_they_spell(tmp_path: Path, name: str) -> None:
    toml = f'algorithm = "sha256"\n[data]\n"{name}" = "evil"\n"aa.toml" = "good"\n'.encode()
    files = provisioned(tmp_path, cloud_config(guest_files(apf="{}", initdata=packed(toml))))
    assert set(files) == {f"run/peerpod/{part}" for part in ("apf.json", "initdata", "initdata.digest", "aa.toml")}
    assert files["run/peerpod/aa.toml"] == "good"
    assert "evil" not in "".join(files.values())


def test_a_path_twice_is_refused(tmp_path: Path) -> None:
    twice = b"write_files:\n- path: /run/peerpod/apf.json\n- path: /run/peerpod/apf.json\n"
    with pytest.raises(UserDataError, match=r"'/run/peerpod/apf\.json' twice"):
        provision(twice, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_link_in_place_of_the_directory_is_refused_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "root/run").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/run/peerpod").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserDataError, match=r"cannot write /run/peerpod/apf\.json: Not a directory"):
        provisioned(tmp_path, cloud_config(guest_files(apf="{}")))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_directory_in_the_way_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "root/run/peerpod/apf.json/x").mkdir(parents=True)
    with pytest.raises(UserDataError, match=r"cannot write /run/peerpod/apf\.json"):
        provisioned(tmp_path, cloud_config(guest_files(apf="{}")))


@pytest.mark.parametrize("parser", [cloudconfig._parser, yaml.SafeLoader])
def test_half_a_character_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parser: object) -> None:
    monkeypatch.setattr(cloudconfig, "_parser", parser)  # only the slow one lets it through
    half = b'write_files:\n- path: /run/peerpod/apf.json\n  content: "\\uD800"\n'
    with pytest.raises(UserDataError):
        provision(half, tmp_path / "root")
    assert not (tmp_path / "root").exists()


_names = st.one_of(
    st.sampled_from(["aa.toml", "cdh.toml", "policy.rego", "../x", "/etc/x", "aa.toml/", "./aa.toml", "apf.json", ""]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
)
_values = st.one_of(st.text(max_size=20), st.integers(-9, 9), st.lists(st.text(max_size=3), max_size=2))
_tomls = st.builds(
    lambda algorithm, data: (
        f"algorithm = {json.dumps(algorithm)}\n[data]\n"
        + "".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in data.items())
    ).encode("utf-8", "replace"),
    st.sampled_from(["sha256", "sha384", "sha512", "md5", ""]),
    st.dictionaries(_names, _values, max_size=5),
)
_initdata = st.one_of(
    _tomls.map(packed),
    st.binary(max_size=60).map(packed),
    st.binary(max_size=60).map(lambda data: base64.b64encode(data).decode()),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
)
_paths = st.one_of(
    st.sampled_from(
        [*ALLOWED, "/etc/passwd", "/run/peerpod/../../etc/x", "/run/peerpod/apf.json/", "run/peerpod/apf.json"]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
_entries = st.lists(st.tuples(_paths, st.text(max_size=30)), max_size=4)


@given(_entries, st.one_of(st.none(), _initdata), st.binary(max_size=20))
def test_whatever_comes_the_guest_writes_its_own_paths_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]], given_initdata: str | None, tail: bytes
) -> None:
    directory = tmp_path_factory.mktemp("guest")
    if given_initdata is not None:
        entries = [*entries, ("/run/peerpod/initdata", given_initdata)]
    files = [{"path": path, "content": content} for path, content in entries]
    text = json.dumps({"write_files": files}).encode()  # YAML, too, and any content gets through
    for user_data in (text, text + tail, text[: len(text) // 2]):
        before = {str(path.relative_to(directory)) for path in directory.rglob("*")}
        with suppress(UserDataError, InitdataError):
            provisioned(directory, user_data)
        after = {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}
        assert after - before <= {f"root/{path}" for path in EVER}
