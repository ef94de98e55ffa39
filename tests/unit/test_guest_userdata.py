"""The pod VM's reader of user data: strict in what it reads, and unable to write anywhere but where it may."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.guest.cloudconfig import read_events
from caa.guest.userdata import (
    ALLOWED,
    MAX_BYTES,
    _known_shape,
    parse,
    provision,
    read_source,
    write_files,
)
from caa.guest.writefiles import File, UserDataError


def cloud_config(files: list[tuple[str, str]]) -> bytes:
    """The emitter's text: two spaces, `- path`, `content: |`, six spaces before each line; none for no content."""
    lines = ["#cloud-config", "", "write_files:"]
    for path, content in files:
        lines.append(f"  - path: {path}")
        if content:
            lines.append("    content: |")
            lines += [f"      {line}" for line in content.removesuffix("\n").split("\n")]
    return ("\n".join(lines) + "\n").encode()


def test_the_emitters_text_is_read_as_it_was_meant() -> None:
    apf = '{\n    "tls-server-key": "-----BEGIN PRIVATE KEY-----\\nMIG\\n",\n    "a": {}\n}\n'
    text = cloud_config([("/run/peerpod/apf.json", apf), ("/run/peerpod/scratch-space.marker", "")])
    assert parse(text) == [File("/run/peerpod/apf.json", apf), File("/run/peerpod/scratch-space.marker", "")]


# The first line decides a block's indentation, so it begins with something other than space or an empty line.
_line = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
_content = st.builds(
    lambda head, rest: "\n".join(["x" + head, *rest, "end"]) + "\n", _line, st.lists(_line, max_size=9)
)


@given(st.lists(st.tuples(st.sampled_from(sorted(ALLOWED)), _content), max_size=4))
def test_any_content_comes_out_byte_for_byte(files: list[tuple[str, str]]) -> None:
    assert parse(cloud_config(files)) == [File(*file) for file in files]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"runcmd: [reboot]\n", "key (runcmd) in the user data; allowed: write_files"),
        (b"write_files:\n  - path: /a\n    permissions: '0600'\n", "line 3: key (permissions)"),
        (b"write_files:\n  - path: /a\n    path: /b\n", "key path twice"),
        (b"write_files:\n  - path: /a\nwrite_files: []\n", "key write_files twice"),
        (b"write_files:\n  - content: a\n", "no path"),
        (b"write_files: [{path: /a, content: !!binary aGk=}]\n", "without a type tag"),
        (b"write_files: &a [{path: /a}]\n", "expected a list"),
        (b"write_files: {path: /a}\n", "expected a list"),
        (b"write_files: []\n---\nwrite_files: []\n", "one document only"),
        (b"\xff\n", "not UTF-8 at byte 0"),
        (b"a: [\n", "key (a)"),
        (b"#" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(text: bytes, part: str) -> None:
    with pytest.raises(UserDataError) as caught:
        parse(text)
    assert part in str(caught.value)


_piece = st.sampled_from(
    [
        "  - path: ",
        "    content: |",
        "\n",
        "      ",
        "    ",
        " ",
        "#",
        "-",
        ": ",
        "|",
        "x",
        "/a",
        "/run/peerpod/apf.json",
    ]
)
_nearly = st.lists(st.one_of(_piece, st.text(max_size=4)), max_size=30).map("".join)


@given(st.sampled_from(["  - path: /a\n", "  - path: /a\n    content: |\n      x\n", ""]), _nearly)
def test_the_quick_reader_reads_what_yaml_reads_or_leaves_it_to_yaml(entry: str, more: str) -> None:
    for text in (f"#cloud-config\n\nwrite_files:\n{entry}{more}", f"#cloud-config\n\nwrite_files:\n{entry}{more}\n"):
        quick = _known_shape(text)
        if quick is not None:
            assert quick == read_events(text)


def test_the_workers_own_text_needs_no_yaml() -> None:
    files = [(path, "x: {\n\n  - path: /y\n}\n") for path in sorted(ALLOWED)]
    assert _known_shape(cloud_config(files).decode()) == [File(*file) for file in files]


def test_content_that_lost_its_indentation_is_not_quoted_in_the_error() -> None:
    with pytest.raises(UserDataError) as caught:
        parse(b"write_files:\n  - path: /a\n    content: |\n    MIGHAgEAMBMGByqGSM49: x\n")
    assert "MIGH" not in str(caught.value)


_junk = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    st.text("abc:- |>&*!%?{}[],'\"\n\t#~<=", max_size=80).map(str.encode),
    st.integers(1, 5000).map(lambda depth: b"[" * depth),
    st.integers(1, 5000).map(lambda depth: b"write_files: " + b"{a: " * depth),
)


@given(_junk)
def test_no_input_ends_in_anything_but_files_or_a_clear_error(text: bytes) -> None:
    with suppress(UserDataError):
        assert isinstance(parse(text), list)


_TRICKS = st.sampled_from(
    [
        "/etc/passwd",
        "/run/peerpod/../../etc/passwd",
        "/run/peerpod//apf.json",
        "/run/peerpod/./apf.json",
        "run/peerpod/apf.json",
        "/run/peerpod/apf.json/",
        "/run/peerpod/apf.json\0",
        "/run/peerpod/.apf.json.new",
        "/run/peerpod",
        "",
    ]
)


@given(st.lists(st.builds(File, st.one_of(st.sampled_from(sorted(ALLOWED)), _TRICKS, st.text(max_size=30)), st.text())))
def test_nothing_is_ever_written_outside_the_allowed_paths(
    tmp_path_factory: pytest.TempPathFactory, files: list[File]
) -> None:
    root = tmp_path_factory.mktemp("root")
    files = [file._replace(content=file.content.encode("utf-8", "replace").decode()) for file in files]
    written = write_files(files, root)
    found = {f"/{path.relative_to(root)}" for path in root.rglob("*") if not path.is_dir()}
    assert found == set(written) == {file.path for file in files} & ALLOWED.keys()


def test_files_with_secrets_are_for_root_alone(tmp_path: Path) -> None:
    write_files([File(path, "x\n") for path in ALLOWED], tmp_path)
    modes = {path: stat.S_IMODE((tmp_path / path[1:]).stat().st_mode) for path in ALLOWED}
    assert modes["/run/peerpod/apf.json"] == modes["/run/peerpod/auth.json"] == 0o600
    assert set(modes.values()) == {0o600, 0o644}
    assert stat.S_IMODE((tmp_path / "run/peerpod").stat().st_mode) == 0o755


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    target = tmp_path / "run/peerpod/apf.json"
    target.parent.mkdir(parents=True)
    target.symlink_to(victim)
    write_files([File("/run/peerpod/apf.json", "new\n")], tmp_path)
    assert (victim.read_text(), target.read_text(), target.is_symlink()) == ("untouched", "new\n", False)


def test_user_data_in_error_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserDataError):
        provision(cloud_config([("/run/peerpod/apf.json", "{}\n")]) + b"users: []\n", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_missing_user_data_says_which_file() -> None:
    with pytest.raises(UserDataError, match="cannot read /nowhere/user-data: No such file"):
        read_source(Path("/nowhere/user-data"))
