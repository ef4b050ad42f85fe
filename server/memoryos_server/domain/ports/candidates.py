"""What a search finds, in columns.

A search finds hundreds of turns, of which few are shown: numbers only, and all of one kind together, so that ranking them
costs as much as a few dozen steps, not as many as there are turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

MOST_HINTS = 8
"""How many hints of a turn are kept for ranking."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A turn that at least one leg found.

    Attributes:
        id: The memory id, a UUID.
        seq: The turn's place in the order of acceptance; 0 if it has none.
        session: Stands for its session: equal for turns of one, "" for none.
        at: When it was said, Unix seconds.
        hints: What was indexed with it, at most `MOST_HINTS`.
        named: The query's `names` have a word of its speaker's name.
        scores: Leg -> raw score: BM25, or cosine for a dense one. A leg that did not find it is absent.
    """

    id: str
    seq: int
    session: str
    at: float
    hints: tuple[float, ...] = ()
    named: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The same of many, a column for each attribute; iterating gives them one by one.

    Attributes:
        ids: The 16 bytes of the memory ids.
        seq: int64.
        session: uint64; 0 for none.
        at: float64.
        hints: float32, `MOST_HINTS` for each, those that it has first.
        hinted: How many of them it has.
        named: bool.
        scores: Leg -> float64; NaN where the leg did not find it.
    """

    ids: NDArray[np.void]
    seq: NDArray[np.int64]
    session: NDArray[np.uint64]
    at: NDArray[np.float64]
    hints: NDArray[np.float32]
    hinted: NDArray[np.uint8]
    named: NDArray[np.bool_]
    scores: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, found: Iterable[Candidate]) -> Candidates:
        """Columns of candidates that came one by one."""
        rows = list(found)
        hints = np.zeros((len(rows), MOST_HINTS), np.float32)
        for place, row in enumerate(rows):
            kept = row.hints[:MOST_HINTS]
            hints[place, : len(kept)] = kept
        sessions = {"": 0}
        return cls(
            np.array([UUID(row.id).bytes for row in rows], "V16"),
            np.array([row.seq for row in rows], np.int64),
            np.array([sessions.setdefault(row.session, len(sessions)) for row in rows], np.uint64),
            np.array([row.at for row in rows], np.float64),
            hints,
            np.array([min(len(row.hints), MOST_HINTS) for row in rows], np.uint8),
            np.array([row.named for row in rows], np.bool_),
            {
                leg: np.array([row.scores.get(leg, np.nan) for row in rows], np.float64)
                for leg in dict.fromkeys(leg for row in rows for leg in row.scores)
            },
        )

    def taken(self, places: NDArray[Any]) -> Candidates:
        """Those at some places, in their order; or those where a mask holds."""
        return Candidates(
            self.ids[places],
            self.seq[places],
            self.session[places],
            self.at[places],
            self.hints[places],
            self.hinted[places],
            self.named[places],
            {leg: scores[places] for leg, scores in self.scores.items()},
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Candidate]:
        for place, memory_id in enumerate(texts(self.ids)):
            session = int(self.session[place])
            scores = {leg: float(scores[place]) for leg, scores in self.scores.items()}
            yield Candidate(
                memory_id,
                int(self.seq[place]),
                f"{session:016x}" if session else "",
                float(self.at[place]),
                tuple(self.hints[place, : self.hinted[place]].tolist()),
                bool(self.named[place]),
                {leg: score for leg, score in scores.items() if score == score},
            )


def texts(ids: NDArray[np.void]) -> list[str]:
    """Memory ids in their usual form."""
    digits = [one.hex() for one in ids.tolist()]
    return [f"{one[:8]}-{one[8:12]}-{one[12:16]}-{one[16:20]}-{one[20:]}" for one in digits]


def in_order(ids: NDArray[np.void], *keys: NDArray[Any]) -> NDArray[np.intp]:
    """The places of the smallest to the largest by some keys, the last one first, and at last by id."""
    halves = np.ascontiguousarray(ids).view(">u8").reshape(len(ids), 2)
    return np.lexsort((halves[:, 1], halves[:, 0], *keys))
