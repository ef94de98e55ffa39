"""Log lines on stderr, for people or as JSON, each with the sandbox it is about.

The sandbox id travels in a context variable, so that code far below a front door need not pass it on; tasks and
threads started with `asyncio.to_thread` inherit it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

_sandbox: ContextVar[str] = ContextVar("sandbox", default="")
# As much of an id as people compare by eye, and as container tools show.
SHORT_ID = 12
OWN_PACKAGES = ("caa", "providers", "imagebuilder")
# An uncaught line break would let input from outside write log lines of its own.
_ONE_LINE = str.maketrans({"\n": "\\n", "\r": "\\r", "\x1b": "\\x1b"})


@contextlib.contextmanager
def about(sandbox_id: str) -> Iterator[None]:
    """Everything logged inside is about this sandbox."""
    token = _sandbox.set(sandbox_id)
    try:
        yield
    finally:
        _sandbox.reset(token)


def set_up_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (default stderr) as "console" or "json", replacing what was set up before.

    `level` is for our own lines. Of libraries only warnings are written: their lower levels hold a line per request,
    some with its whole URL, and say nothing the service does not say better.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(level)


class ConsoleFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO    caa.lifecycle [0123456789ab] message`, then the traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; only a traceback takes more than one line."""
        sandbox = _sandbox.get()
        about_it = f" [{sandbox[:SHORT_ID]}]" if sandbox else ""
        message = record.getMessage().strip().translate(_ONE_LINE)
        line = f"{_time(record)} {record.levelname:<7} {record.name}{about_it.translate(_ONE_LINE)} {message}"
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and where there are any sandbox and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One record on one line."""
        line = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        optional = {"sandbox": _sandbox.get(), "traceback": _traceback(self, record)}
        return json.dumps(line | {key: value for key, value in optional.items() if value}, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
