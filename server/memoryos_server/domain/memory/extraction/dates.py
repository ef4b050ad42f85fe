"""When a text says something was: spans of time, in English and Chinese, resolved against the moment it was said.

Days are days of UTC. A week begins on Monday. A day, weekday or month without a year is the one that fits the sentence:
the next one where it speaks of the future, else the one before. "Next Friday" is the first Friday after the day itself.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from memoryos_server.domain.memory.extraction.date_rules import RULES, Granularity

Relation = Literal["in", "since", "before", "after"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time that a text names.

    Attributes:
        start: Its first moment, UTC.
        end: The first moment after it, UTC. Of `since`, `before` and `after`, the end of the time they name.
        text: The words, as they stand.
        granularity: How exact it is.
        relation: `in` it, or `since`, `before`, `after` it.
        offset: Where the words begin in the text.
    """

    start: datetime
    end: datetime
    text: str
    granularity: Granularity
    relation: Relation = "in"
    offset: int = 0


_FUTURE = re.compile(
    r"\b(?:will|'ll|going to|gonna|plan(?:ning|s)?|next|upcoming|coming|tomorrow|hope|hoping|intend|"
    r"about to|soon|due|"
    r"looking forward)\b|将|將|打算|计划|計劃|准备|準備|会在|會在|要去|要在|即将|即將|下"
)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|[。！？；;\n]")


def resolve(text: str, at: datetime) -> list[Span]:
    """The spans that a text names, in its order, none inside another; `at` is when it was said."""
    at = at.astimezone(UTC)
    lower = _lower(text)
    ends = [match.start() for match in _SENTENCE.finditer(lower)]
    found: list[tuple[int, int, datetime, datetime, Granularity]] = []
    for pattern, read in RULES:
        for match in pattern.finditer(lower):
            try:
                span = read(match, at, _coming(lower, ends, match))
            except (ValueError, OverflowError):  # 31 February, or beyond the calendar
                continue
            if span is not None:
                begin = match.start("t") if "t" in pattern.groupindex else match.start()
                found.append((begin, match.end(), *span))
    found.sort(key=lambda f: (f[0], -f[1]))
    spans: list[Span] = []
    upto = -1
    for begin, end, start, stop, grain in found:
        if begin < upto:
            continue
        upto = end
        spans.append(Span(start, stop, text[begin:end], grain, _relation(lower, begin, end), begin))
    return spans


_BEFORE_WORD = re.compile(
    r"(?:\b(?P<since>since|from|starting|as of)|\b"
    r"(?P<before>before|until|till|by|up to)|\b"
    r"(?P<after>after)|(?P<zs>自从|自從|自|从|從))\s*$"
)
_AFTER_WORD = re.compile(
    r"\s*(?:(?P<since>以来|以來|起|开始|開始|至今|到现在|到現在)|(?P<before>之前|"
    r"以前)|(?P<after>之后|之後|以后|以後))"
)


def _relation(text: str, begin: int, end: int) -> Relation:
    """What stands right before or behind the words: since, before, after."""
    near = _BEFORE_WORD.search(text, max(0, begin - 12), begin) or _AFTER_WORD.match(text, end)
    if near is None:
        return "in"
    kinds = near.groupdict()
    if kinds["before"]:
        return "before"
    return "after" if kinds["after"] else "since"


def _lower(text: str) -> str:
    """The text in lower case, every character in its place."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    return lower.replace("’", "'")


def _coming(text: str, ends: list[int], match: re.Match[str]) -> bool:
    """Whether the sentence speaks of the future before the words, or in them."""
    at = bisect_left(ends, match.start())
    begin = max(ends[at - 1] if at else 0, match.start() - 80)
    return _FUTURE.search(text, begin, match.end()) is not None
