"""What a ranking goes by: numbers that say how a turn, the turns around it and its session bear on a question.

A turn is rarely found by its own words alone: "Yes, in Paris!" answers a question that has the words. So besides its own
evidence a candidate has that of the window around it, of the question it follows, and of its session. Everything is
computed from light candidates; no text is read here. Neighbours are true ones: next in the order of acceptance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import attrgetter

from memoryos_server.domain.ports import Candidate
from memoryos_server.domain.recall.analysis import Question
from memoryos_server.domain.recall.hints import HINTS

LEXICAL = "lexical"
"""The leg of all words of a question."""

GROUP = "words"
"""The legs of a question's groups of words are called so, and numbered."""

FEATURES = (
    "lexical",
    "dense",
    "window",
    "around",
    "before",
    "answer",
    "answer_dense",
    "session",
    "session_dense",
    "speaker",
    "asks",
    "length",
    "time",
    "number",
    "place",
    "names",
    "first_person",
    "opening",
    "assistant",
)
"""The features of a candidate, in order.

lexical, dense: Its own evidence against the best candidate's, 0..1.
window: For each group of the question's words the best evidence in the window of five turns around it, summed; against the
    best candidate's, 0..1. Two turns that have half of the words each make a whole.
around, before: Meaning of the direct neighbours, added; of the turn before the previous one, which is often the same speaker's.
answer, answer_dense: The evidence of the question that it follows.
session, session_dense: Of its session: the mean of the two best by words, the three best by meaning; against the best's.
speaker: The question names its speaker.
asks, length, names, first_person, opening, assistant: Hints (`hints`).
time, number, place: It has a date, a number, a name, and the question asks for one.
"""

NEIGHBOUR_SECONDS = 1800.0
"""Turns without a session that are further apart than this are no neighbours."""

COSINE_FLOOR = 0.25
"""The cosine from which a turn counts as found by meaning; what two unrelated texts have lies below."""

_STEPS = ((-2, 0.4), (-1, 0.7), (1, 0.7), (2, 0.4))  # neighbours and what their evidence counts in a window
_REACH = 2
_WINDOW = FEATURES.index("window")
_SESSION_WORDS, _SESSION_MEANING = 2, 3  # how many of a session's best turns stand for it
_ASKS = HINTS.index("asks")
_NO_HINTS = (0.0,) * len(HINTS)


@dataclass(slots=True)  # not frozen, as `Candidate`
class Measured:
    """A candidate in numbers.

    Attributes:
        candidate: The candidate.
        values: In the order of `FEATURES`.
        cosine: Its own cosine, not below 0.
        reach: The share of the question that the window around it has, weighed by what each group of words can bring.
    """

    candidate: Candidate
    values: tuple[float, ...]
    cosine: float
    reach: float


def measure(candidates: Sequence[Candidate], question: Question, dense: Collection[str]) -> list[Measured]:
    """The candidates that have something to say, in the order of acceptance.

    Left out is who has neither a word of the question nor a cosine of `COSINE_FLOOR`, nor a neighbour that has.

    Args:
        candidates: What the legs found.
        question: The question.
        dense: The names of the legs of meaning.
    """
    own = {LEXICAL, *dense}
    # Who was found by one group of words alone is no candidate.
    pool = sorted([c for c in candidates if not own.isdisjoint(c.scores)], key=attrgetter("seq", "at", "id"))
    words = [max(0.0, c.scores.get(LEXICAL, 0.0)) for c in pool]
    cosines = [0.0] * len(pool)
    for leg in dense:
        cosines = [max(best, c.scores.get(leg, 0.0)) for best, c in zip(cosines, pool, strict=True)]
    lexical, meaning = _against_best(words), _against_best(cosines)
    anchored = [w > 0 or c >= COSINE_FLOOR for w, c in zip(words, cosines, strict=True)]
    rows, whole = _rows(pool, words, len(question.groups))
    session_words = _sessions(pool, lexical, _SESSION_WORDS)
    session_meaning = _sessions(pool, meaning, _SESSION_MEANING)
    places = {c.seq: i for i, c in enumerate(pool) if c.seq}
    hints = [c.hints if len(c.hints) == len(HINTS) else _NO_HINTS for c in pool]

    when, count, where = float(question.when), float(question.count), float(question.where)
    # Of a long history most candidates have no neighbour among the others; in the order of acceptance that is soon seen.
    seqs = [-_REACH, *[c.seq for c in pool], math.inf]

    measured: list[tuple[int, list[float]]] = []
    for i, candidate in enumerate(pool):
        seq = candidate.seq
        alone = not seq or (seq - seqs[i] > _REACH and seqs[i + 2] - seq > _REACH)
        kept = anchored[i]
        window: Sequence[float] = rows[i]
        around = before = answer = answer_meaning = 0.0
        for step, share in () if alone else _STEPS:
            j = places.get(seq + step)
            if j is None or not _together(candidate, pool[j]):
                continue
            kept = kept or anchored[j]
            window = [x if x > share * y else share * y for x, y in zip(window, rows[j], strict=True)]
            if step in (-1, 1):
                around += meaning[j]
            elif step == -2:
                before = meaning[j]
            if step == -1 and hints[j][_ASKS]:
                answer, answer_meaning = lexical[j], meaning[j]
        if not kept:
            continue
        asks, length, time, number, names, first_person, opening, assistant = hints[i]
        values = [
            lexical[i],
            meaning[i],
            sum(window),
            around,
            before,
            answer,
            answer_meaning,
            session_words.get(candidate.session, 0.0),
            session_meaning.get(candidate.session, 0.0),
            float(candidate.named),
            asks,
            length,
            when * time,
            count * number,
            where * names,
            names,
            first_person,
            opening,
            assistant,
        ]
        measured.append((i, values))
    best = max([values[_WINDOW] for _, values in measured], default=0.0) or 1.0
    found = []
    for i, values in measured:
        reach = min(1.0, values[_WINDOW] / whole) if whole else 0.0
        values[_WINDOW] /= best
        found.append(Measured(pool[i], tuple(values), cosines[i], reach))
    return found


def _against_best(values: Sequence[float]) -> list[float]:
    best = max(values, default=0.0)
    return [value / best for value in values] if best > 0 else [0.0] * len(values)


def _rows(pool: Sequence[Candidate], words: Sequence[float], groups: int) -> tuple[list[list[float]], float]:
    """For each candidate what each group of words brings, and last what none of them accounts for; and what all can bring.

    A group that found nothing at all counts like the one that can bring most: the words that nobody said are the rare ones.
    """
    legs = [f"{GROUP}{n}" for n in range(groups)]
    rows: list[list[float]] = []
    add = rows.append
    for candidate, total in zip(pool, words, strict=True):
        get = candidate.scores.get
        row = [get(leg, 0.0) for leg in legs]
        rest = total - sum(row)
        row.append(rest if rest > 0 else 0.0)
        add(row)
    best = [max(column) for column in zip(*rows, strict=True)] if rows else []
    if not best or max(best) <= 0:
        return rows, 0.0
    if not groups:
        return rows, best[-1]
    most = max(best[:-1])
    return rows, sum(value if value > 0 else most for value in best[:-1]) or best[-1]


def _sessions(pool: Sequence[Candidate], values: Sequence[float], count: int) -> dict[str, float]:
    """Session -> its evidence against the best session's. Turns without a session have none."""
    found: dict[str, list[float]] = {}
    for candidate, value in zip(pool, values, strict=True):
        if value > 0 and candidate.session:
            found.setdefault(candidate.session, []).append(value)
    means = {session: sum(nlargest(count, all_of)) / count for session, all_of in found.items()}
    best = max(means.values(), default=0.0)
    return {session: mean / best for session, mean in means.items()} if best > 0 else {}


def _together(one: Candidate, other: Candidate) -> bool:
    if one.session or other.session:
        return one.session == other.session
    return abs(one.at - other.at) <= NEIGHBOUR_SECONDS
