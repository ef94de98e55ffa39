"""How far the recipe is, read from what its tools print."""

from __future__ import annotations

from imagebuilder.bootstrap import Reader
from imagebuilder.steps import STEPS, tell

SAID = """I: running apt-get update...
Get:1 http://mirror/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://mirror/debian bookworm/main amd64 bash amd64 5.2.15-2 [1,491 kB]
Get:2 http://mirror/debian bookworm/main amd64 dash amd64 0.5.12-2 [97.4 kB]
I: extracting archives...
I: installing essential packages...
Unpacking bash (5.2.15-2) over (5.2.15-2) ...
Unpacking dash (0.5.12-2) over (0.5.12-2) ...
Setting up bash (5.2.15-2) ...
Setting up dash (0.5.12-2) ...
I: installing remaining packages inside the chroot...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Unpacking kmod (30+20221128-1) ...
I: running --customize-hook in shell: sh -c 'sh fetch "$1"' exec /root
"""


def test_each_package_brings_the_bootstrap_forward_and_nothing_takes_it_back() -> None:
    told: list[tuple[str, float]] = []
    progress: list[tuple[int, int | None]] = []
    reader = Reader(lambda step, share: told.append((step, share)))
    for line in SAID.splitlines():
        reader.line(line)
    for step, share in told:
        tell(lambda _step, done, total: progress.append((done, total)), step, share)
    assert list(dict.fromkeys(step for step, _ in told)) == list(STEPS)[:6]
    assert [share for step, share in told if step == "download"] == [0, 0, 0.5, 1]
    assert [share for step, share in told if step == "install the base"] == [0, 0.25, 0.5, 0.75, 1]
    assert [share for step, share in told if step == "install packages"] == [0, 0, 0.5]
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert {total for _, total in progress} == {sum(STEPS.values())}


def test_what_a_failure_is_told_by_is_kept() -> None:
    reader = Reader(lambda _step, _share: None)
    kept = [
        line for line in ("Setting up bash ...", *SAID.splitlines(), "E: Failed to fetch x") if not reader.line(line)
    ]
    assert "E: Failed to fetch x" in kept
    assert not [line for line in kept if line.startswith(("Setting up dash", "Get:2"))]
