"""What the documents name is there: files, commands, keys. And every key of the incumbent is told of."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa.cli.main import main
from caa.knownkeys import WITHOUT_USE, every_key
from tests.unit.test_knownkeys import CLOUDS, COMMON

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Upper-case words that are no keys of ours: those of others that are named as such, and kinds of values.
FOREIGN = {
    *("AWS_VPC_ID", "LIBVIRT_DIR_NAME", "LATEST_AMI_ID", "LATEST_IMAGE_ID"),  # the operator's
    *("CAA_TRACES_ENDPOINT",),
}


def ids(page: Path) -> str:
    """How a test names a page."""
    return page.name


def code(text: str) -> Iterator[str]:
    """The lines of fenced blocks, and what stands between backticks."""
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    for block in fenced:
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_named_are_there(page: Path) -> None:
    for piece in code(page.read_text()):
        for path in re.findall(r"\b((?:docker|tests|migrations|docs)/[\w./*-]*[\w*])", piece):
            # CLOUD stands for one of them.
            pattern = path.replace("CLOUD", "*")
            assert any(ROOT.glob(pattern)), path


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_that_are_named_exist(page: Path) -> None:
    for piece in code(page.read_text()):
        for words in re.findall(r"(?:^|bin/|-- )caa((?: [a-z]+){1,2})\b", piece):
            assert answers_help(words.split()), f"caa{words}"


def answers_help(words: list[str]) -> bool:
    """Whether there is such a command, with this verb if it has any."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main([*words, "--help"])
        except SystemExit as end:
            return end.code == 0
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=ids)
def test_keys_that_are_named_are_known(page: Path) -> None:
    known = {key.name for key in every_key()} | set(WITHOUT_USE) | FOREIGN
    prefixes = {name.partition("_")[0] for name in known if "_" in name} - {"NODE", "IMAGE", "USE", "CERT"}
    for piece in code(page.read_text()):
        for word in re.findall(r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b", piece):
            if word.partition("_")[0] in prefixes:
                assert word in known, word


def test_whoever_moves_over_finds_every_key_of_the_incumbent() -> None:
    page = (ROOT / "docs" / "migrating.md").read_text()
    named = set(re.findall(r"`([A-Z0-9_]+)`", page.split("## Key by key")[1]))
    assert COMMON | set().union(*CLOUDS.values()) <= named
