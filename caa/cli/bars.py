"""How far long work is: a bar for each phase on a terminal, a line for each phase elsewhere, nothing for programs."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """A context; call it with the phase, the bytes of it that are done, and the bytes there are if that is known."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what = what
        self._quiet = quiet
        self._phase = ""
        self._task: TaskID | None = None
        self._bars: Progress | None = None

    def __enter__(self) -> Bars:
        # Imported here, so that --help stays quick.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        if console.is_terminal and not self._quiet:
            self._bars = Progress(
                TextColumn("{task.description:>20}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TimeElapsedColumn(),
                console=console,
            )
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
        self._phase = phase
        if self._bars:
            self._end_phase()
            self._task = self._bars.add_task(phase, total=total)
        elif not self._quiet:
            print(f"{self._what}: {phase}", file=sys.stderr)

    def _end_phase(self) -> None:
        """A phase of unknown length is full when the next one begins."""
        if self._bars and self._task is not None:
            task = self._bars.tasks[self._task]
            total = task.total or task.completed or 1
            self._bars.update(self._task, completed=total, total=total)
