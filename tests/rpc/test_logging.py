from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from memoryos_server.rpc import logging as rpc_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    rpc_logging.configure("info", "json", io.BytesIO())


def parsed(out: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_log_when_json_then_both_kinds_of_loggers_write_the_same_lines_with_the_request_id() -> None:
    out = io.BytesIO()
    logger = rpc_logging.configure("info", "json", out)
    structlog.contextvars.bind_contextvars(request_id="r-1")
    logger.info("ours", count=1)
    logging.getLogger("somebody").warning("theirs %s", "here")
    ours, theirs = parsed(out)
    assert (ours["event"], ours["level"], ours["request_id"], ours["count"]) == ("ours", "info", "r-1", 1)
    assert (theirs["event"], theirs["level"], theirs["request_id"]) == ("theirs here", "warning", "r-1")
    assert ours["ts"].endswith("Z")


def test_log_when_a_level_is_set_then_lesser_lines_are_left_out() -> None:
    out = io.BytesIO()
    logger = rpc_logging.configure("error", "json", out)
    logger.warning("ours")
    logging.getLogger("somebody").warning("theirs")
    logger.error("kept")
    assert [line["event"] for line in parsed(out)] == ["kept"]


@pytest.mark.parametrize("level", ["info", "debug"])
def test_log_when_an_exception_is_logged_then_its_text_is_there_at_debug_only(level: str) -> None:
    out = io.BytesIO()
    logger = rpc_logging.configure(level, "json", out)
    try:
        try:
            raise KeyError("what a user said")
        except KeyError as error:
            raise ValueError("what a user said, again") from error
    except ValueError:
        logger.exception("crashed")
        logging.getLogger("somebody").exception("crashed too")
    lines = parsed(out)
    assert len(lines) == 2
    for line in lines:
        assert "KeyError" in line["exception"]
        assert "test_logging.py" in line["exception"]
        assert ("what a user said" in line["exception"]) is (level == "debug")


def test_log_when_text_then_a_line_is_for_people() -> None:
    out = io.BytesIO()
    logger = rpc_logging.configure("info", "text", out)
    logger.info("hello", count=1)
    logging.getLogger("somebody").info("theirs")
    first, second = out.getvalue().decode().splitlines()
    assert "hello" in first
    assert "count=1" in first
    assert "theirs" in second


def test_log_when_auto_and_no_terminal_then_it_is_json() -> None:
    out = io.BytesIO()
    rpc_logging.configure("info", "auto", out).info("hello")
    assert parsed(out)[0]["event"] == "hello"
