"""What is read of a whole answer, and the one member that is added to it."""

from __future__ import annotations

import json
from dataclasses import replace

from memoryos_server.domain.chat.model import MemoryReport
from memoryos_server.domain.core.faults import Upstream

NOT_AN_END = frozenset({"tool_calls", "function_call"})
"""Finish reasons after which the turn goes on."""


def goes_on(finish_reason: str, message: object) -> bool:
    """Whether the turn goes on after an answer, or a chunk of one.

    A forced tool call ends with `stop`, and so does every one of some providers: the calls themselves count too.
    """
    calls = isinstance(message, dict) and (message.get("tool_calls") or message.get("function_call"))
    return finish_reason in NOT_AN_END or bool(calls)


def settled(report: MemoryReport, remembered: bool, *, ends: bool) -> MemoryReport:
    """The report after an answer.

    Args:
        report: The report before it.
        remembered: Whether the turn is known to be kept.
        ends: Whether the answer ends the turn. One that goes on is remembered at its end, under that request's id; of one
            that failed nothing is.
    """
    if not ends:
        return replace(report, remembered="false", event_id="")
    return replace(report, remembered="true" if remembered else "false")


def parsed(body: bytes) -> dict[str, object]:
    """The answer as an object; empty if it is one that cannot be read.

    Raises:
        Upstream: It is no JSON object; the end of a connection may have cut it.
    """
    try:
        # The client gets the bytes themselves, whatever stands for a character or a number here.
        value = json.loads(body.decode("utf-8-sig", "replace"), parse_int=float)
    except RecursionError:
        return {}
    except ValueError:
        raise Upstream("The provider's answer is not whole, or not JSON") from None
    if not isinstance(value, dict):
        raise Upstream("The provider's answer is no JSON object")
    return value


def spliced(body: bytes, value: dict[str, object], report: MemoryReport) -> bytes:
    """The answer with the member `memoryos` before its final brace; every other byte stays. Not an object: unchanged."""
    end = body.rstrip(b" \t\r\n")
    if not value or not end.endswith(b"}"):
        return body
    return end[:-1] + b',"memoryos":' + _member(report) + body[len(end) - 1 :]


def comment(report: MemoryReport) -> bytes:
    """A line with the same for a stream, which clients pass over; it may stand between any two lines."""
    return b": memoryos " + _member(report) + b"\n"


def _member(report: MemoryReport) -> bytes:
    value = {
        "injected": [
            {"id": item.id, "tier": item.tier, "score": round(item.score, 6), "tokens": item.tokens}
            for item in report.injected
        ],
        "tokens": report.tokens,
        "source": report.source,
        "remembered": report.remembered == "true",
        "event_id": report.event_id,
        "session_id": report.session_id,
        "receipt_id": report.receipt_id,
    }
    if report.reason:
        value["reason"] = report.reason
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
