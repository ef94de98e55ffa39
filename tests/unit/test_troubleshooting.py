"""Whoever looks up a reason finds it, and finds none that is never given."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import providers.aws.errors
import providers.azure.errors
import providers.ibmcloud.errors
import providers.libvirt.errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
# They say how a sandbox goes on, and that nothing is wrong with it.
ORDINARY = {
    *("Created", "StartRequested", "LaunchIntended", "LaunchAccepted", "LaunchRepeated", "AddressKnown", "Running"),
    *("Ended", "InstanceTerminated", "OrphanTerminated", "ServiceStarted", "ShimConnected", "AgentSocketReopened"),
}
# What makes an error, or an event of a sandbox, of a word.
MAKERS = re.compile(r"Error$|^(Meaning|End|record|event|begin|_give_up|_fail)$")
WORD = re.compile(r"[A-Z][A-Za-z]+")


def written(tree: ast.Module) -> Iterator[str]:
    """The words in a module: `reason="X"`, `reason = "X"` of a class, and those given to what makes errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            given = node.args if MAKERS.search(name) else []
            yield from words(*given, *(keyword.value for keyword in node.keywords if keyword.arg == "reason"))
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and [getattr(target, "id", "") for target in line.targets] == [
                    "reason"
                ]:
                    yield from words(line.value)


def words(*nodes: ast.expr) -> Iterator[str]:
    """Those of the constants, and of both sides of a choice."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from words(node.body, node.orelse)
        elif isinstance(node, ast.BoolOp):
            yield from words(*node.values)


def given() -> set[str]:
    """Every reason that the code may give."""
    found = set()
    for package in ("caa", "providers", "imagebuilder"):
        for path in (ROOT / package).rglob("*.py"):
            found |= set(written(ast.parse(path.read_text())))
    clouds = (providers.aws.errors._TABLE, providers.azure.errors.TABLE, providers.ibmcloud.errors._TABLE)
    for table in clouds:
        # A row without a word of its own takes the cloud's.
        found |= {meaning.reason or code.replace(".", "") for code, meaning in table.items()}
    found |= {meaning.reason for meaning in providers.libvirt.errors._TABLE.values()}
    return found


def documented() -> set[str]:
    """The words in the first column of the page's tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(), re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}


def test_every_reason_that_can_be_given_can_be_looked_up() -> None:
    assert given() - ORDINARY - documented() == set()


def test_no_reason_that_can_be_looked_up_is_never_given() -> None:
    assert documented() - given() == set()


def test_each_reason_is_explained_once() -> None:
    cells = re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(), re.MULTILINE)
    all_words = [word for cell in cells for word in re.findall(r"`(\w+)`", cell)]
    assert len(all_words) == len(set(all_words))
