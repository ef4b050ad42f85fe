"""How candidates become a ranking: what a turn says, and what is said around it.

A turn is rarely found by its own words alone: "Yes, in Paris!" answers a question that has the words. So a candidate's
score is its own evidence, plus shares of its neighbours', of its session's, and adjustments for speaker and form. Every
score is the sum of named parts. Weights are fitted on conversations of several kinds and hold for all of them alike.

Must not know of stores, models or text analysis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from memoryos_server.domain.ports import Candidate, Turn

LEXICAL = "lexical"
"""The leg of words; every other leg is one of meaning."""

COSINE_FLOOR = 0.25
"""The cosine from which a turn counts as found by meaning; what two unrelated texts have lies below."""

NEIGHBOUR_SECONDS = 1800.0
"""Turns of one session further apart than this are no neighbours."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part of a score is worth, against 1 for the best lexical evidence. A part of weight 0 is left out.

    Attributes:
        dense: The best evidence of meaning.
        near: A direct neighbour's own evidence.
        far: The same of the neighbour after that.
        answer: On top of `near`, the evidence of the question that a turn follows.
        session: The best session's evidence, which is the mean of its two best turns'.
        speaker: Of the sum so far, for a turn whose speaker the question names.
        question: Of the sum so far, taken off a turn that itself only asks.
        echo: The same, in its stead, for one that asks nothing but the question: it finds itself and answers nothing.
        quoted: A turn that has the question word for word.
    """

    dense: float = 0.5
    near: float = 0.3
    far: float = 0.15
    answer: float = 0.4
    session: float = 0.6
    speaker: float = 0.2
    question: float = 0.15
    echo: float = 0.9
    quoted: float = 2.0


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and how it did.

    Attributes:
        turn: The turn.
        cosine: Its best cosine, 0 if no leg of meaning found it.
        parts: Name and addend of every part that is not 0.
        raw: Their sum.
    """

    turn: Turn
    cosine: float
    parts: tuple[tuple[str, float], ...]
    raw: float


def rank(
    candidates: Sequence[Candidate],
    weights: Weights,
    *,
    named: Callable[[str], bool] = lambda name: False,
    quoted: Callable[[str], bool] = lambda content: False,
    tells: Callable[[str], bool] = lambda content: True,
) -> list[Scored]:
    """The candidates that have something to say, best first; of equals, the newer first.

    Left out is who has neither a word of the question nor a cosine of `COSINE_FLOOR`, nor a neighbour that has.

    Args:
        candidates: What the legs found.
        weights: What the parts are worth.
        named: Whether the question names a speaker.
        quoted: Whether a text has the question word for word.
        tells: Whether a text says more than the question does.
    """
    order = sorted(candidates, key=lambda c: _place(c.turn))
    lexical = _against_best([c.scores.get(LEXICAL, 0.0) for c in order])
    cosine = [max((s for leg, s in c.scores.items() if leg != LEXICAL), default=0.0) for c in order]
    own = [x + weights.dense * y for x, y in zip(lexical, _against_best(cosine), strict=True)]
    anchored = [x > 0 or c >= COSINE_FLOOR for x, c in zip(lexical, cosine, strict=True)]
    asks = [_asks(c.turn.content) for c in order]
    session = _sessions(order, own)
    speakers = {name: named(name) for name in {c.turn.name for c in order} if name}
    found = []
    for i, candidate in enumerate(order):
        turn = candidate.turn
        neighbours = answer = 0.0
        kept = anchored[i]
        for j, near in _neighbours(order, i):
            neighbours += (weights.near if near else weights.far) * own[j]
            kept = kept or anchored[j]
            if near and j < i and asks[j]:
                answer = weights.answer * own[j]
        if not kept:
            continue
        parts = [
            ("lexical", lexical[i]),
            ("dense", own[i] - lexical[i]),
            ("neighbours", neighbours),
            ("answer", answer),
            ("session", weights.session * session[i]),
        ]
        total = sum(value for _, value in parts)
        if speakers.get(turn.name):
            parts.append(("speaker", weights.speaker * total))
            total += weights.speaker * total
        echo = asks[i] and not tells(turn.content)
        if echo:
            parts.append(("echo", -weights.echo * total))
        elif asks[i]:
            parts.append(("question", -weights.question * total))
        if quoted(turn.content) and not echo:
            parts.append(("quoted", weights.quoted))
        raw = sum(value for _, value in parts)
        if raw > 0:
            found.append(Scored(turn, cosine[i], tuple(p for p in parts if p[1]), raw))
    found.sort(key=lambda s: (-s.raw, -s.turn.timestamp.timestamp(), s.turn.id))
    return found


def _against_best(values: Sequence[float]) -> list[float]:
    best = max(values, default=0.0)
    return [max(v, 0.0) / best for v in values] if best > 0 else [0.0] * len(values)


_DIGITS = re.compile(r"(\d+)")
_UUID_LENGTH = 36


def _place(turn: Turn) -> tuple[str, float, tuple[str | int, ...], str]:
    """Sorts turns as they were said. Of one instant, ids that count up are in order: `msg-9` before `msg-10`."""
    if len(turn.event_id) == _UUID_LENGTH and turn.event_id.count("-") == 4:
        counted: tuple[str | int, ...] = (turn.event_id,)
    else:  # text at even places, numbers at odd ones, so that the two are never compared
        counted = tuple(int(p) if i % 2 else p for i, p in enumerate(_DIGITS.split(turn.event_id)))
    return turn.session_id, turn.timestamp.timestamp(), counted, turn.id


def _neighbours(order: Sequence[Candidate], i: int) -> Iterator[tuple[int, bool]]:
    """The places of a turn's neighbours among the candidates, and whether they are direct ones."""
    turn = order[i].turn
    for j in (i - 2, i - 1, i + 1, i + 2):
        if 0 <= j < len(order):
            other = order[j].turn
            apart = abs((other.timestamp - turn.timestamp).total_seconds())
            if other.session_id == turn.session_id and apart <= NEIGHBOUR_SECONDS:
                yield j, abs(i - j) == 1


def _sessions(order: Sequence[Candidate], own: Sequence[float]) -> list[float]:
    """For each candidate, its session's evidence against the best session's. Turns without a session have none."""
    priors: dict[str, float] = {}
    pairs = [(c.turn.session_id, x) for c, x in zip(order, own, strict=True) if c.turn.session_id]
    for session, group in groupby(pairs, key=itemgetter(0)):
        priors[session] = sum(sorted((x for _, x in group), reverse=True)[:2]) / 2
    best = max(priors.values(), default=0.0)
    return [priors.get(c.turn.session_id, 0.0) / best if best > 0 else 0.0 for c in order]


def _asks(content: str) -> bool:
    """Whether a text ends with a question; a caption below it aside."""
    return content.partition("\n[image: ")[0].rstrip()[-1:] in ("?", "？")
