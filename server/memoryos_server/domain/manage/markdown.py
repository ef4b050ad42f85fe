"""An export as a document for people. What a user wrote stands in quotes and code spans, where it cannot pass for structure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from memoryos_server.domain.manage.model import Segment

_TICKS = re.compile(r"`+")


def head(user_id: str, exported_at: datetime, count: int) -> str:
    """The document's beginning."""
    return f"# Memories of {_code(user_id)}\n\nExported {_time(exported_at)}, {count} {_plural(count, 'segment')}.\n"


def section(segment: Segment) -> str:
    """One segment."""
    lines = [
        "",
        f"## {segment.id}",
        "",
        *_quote(segment.summary),
        "",
        f"- Type: {segment.type}",
        f"- Tags: {_tags(segment.tags)}",
        f"- Version: {segment.version}",
        f"- Created: {_time(segment.created_at)}, updated: {_time(segment.updated_at)}",
        f"- Heat: {segment.heat:g}, accessed {segment.access_count} {_plural(segment.access_count, 'time')},"
        f" last: {_time(segment.last_accessed)}",
    ]
    if segment.until is not None:
        lines.append(f"- Counted until: {_time(segment.until)}")
    if segment.session_id:
        lines.append(f"- Session: {_code(segment.session_id)}")
    if segment.source_ids:
        lines.append("- Sources: " + ", ".join(map(_code, segment.source_ids)))
    for version in segment.history:
        lines += [
            "",
            f"### Version {version.version}, {_time(version.updated_at)}",
            "",
            *_quote(version.summary),
            "",
            f"- Tags: {_tags(version.tags)}",
        ]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.splitlines()] or [">"]


def _code(text: str) -> str:
    longest = max((len(run) for run in _TICKS.findall(text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _tags(tags: Sequence[str]) -> str:
    return ", ".join(map(_code, tags)) if tags else "none"


def _time(value: datetime) -> str:
    return value.replace(tzinfo=None).isoformat() + "Z"


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"
