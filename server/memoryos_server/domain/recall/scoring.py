"""How features become a ranking, and a ranking becomes scores that mean the same for every question.

Every raw score is the sum of named parts, feature times weight. The weights are those of a linear model, fitted by
`bench/recall/fit.py` so that a turn that answers outweighs the others of its conversation (softmax over candidates); they
are the same for every language and kind of conversation. `Calibration` turns raw scores into the probability that a turn
has to do with the question. Must not know of stores, models or text analysis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memoryos_server.domain.ports.candidates import in_order, texts
from memoryos_server.domain.recall.features import FEATURES, Measured

WEIGHTS: Mapping[str, float] = {
    "lexical": 0.31,
    "dense": 2.33,
    "window": 4.16,
    "around": 0.37,
    "before": 1.3,
    "answer": 1.34,
    "answer_dense": 0.79,
    "session": 2.68,
    "session_dense": 0.13,
    "speaker": 1.46,
    "asks": -0.69,
    "length": 1.1,
    "time": 1.78,
    "number": 2.21,
    "place": 1.63,
    "names": 1.18,
    "first_person": 0.46,
    "opening": -0.33,
    "assistant": -1.35,
}
"""What a feature adds for each unit of it. Only differences between candidates of one question mean anything."""

QUOTED = 4.0
"""Added to a turn that has the question word for word."""

ECHO = -6.0
"""Added to a turn that asks nothing but the question: it finds itself and answers nothing."""

JUDGED = 5
"""The best turns, of which the closest stands for how sure a question's answer is."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What features are worth.

    Attributes:
        values: Name of a feature -> weight; one that is missing counts nothing.
        quoted: Added to a turn that has the question word for word.
        echo: Added to a turn that asks nothing but the question.
    """

    values: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    quoted: float = QUOTED
    echo: float = ECHO

    def row(self) -> tuple[float, ...]:
        """The weights in the order of `FEATURES`."""
        return tuple(self.values.get(name, 0.0) for name in FEATURES)


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate and how it did.

    Attributes:
        id: Its memory id.
        seq: Its place in the order of acceptance.
        at: When it was said, Unix seconds.
        values: In the order of `FEATURES`.
        cosine: Its own cosine, not below 0.
        reach: The share of the question that the window around it has.
        raw: Its score: the sum of its parts.
        extra: Name and addend of what its text added, once that was read.
    """

    id: str
    seq: int
    at: float
    values: tuple[float, ...]
    cosine: float
    reach: float
    raw: float
    extra: tuple[tuple[str, float], ...] = ()

    def adding(self, name: str, value: float) -> Scored:
        """The same with one more part."""
        return replace(self, raw=self.raw + value, extra=(*self.extra, (name, value)))


def rank(measured: Measured, weights: Weights, most: int | None = None) -> list[Scored]:
    """Candidates by raw score, the best `most` of them (None: all); of equals, the newer first."""
    raws = np.zeros(len(measured))
    for weight, row in zip(weights.row(), measured.values, strict=True):
        raws += weight * row  # one after the other, so that equal values make equal sums wherever they stand
    places = np.arange(len(raws))
    if most is not None and most < len(raws):
        least = np.partition(raws, len(raws) - most)[len(raws) - most]
        places = np.flatnonzero(raws >= least)  # equals of the last are kept until they are told apart
    order = in_order(measured.ids[places], -measured.at[places], -raws[places])
    places = places[order][:most]
    columns = (measured.seq, measured.at, measured.cosine, measured.reach, raws)
    seqs, ats, cosines, reaches, best = (column[places].tolist() for column in columns)
    values = map(tuple, measured.values[:, places].T.tolist())
    return list(map(Scored, texts(measured.ids[places]), seqs, ats, values, cosines, reaches, best))


def ordered(scored: Iterable[Scored]) -> list[Scored]:
    """Scored candidates, best first; of equals, the newer first."""
    return sorted(scored, key=lambda s: (-s.raw, -s.at, s.id))


def parts(scored: Scored, weights: Weights) -> dict[str, float]:
    """Name -> addend of the raw score; those that add nothing are left out."""
    added = {name: w * v for name, w, v in zip(FEATURES, weights.row(), scored.values, strict=True)}
    return {name: value for name, value in (*added.items(), *scored.extra) if value}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Raw score -> probability that a turn has to do with the question.

    How sure the best turn is follows from two grounds that do not depend on the question or its language: how much of the
    question the window around a turn has (`reach`), and the turn's cosine; the closest of the `JUDGED` best counts. Where
    no leg of meaning answered, words stand for both. The other turns are less likely by how much their raw scores lag behind.

    Attributes:
        base: Log odds at nothing.
        reach: Log odds for all of the question.
        cosine: Log odds for a cosine of 1.
        wordless: Log odds where meaning has no say.
        wordless_reach: The same, for all of the question.
        lag: Log odds for each unit of raw score behind the best.
    """

    base: float = -4.95
    reach: float = 2.55
    cosine: float = 5.95
    wordless: float = 0.62
    wordless_reach: float = 2.88
    lag: float = 0.77

    def best(self, scored: Sequence[Scored]) -> float:
        """Log odds of the best turn, from the ranking's head. Having the question word for word is a ground of its own."""
        closest = max((self.odds(s.reach, s.cosine) for s in scored[:JUDGED]), default=-math.inf)
        return closest + sum(max(0.0, value) for one in scored[:1] for _, value in one.extra)

    def odds(self, reach: float, cosine: float) -> float:
        """Log odds of a turn with such grounds, if it leads."""
        if cosine > 0:
            return self.base + self.reach * reach + self.cosine * cosine
        return self.base + self.wordless + (self.reach + self.wordless_reach) * reach

    def score(self, best: float, lag: float) -> float:
        """The probability of a turn whose raw score lags so much behind the best's, with log odds `best`."""
        return 1 / (1 + math.exp(min(700.0, self.lag * lag - best)))
