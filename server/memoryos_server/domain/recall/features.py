"""What a ranking goes by: numbers that say how a turn, the turns around it and its session bear on a question.

A turn is rarely found by its own words alone: "Yes, in Paris!" answers a question that has the words. So besides its own
evidence a candidate has that of the window around it, of the question it follows, and of its session. Everything is
computed from light candidates; no text is read here. Neighbours are true ones: next in the order of acceptance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memoryos_server.domain.ports import Candidates
from memoryos_server.domain.ports.candidates import in_order
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
_SESSION_WORDS, _SESSION_MEANING = 2, 3  # how many of a session's best turns stand for it
_ASKS = HINTS.index("asks")

_Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Candidates in numbers, in the order of acceptance.

    Attributes:
        ids: The 16 bytes of their ids.
        seq: Their places in the order of acceptance.
        at: When they were said, Unix seconds.
        values: A row for each of `FEATURES`, a column for each candidate.
        cosine: Their own cosines, not below 0.
        reach: The share of the question that the windows around them have, weighed by what each group of words can bring.
    """

    ids: NDArray[np.void]
    seq: NDArray[np.int64]
    at: _Numbers
    values: _Numbers
    cosine: _Numbers
    reach: _Numbers

    def __len__(self) -> int:
        return len(self.ids)


def measure(candidates: Candidates, question: Question, dense: Collection[str]) -> Measured:
    """The candidates that have something to say.

    Left out is who has neither a word of the question nor a cosine of `COSINE_FLOOR`, nor a neighbour that has.

    Args:
        candidates: What the legs found.
        question: The question.
        dense: The names of the legs of meaning.
    """
    pool, words, cosines = _pool(candidates, dense)
    lexical, meaning = _against_best(words), _against_best(cosines)
    anchored = (words > 0) | (cosines >= COSINE_FLOOR)
    rows, whole = _rows(pool, words, len(question.groups))
    hints = np.where(pool.hinted == len(HINTS), pool.hints[:, : len(HINTS)].T, np.float32(0)).astype(np.float64)
    asks, length, time, number, names, first_person, opening, assistant = hints

    kept = anchored.copy()
    window = rows.copy()
    around, before, answer, answer_meaning = np.zeros((4, len(pool)))
    for step, share in _STEPS:
        mine, theirs = _neighbours(pool, step)
        kept[mine] |= anchored[theirs]
        window[:, mine] = np.maximum(window[:, mine], share * rows[:, theirs])
        if step in (-1, 1):
            around[mine] += meaning[theirs]
        elif step == -2:
            before[mine] = meaning[theirs]
        if step == -1:
            asked = hints[_ASKS, theirs] > 0
            answer[mine] = np.where(asked, lexical[theirs], 0.0)
            answer_meaning[mine] = np.where(asked, meaning[theirs], 0.0)
    have = window.sum(axis=0)
    values = np.stack(
        [
            lexical,
            meaning,
            _against_best(np.where(kept, have, 0.0)),
            around,
            before,
            answer,
            answer_meaning,
            _sessions(pool, lexical, _SESSION_WORDS),
            _sessions(pool, meaning, _SESSION_MEANING),
            pool.named.astype(np.float64),
            asks,
            length,
            float(question.when) * time,
            float(question.count) * number,
            float(question.where) * names,
            names,
            first_person,
            opening,
            assistant,
        ]
    )
    # The lesser first: what is divided by next to nothing has no bound.
    reach = np.minimum(have, whole) / whole if whole else np.zeros(len(pool))
    return Measured(pool.ids[kept], pool.seq[kept], pool.at[kept], values[:, kept], cosines[kept], reach[kept])


def _pool(candidates: Candidates, dense: Collection[str]) -> tuple[Candidates, _Numbers, _Numbers]:
    """Those that all words or a leg of meaning found, in the order of acceptance; their words and their cosines."""
    none = np.full(len(candidates), np.nan)
    own = np.stack([candidates.scores.get(leg, none) for leg in (LEXICAL, *dense)])
    # Who was found by one group of words alone is no candidate.
    found = ~np.isnan(own).all(axis=0)
    places = np.flatnonzero(found)
    places = places[in_order(candidates.ids[places], candidates.at[places], candidates.seq[places])]
    scores = np.maximum(np.nan_to_num(own[:, places]), 0.0)
    return candidates.taken(places), scores[0], scores[1:].max(axis=0, initial=0.0)


def _neighbours(pool: Candidates, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The places of those that have a neighbour so many steps on, and the places of these neighbours."""
    wanted = pool.seq + step
    places = np.minimum(np.searchsorted(pool.seq, wanted), max(len(pool) - 1, 0))
    there = (pool.seq > 0) & (wanted > 0)
    there[there] = pool.seq[places[there]] == wanted[there]
    mine, theirs = np.flatnonzero(there), places[there]
    one, other = pool.session[mine], pool.session[theirs]
    close = np.abs(pool.at[mine] - pool.at[theirs]) <= NEIGHBOUR_SECONDS
    together = np.where((one > 0) | (other > 0), one == other, close)
    return mine[together], theirs[together]


def _against_best(values: _Numbers) -> _Numbers:
    best = values.max(initial=0.0)
    return values / best if best > 0 else np.zeros(len(values))


def _rows(pool: Candidates, words: _Numbers, groups: int) -> tuple[_Numbers, float]:
    """What each group of words brings, a row for each, and last what none of them accounts for; and what all can bring.

    A group that found nothing at all counts like the one that can bring most: the words that nobody said are the rare ones.
    """
    none = np.zeros(len(pool))
    legs = [np.nan_to_num(pool.scores.get(f"{GROUP}{n}", none)) for n in range(groups)]
    rows = np.stack([*legs, words])
    rows[-1] = np.maximum(0.0, words - rows[:-1].sum(axis=0))
    best: Sequence[float] = rows.max(axis=1, initial=0.0).tolist()
    if max(best) <= 0:
        return rows, 0.0
    if not groups:
        return rows, best[-1]
    most = max(best[:-1])
    return rows, sum(value if value > 0 else most for value in best[:-1]) or best[-1]


def _sessions(pool: Candidates, values: _Numbers, count: int) -> _Numbers:
    """The evidence of each one's session against the best session's: the mean of its best. Turns without a session have none."""
    _, session = np.unique(pool.session, return_inverse=True)
    told = np.where(pool.session > 0, values, 0.0)
    order = np.lexsort((-told, session))
    ordered = session[order]
    first = np.searchsorted(ordered, ordered)  # where each one's session begins
    best = np.where(np.arange(len(order)) - first < count, told[order], 0.0)
    means = np.bincount(ordered, best, minlength=1) / count
    return _against_best(means)[session]
