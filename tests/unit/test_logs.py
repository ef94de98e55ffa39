"""Log lines: one a record, each with the sandbox it is about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from caa.logs import OWN_PACKAGES, about, set_up_logging

log = logging.getLogger("caa.something")
ID = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def undo() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in OWN_PACKAGES]
    root = logging.getLogger()
    before = root.handlers[:], root.level, [logger.level for logger in loggers]
    yield
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for logger, own in zip(loggers, levels, strict=True):
        logger.setLevel(own)


def test_a_json_line_names_its_sandbox_also_in_threads_and_tasks() -> None:
    stream = io.StringIO()
    set_up_logging("json", "INFO", stream)

    async def work() -> None:
        with about(ID):
            await asyncio.to_thread(log.info, "in a thread")
            await asyncio.create_task(asyncio.sleep(0))
            log.info("in %s", "a task")
        log.info("outside")

    asyncio.run(work())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["message"], line.get("sandbox")) for line in lines] == [
        ("in a thread", ID),
        ("in a task", ID),
        ("outside", None),
    ]
    assert lines[0]["time"].endswith("Z")
    assert (lines[0]["level"], lines[0]["logger"]) == ("INFO", "caa.something")


def test_a_console_line_is_one_line_whatever_it_says() -> None:
    stream = io.StringIO()
    set_up_logging("console", "INFO", stream)
    with about(ID):
        log.info("pod %s", "x\n2026-01-01 forged \x1b[31mline")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO    caa.something [0123456789ab] pod x\\n2026-01-01 forged \\x1b[31mline")


def test_a_traceback_is_kept() -> None:
    for log_format in ("console", "json"):
        stream = io.StringIO()
        set_up_logging(log_format, "INFO", stream)
        try:
            raise ValueError("the cause")
        except ValueError:
            log.exception("it failed")
        assert "ValueError: the cause" in stream.getvalue()


def test_of_libraries_only_warnings_are_written() -> None:
    stream = io.StringIO()
    set_up_logging("console", "DEBUG", stream)
    logging.getLogger("httpx").info("GET https://cloud/?signature=secret")
    logging.getLogger("httpx").warning("careful")
    log.debug("ours")
    assert [line.split()[-1] for line in stream.getvalue().splitlines()] == ["careful", "ours"]
