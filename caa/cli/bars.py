"""How far long work is: a bar for each phase on a terminal, a line for each phase elsewhere, nothing for programs.

The recipe's steps share a bar, for it is known how long they take together.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

from imagebuilder.steps import STEPS

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task, TaskID


class Bars:
    """A context; call it with the phase, how much of it is done, and all there is if that is known: in bytes of it, or
    as of `imagebuilder.steps`."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what = what
        self._quiet = quiet
        self._phase = ""
        self._task: TaskID | None = None
        self._bars: Progress | None = None

    def __enter__(self) -> Bars:
        # Imported here, so that --help stays quick.
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        if console.is_terminal and not self._quiet:
            self._bars = Progress(*_columns(), console=console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            if kind is None:
                self._end_phase()
            self._bars.stop()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        """Show it."""
        if phase != self._phase:
            self._begin(phase, total)
        if self._bars and self._task is not None:
            self._bars.update(self._task, completed=done, total=total)

    def _begin(self, phase: str, total: int | None) -> None:
        together = self._phase in STEPS and phase in STEPS
        self._phase = phase
        if self._bars and self._task is not None and together:
            self._bars.update(self._task, description=phase)
        elif self._bars:
            self._end_phase()
            self._task = self._bars.add_task(phase, total=total, in_bytes=phase not in STEPS)
        elif not self._quiet:
            print(f"{self._what}: {phase}", file=sys.stderr)

    def _end_phase(self) -> None:
        """A phase of unknown length is full when the next one begins."""
        if self._bars and self._task is not None:
            task = self._bars.tasks[self._task]
            total = task.total or task.completed or 1
            self._bars.update(self._task, completed=total, total=total)


def _columns() -> list[ProgressColumn]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Amount(DownloadColumn):
        """Bytes, or what cannot be counted in bytes in percent."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.fields["in_bytes"] else Text(f"{task.percentage:.0f} %")

    class Speed(TransferSpeedColumn):
        """Bytes per second, if it is bytes."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.fields["in_bytes"] else Text()

    name = TextColumn("{task.description:>20}")
    return [name, BarColumn(), Amount(binary_units=True), Speed(), TimeRemainingColumn(), TimeElapsedColumn()]
