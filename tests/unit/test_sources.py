"""Keys in files and in the environment: which of them holds, and that a directory is read as one state of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.sources import LARGEST_BYTES, Layer, Source, Sources, merge, read_directory
from providers.base import ConfigError, Problem
from tests.lab.mounted import Mounted

KEYS = st.sampled_from(["TAGS", "PODVM_AMI_ID", "AWS_REGION", "CAA_CONFIG_DIR", "CAA_SECRET_DIR"])
VALUES = st.dictionaries(KEYS, st.sampled_from(["", " ", "a", "b", "c "]))


def problem_of(environ: Mapping[str, str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        Sources(environ).read()
    return {problem.key: problem.message for problem in error.value.problems}


# Which one holds


@given(VALUES, VALUES, VALUES)
def test_the_first_source_that_has_a_value_decides(
    config: dict[str, str], secret: dict[str, str], environ: dict[str, str]
) -> None:
    layers = [Layer(Source.CONFIG_MAP, config), Layer(Source.SECRET, secret), Layer(Source.ENVIRONMENT, environ)]
    merged = merge(layers)
    assert merged.values.keys() == merged.sources.keys()
    for key in {*config, *secret, *environ}:
        allowed = layers[2:] if key.startswith("CAA_") else layers
        having = [layer for layer in allowed if layer.values.get(key, "").strip()]
        if having:
            assert (merged.values[key], merged.sources[key]) == (having[0].values[key], having[0].source)
        else:
            assert key not in merged.values


def test_the_config_map_is_over_the_secret_and_both_over_the_environment(tmp_path: Path) -> None:
    config = Mounted(tmp_path / "config", {"A": "config", "B": ""})
    secret = Mounted(tmp_path / "secret", {"A": "secret", "B": "secret", "C": "secret"})
    environ = dict.fromkeys("ABCD", "environment")
    environ |= {"CAA_CONFIG_DIR": str(config.path), "CAA_SECRET_DIR": str(secret.path)}
    merged = Sources(environ).read()
    assert {key: str(merged.sources[key]) for key in "ABCD"} == {
        "A": "ConfigMap",
        "B": "Secret",
        "C": "Secret",
        "D": "environment",
    }
    assert merged.over(environ)["A"] == "config"


def test_without_directories_there_is_the_environment_alone() -> None:
    sources = Sources({"A": "1", "EMPTY": "", "CAA_CONFIG_DIR": " "})
    assert sources.read().values == {"A": "1"}
    assert sources.places == ()


def test_values_are_not_in_what_is_printed() -> None:
    assert "hunter2" not in repr(merge([Layer(Source.SECRET, {"A": "hunter2"})]))
    assert "hunter2" not in repr(Layer(Source.SECRET, {"A": "hunter2"}))


# Reading


def test_a_mounted_directory_is_its_files_without_what_kubernetes_puts_beside_them(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "config", {"A": "1", "B": "two words\n"})
    assert read_directory(mounted.path) == {"A": "1", "B": "two words"}
    mounted.write({"B": "3"})
    assert read_directory(mounted.path) == {"B": "3"}


def test_a_plain_directory_will_do_and_what_is_no_key_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "A").write_text("1\n")
    (tmp_path / "lines").write_text("a\n\nb\r\n")
    (tmp_path / "not a key").write_text("x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert read_directory(tmp_path) == {"A": "1", "lines": "a\n\nb"}


def test_a_directory_that_changes_all_the_time_is_read_in_one_state(tmp_path: Path) -> None:
    names = [f"KEY_{number}" for number in range(8)]
    mounted = Mounted(tmp_path / "config", dict.fromkeys(names, "0"))
    done = threading.Event()

    def change() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            mounted.write(dict.fromkeys(names, str(turn)))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = {tuple(read_directory(mounted.path).items()) for _ in range(500)}
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:  # the other thread had no turn yet
            seen.add(tuple(read_directory(mounted.path).items()))
    finally:
        done.set()
        thread.join()
    for state in seen:
        assert [name for name, _ in state] == names
        assert len({value for _, value in state}) == 1
    assert len(seen) > 1


def test_the_link_is_resolved_once(tmp_path: Path) -> None:
    # Between the move of the link and the removal of the old files both states can be read, each whole.
    mounted = Mounted(tmp_path / "config", {"A": "1", "B": "1"})
    seen: list[dict[str, str]] = []
    mounted.write({"A": "2", "B": "2"}, before_removal=lambda: seen.append(read_directory(mounted.path)))
    assert seen == [{"A": "2", "B": "2"}]


def test_the_identity_changes_with_the_contents_and_only_then(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "config", {"A": "1"})
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "B").write_text("1")
    sources = Sources({"CAA_CONFIG_DIR": str(mounted.path), "CAA_SECRET_DIR": str(plain)})
    seen = [sources.identity()]
    assert sources.identity() == seen[-1]
    mounted.write({"A": "2"})
    seen.append(sources.identity())
    (plain / "B").write_text("12")
    seen.append(sources.identity())
    (plain / "C").write_text("1")
    seen.append(sources.identity())
    (plain / "B").unlink()
    seen.append(sources.identity())
    plain.rename(tmp_path / "away")
    seen.append(sources.identity())
    assert len(set(seen)) == len(seen)
    assert sources.identity() == seen[-1]


# What cannot be read


def test_a_directory_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.write_text("")
    found = problem_of({"CAA_CONFIG_DIR": str(missing), "CAA_SECRET_DIR": str(file)})
    assert found.keys() == {"CAA_CONFIG_DIR", "CAA_SECRET_DIR"}
    assert str(missing) in found["CAA_CONFIG_DIR"]
    assert str(file) in found["CAA_SECRET_DIR"]
    assert "absolute" in problem_of({"CAA_CONFIG_DIR": "config"})["CAA_CONFIG_DIR"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"\xff\xfe", "UTF-8"), (b"a\0b", "NUL"), (b"x" * (LARGEST_BYTES + 1), "1048576")]
)
def test_contents_that_are_no_text_are_named_by_their_key(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "TAGS").write_bytes(content)
    found = problem_of({"CAA_CONFIG_DIR": str(tmp_path)})
    assert list(found) == ["TAGS"]
    assert told in found["TAGS"]


# What is told of it


def test_no_value_of_the_secret_is_told_with_what_is_wrong() -> None:
    secret = {"VXLAN_PORT": "pw", "PASSWORD": "correct horse", "LONGER": "correct horse battery"}
    merged = merge([Layer(Source.CONFIG_MAP, {"TAGS": "a=pw"}), Layer(Source.SECRET, secret)])
    found = [
        Problem("VXLAN_PORT", "'pw' is not allowed"),
        Problem("TAGS", "'a=pw' is not allowed"),
        Problem("", "the cloud says 'correct horse battery' or 'correct horse'"),
    ]
    assert [problem.message for problem in merged.hidden(found)] == [
        "'********' is not allowed",
        "'a=pw' is not allowed",
        "the cloud says '********' or '********'",
    ]
