"""Lines about what lasts."""

from __future__ import annotations

import logging

import pytest

from memoryos_server.domain.core.saying import MAX_LINES, Sparing

_log = logging.getLogger("tests.saying")


class Hands:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == _log.name]


def test_warning_when_equal_lines_come_then_one_is_said_and_later_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Hands()
    log = Sparing(_log, 30.0, clock=clock)
    for _ in range(5):
        log.warning("the store is away: %s", "it refuses")
    log.warning("the store is away: %s", "it hangs")
    assert lines(caplog) == ["the store is away: it refuses", "the store is away: it hangs"]
    clock.now += 30
    log.warning("the store is away: %s", "it refuses")
    log.warning("the store is away: %s", "it hangs")
    assert lines(caplog)[2:] == [
        "the store is away: it refuses (4 times more since this was last said)",
        "the store is away: it hangs",
    ]
    clock.now += 30
    log.warning("the store is away: %s", "it refuses")
    assert lines(caplog)[-1] == "the store is away: it refuses"


def test_error_when_said_as_a_warning_before_then_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    log = Sparing(_log)
    log.warning("100% full")
    log.error("100% full")
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_warning_when_there_are_very_many_lines_then_those_said_the_longest_ago_are_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Sparing(_log)
    for number in range(MAX_LINES + 1):
        log.warning("line %d", number)
    log.warning("line %d", MAX_LINES)
    assert len(lines(caplog)) == MAX_LINES + 1
    log.warning("line %d", 0)
    assert lines(caplog)[-1] == "line 0"
