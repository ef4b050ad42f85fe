"""What is read of a whole answer, and the one member that is added to it."""

from __future__ import annotations

import json
from dataclasses import replace

from memoryos_server.domain.chat.model import MemoryReport
from memoryos_server.domain.chat.remembering import NOT_AN_END


def settled(report: MemoryReport, remembered: bool, finish_reason: str) -> MemoryReport:
    """The report at the end of an answer. A turn that goes on is remembered at its end, under that request's id."""
    if finish_reason in NOT_AN_END:
        return replace(report, remembered="false", event_id="")
    return replace(report, remembered="true" if remembered else "false")


def parsed(body: bytes) -> dict[str, object]:
    """The answer as an object; empty if it is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def spliced(body: bytes, value: dict[str, object], report: MemoryReport) -> bytes:
    """The answer with the member `memoryos` before its final brace; every other byte stays. Not an object: unchanged."""
    end = body.rstrip(b" \t\r\n")
    if not value or not end.endswith(b"}"):
        return body
    member = {
        "injected": [{"id": item.id, "tier": item.tier, "score": round(item.score, 6)} for item in report.injected],
        "tokens": report.tokens,
        "source": report.source,
        "remembered": report.remembered == "true",
        "event_id": report.event_id,
        "session_id": report.session_id,
    }
    inside = json.dumps(member, ensure_ascii=False, separators=(",", ":")).encode()
    return end[:-1] + b',"memoryos":' + inside + body[len(end) - 1 :]
