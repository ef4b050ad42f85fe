"""The recall engine: indexes turns, and finds those that answer a question.

Candidates are the union of what words and meaning find, never the one gated on the other. Ranking is `scoring`'s; this
module fetches, calibrates, and packs into a budget. Must not know of stores or models.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from memoryos_server.domain.core.text import estimate_tokens, is_cjk
from memoryos_server.domain.ports import Candidate, Embedder, IndexedTurn, SearchQuery, Subject, Turn, Vectors
from memoryos_server.domain.recall.analysis import Analysis, Question
from memoryos_server.domain.recall.scoring import Scored, Weights, rank

_T = TypeVar("_T")

CANDIDATES = 200
"""How many turns each leg finds at least."""

LONG_CHARS = 5_000
"""The text, some 5 ms of analysis, up to which it is read at once."""

READ_SHARE = 20
"""Of all candidates' text about this share is analysed for a ranking."""

TURN_TOKENS = 8
"""What a turn costs in a budget besides its text and name: its time, role and separators."""

_LOW, _HIGH = 0.15, 0.75  # the cosines at which meaning is no and full ground for confidence
_QUOTE_TERMS = 3
_JUDGED = 5  # the best turns of which one must carry the confidence


@dataclass(frozen=True, slots=True)
class Ranked:
    """A found turn.

    Attributes:
        turn: The turn.
        score: 0..1, comparable between questions.
        parts: Name -> addend of `raw`; only when explained.
        raw: The score before calibration; only when explained.
    """

    turn: Turn
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    raw: float = 0.0


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a question found.

    Attributes:
        ranked: Best first.
        calibration: How raw scores became 0..1; "" unless explained.
    """

    ranked: Sequence[Ranked] = ()
    calibration: str = ""


class RecallEngine:
    """Indexes turns and finds them.

    Args:
        vectors: The searchable side of memory.
        embedder: Meaning; may know no vectors at all.
        analysis: Words; used by several threads.
        weights: What the parts of a score are worth.
    """

    def __init__(
        self, vectors: Vectors, embedder: Embedder, analysis: Analysis, weights: Weights | None = None
    ) -> None:
        """Keeps its collaborators."""
        self._vectors = vectors
        self._embedder = embedder
        self._analysis = analysis
        self._weights = weights or Weights()

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        """The turns with what search needs, in order."""
        vectors = await self._embedder.embed([turn.content for turn in turns])
        documents = await _aside(
            sum(len(turn.content) for turn in turns), lambda: [self._analysis.document(turn) for turn in turns]
        )
        return [IndexedTurn(*indexed) for indexed in zip(turns, documents, vectors, strict=True)]

    async def recall(
        self,
        subject: Subject,
        query: str,
        limit: int,
        *,
        min_score: float = 0.0,
        max_tokens: int | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
    ) -> Recalled:
        """The subject's turns that answer a question, best first.

        Args:
            subject: Whose turns.
            query: The question.
            limit: The most turns.
            min_score: Leaves out turns scored below it, 0..1.
            max_tokens: Leaves out turns that do not fit whole into a budget of estimated tokens; the best go first.
            as_of: Only turns said by then.
            explain: Adds how scores came about.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        question = await _aside(len(query), lambda: self._analysis.question(query))
        (dense,) = await self._embedder.embed([query])
        candidates = await self._vectors.search(
            subject, SearchQuery(question.terms, dense, max(limit, CANDIDATES), as_of)
        )
        read = sum(len(candidate.turn.content) for candidate in candidates)
        scored, confidence = await _aside(read / READ_SHARE, lambda: self._judge(question, query, candidates))
        if not scored:
            return Recalled()
        best = scored[0].raw
        ranked: list[Ranked] = []
        budget = max_tokens
        for one in scored:
            score = min(1.0, confidence * one.raw / best)
            if len(ranked) == limit or score < min_score:
                break
            if budget is not None:
                cost = turn_tokens(one.turn)
                if cost > budget:
                    continue
                budget -= cost
            ranked.append(Ranked(one.turn, score, dict(one.parts), one.raw) if explain else Ranked(one.turn, score))
        return Recalled(ranked, _calibration(confidence, best) if explain else "")

    def _judge(self, question: Question, query: str, candidates: Sequence[Candidate]) -> tuple[Sequence[Scored], float]:
        scored = rank(
            candidates,
            self._weights,
            named=lambda name: self._analysis.names(question, name),
            quoted=_quotes(question, query),
            tells=lambda content: self._analysis.tells(question, content),
        )
        return scored, self._confidence(question, scored)

    def _confidence(self, question: Question, scored: Sequence[Scored]) -> float:
        """How sure it is that the best turns have to do with the question at all, 0..1.

        Words and meaning are taken as independent grounds: the share of the question's terms that a turn has, and its
        cosine. In a script without blanks, where meaning has no say, the root of the share stands for both: a
        question's pairs of characters are seldom all in its answer. The best of the first few turns counts.
        """
        best = 0.0
        asked = sum(question.terms.values()) or 1.0
        in_pairs = not any(one.cosine for one in scored) and any(map(is_cjk, question.folded))
        for one in scored[:_JUDGED]:
            terms = self._analysis.document(one.turn)
            words = sum(weight for term, weight in question.terms.items() if term in terms) / asked
            if in_pairs:
                words = math.sqrt(words)
            meaning = min(1.0, max(0.0, (one.cosine - _LOW) / (_HIGH - _LOW)))
            best = max(best, 1 - (1 - words) * (1 - meaning))
        return best


async def _aside(chars: float, work: Callable[[], _T]) -> _T:
    """The result of `work`, done in another thread if so much text would hold up everybody else."""
    return work() if chars <= LONG_CHARS else await asyncio.to_thread(work)


def _quotes(question: Question, query: str) -> Callable[[str], bool]:
    """Whether a text has the query word for word; never for a few words, which many texts have by chance."""
    wanted = query.strip().rstrip("?？!！.。").casefold()
    if len(question.terms) < _QUOTE_TERMS:
        return lambda content: False
    return lambda content: wanted in content.casefold()


def turn_tokens(turn: Turn) -> int:
    """What a turn costs in a budget, in estimated tokens."""
    return estimate_tokens(f"{turn.name} {turn.content}") + TURN_TOKENS


def _calibration(confidence: float, best: float) -> str:
    return (
        f"score = {confidence:.4f} * raw / {best:.4f}: the best raw score becomes the confidence that the best turns"
        " have to do with the question, from the share of its words they have and their closeness in meaning"
    )
