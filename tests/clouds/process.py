"""A server of the tests as a process of its own: started, waited for, and gone with the test whatever happens."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

# The largest of them imports for about a second; a loaded machine gets many times that.
START_SECONDS = 60.0
STOP_SECONDS = 10.0
_ROOT = Path(__file__).parents[2]


class ServerProcess:
    """Context manager around `python -m module arguments --ready-fd N`.

    The child writes one line to that descriptor once it serves, and ends when its standard input does; so it does not
    outlive a test process that was killed.
    """

    def __init__(self, module: str, arguments: list[str]) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._stack = contextlib.ExitStack()
        self.ready_line = ""
        self.start_seconds = 0.0

    def __enter__(self) -> ServerProcess:
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            stack.callback(self._stop)
            self._start()
            self._stack = stack.pop_all()
        self.start_seconds = time.monotonic() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        ready, theirs = os.pipe()
        with os.fdopen(ready, "rb", buffering=0) as pipe:
            try:
                self.process = subprocess.Popen(
                    [*self._command, "--ready-fd", str(theirs)],
                    stdin=subprocess.PIPE,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=[theirs],
                    cwd=_ROOT,
                )
            finally:
                os.close(theirs)
            self.ready_line = pipe.readline().decode() if select.select([pipe], [], [], START_SECONDS)[0] else ""
        if not self.ready_line:
            raise AssertionError(f"{self._command[2]} did not start:\n{self.log_tail()}")

    def _stop(self) -> None:
        process = getattr(self, "process", None)
        if process is None:
            return
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def log_tail(self, size: int = 8000) -> str:
        """The end of what the process wrote."""
        descriptor = self._log.fileno()
        length = os.fstat(descriptor).st_size
        return os.pread(descriptor, size, max(0, length - size)).decode(errors="replace")

    def rss_bytes(self) -> int:
        """Memory the process holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def end_with_parent() -> None:
    """In the child: end this process when its standard input does."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
