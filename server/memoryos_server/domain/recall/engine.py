"""The recall engine: indexes turns, and finds those that answer a question.

Candidates are the union of what words and meaning find, never the one gated on the other. They are light: numbers only.
`features` and `scoring` rank them; then the best are fetched, looked at once more, calibrated, and packed into a budget.
Must not know of stores or models.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Protocol, TypeVar

from memoryos_server.domain.core.faults import Fault
from memoryos_server.domain.core.text import is_cjk, turn_tokens
from memoryos_server.domain.ports import Candidates, Embedder, IndexedTurn, SearchQuery, Subject, Turn
from memoryos_server.domain.recall.analysis import Analysis, Question
from memoryos_server.domain.recall.features import GROUP, LEXICAL, measure
from memoryos_server.domain.recall.hints import asks
from memoryos_server.domain.recall.packing import POOL, pack
from memoryos_server.domain.recall.scoring import Calibration, Scored, Weights, ordered, parts, rank

log = logging.getLogger(__name__)

_T = TypeVar("_T")

CANDIDATES = 200
"""How many turns each leg finds at least."""

LONG_CHARS = 5_000
"""The text, some 5 ms of analysis, up to which it is read at once."""

MARGIN = 10
"""How many more of the best turns are fetched than are wanted: their texts may change the order."""

PIECE = 64
"""How many turns are fetched at a time while a budget lasts."""

ABSTAIN = 0.025
"""A question whose best turn scores below this is answered with nothing."""

_LOW, _HIGH = 0.15, 0.75  # the cosines at which meaning is no and full ground for closeness
_QUOTE_TERMS = 3
_READ_SHARE = 20
_QUESTIONS_KEPT = 64
_TEXTS_KEPT = 1024


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


class Searchable(Protocol):
    """What recall needs of `ports.Vectors`."""

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """The union of what each leg finds among the subject's turns, in no order; `later` joins its vectors."""

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist, in no order."""


class RecallEngine:
    """Indexes turns and finds them.

    Args:
        vectors: The searchable side of memory.
        embedder: Meaning; may know no vectors at all.
        analysis: Words; used by several threads.
        weights: What the parts of a score are worth.
        calibration: How scores become probabilities.
        away: Whether the searchable side is known to be down: then no question is given a meaning in vain.
    """

    def __init__(
        self,
        vectors: Searchable,
        embedder: Embedder,
        analysis: Analysis,
        weights: Weights | None = None,
        calibration: Calibration | None = None,
        *,
        away: Callable[[], bool] = lambda: False,
    ) -> None:
        """Keeps its collaborators."""
        self._away = away
        self._vectors = vectors
        self._embedder = embedder
        self._analysis = analysis
        # A question is asked of episodes, segments and facts, and segments are met again by other questions.
        self._question = lru_cache(_QUESTIONS_KEPT)(analysis.question)
        self._terms_of = lru_cache(_TEXTS_KEPT)(lambda text: frozenset(analysis.text(text)))
        self._weights = weights or Weights()
        self._calibration = calibration or Calibration()

    def forget_all(self) -> None:
        """Drops what is kept of questions and texts: an erasure leaves nothing here."""
        self._question.cache_clear()
        self._terms_of.cache_clear()

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        """The turns with what search needs, in order."""
        vectors = await self._embedder.embed([turn.content for turn in turns])
        return await _aside(
            sum(len(turn.content) for turn in turns),
            lambda: [self._indexed(turn, dense) for turn, dense in zip(turns, vectors, strict=True)],
        )

    def _indexed(self, turn: Turn, dense: Mapping[str, Sequence[float]]) -> IndexedTurn:
        terms = self._analysis.document(turn)
        hints = self._analysis.hints(turn, len(terms))
        return IndexedTurn(turn, terms, dense, self._analysis.names(turn.name), hints)

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text of a record, in order, what search needs of it: its terms and its vectors."""
        vectors = await self._embedder.embed(texts)
        documents = await _aside(sum(map(len, texts)), lambda: [self._analysis.text(text) for text in texts])
        return list(zip(documents, vectors, strict=True))

    async def query(self, text: str) -> tuple[dict[str, float], Mapping[str, Sequence[float]]]:
        """What a search among records needs of a question: its terms and its vectors."""
        question = await _aside(len(text), lambda: self._question(text))
        return dict(question.terms), await self._meaning(text)

    async def _meaning(self, question: str) -> Mapping[str, Sequence[float]]:
        """A question's vectors; none while the model is away or refuses it: words answer then."""
        if self._away():
            return {}
        try:
            (dense,) = await self._embedder.embed([question])
        except Fault as fault:
            log.warning("a question goes by words alone: %s", fault.message)
            return {}
        return dense

    def closeness(self, query: str, text: str, scores: Mapping[str, float]) -> float:
        """How close a record's text is to a question, 0..1: by the words they share, and by meaning.

        Args:
            query: The question.
            text: The record's text.
            scores: What the search found: leg -> score; every leg but `lexical` is a cosine.
        """
        question = self._question(query)
        cosine = max((score for leg, score in scores.items() if leg != LEXICAL), default=0.0)
        terms = self._terms_of(text) if len(text) <= LONG_CHARS else frozenset(self._analysis.text(text))
        return _grounds(question, terms, cosine)

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
            max_tokens: Leaves out turns that do not fit whole into a budget of estimated tokens (see `packing`).
            as_of: Only turns said by then.
            explain: Adds how scores came about.

        Raises:
            BackendDown: The searchable side does not answer.
        """
        question = await _aside(len(query), lambda: self._question(query))
        groups = {f"{GROUP}{n}": group for n, group in enumerate(question.groups)}
        legs = {LEXICAL: question.terms} | groups
        asked = SearchQuery(legs, {}, max(limit, CANDIDATES), as_of, question.names, frozenset(groups))
        meaning = asyncio.create_task(self._meaning(query))
        try:
            candidates = await self._vectors.search(subject, asked, meaning)
        finally:
            meaning.cancel()  # of no effect where all went well
        # Only the best are read: what a text may add or take off changes the order among them.
        step = limit + MARGIN if max_tokens is None else min(PIECE, limit + MARGIN)
        most = step if max_tokens is None else max(limit, PIECE) + MARGIN
        dense = candidates.scores.keys() - legs.keys()
        scored = rank(measure(candidates, question, sorted(dense)), self._weights, most)
        if not scored:
            return Recalled()
        turns = await self._fetch(subject, scored[:step])
        head = await _aside(_chars(turns), lambda: self._read(question, query, scored[:step], turns))
        if not head:
            return Recalled()
        sure, best = self._calibration.best(head), head[0].raw
        if self._calibration.score(sure, 0.0) < ABSTAIN:
            return Recalled()
        least = _Floor(self._calibration, sure, best, min_score)
        chosen = [one for one in head[:limit] if least.passes(one)]
        if max_tokens is not None:
            chosen = await self._packed(subject, chosen, scored[step:limit], turns, max_tokens, least)
        ranked = [Ranked(turns[one.id], least.score(one), *self._reasons(one, explain)) for one in chosen]
        return Recalled(ranked, _explained(self._calibration, sure, best) if explain else "")

    async def _packed(
        self,
        subject: Subject,
        head: Sequence[Scored],
        rest: Sequence[Scored],
        turns: dict[str, Turn],
        budget: int,
        least: _Floor,
    ) -> list[Scored]:
        """Those that go into a budget, best first. Reads on from `head` as far as the budget may need; adds to `turns`."""
        pool: list[Scored] = []
        costs: list[int] = []
        piece: Sequence[Scored] = head
        while piece:
            for one in piece:
                turn = turns[one.id]
                cost = turn_tokens(turn.name, turn.content)
                if cost <= budget:
                    pool.append(one)
                    costs.append(cost)
            if sum(costs) >= POOL * budget:
                break
            piece, rest = [one for one in rest[:PIECE] if least.passes(one)], rest[PIECE:]
            turns |= await self._fetch(subject, piece)
            piece = [one for one in piece if one.id in turns]
        return [pool[place] for place in pack([one.raw for one in pool], costs, budget)]

    def _reasons(self, one: Scored, explain: bool) -> tuple[dict[str, float], float]:
        return (parts(one, self._weights), one.raw) if explain else ({}, 0.0)

    async def _fetch(self, subject: Subject, scored: Sequence[Scored]) -> dict[str, Turn]:
        found = await self._vectors.get(subject, [one.id for one in scored])
        return {turn.id: turn for turn in found}

    def _read(
        self, question: Question, query: str, scored: Sequence[Scored], turns: Mapping[str, Turn]
    ) -> list[Scored]:
        """The candidates whose turns still exist, with what their texts add, in the order that results."""
        quotes = _quotes(question, query)
        read = []
        for one in scored:
            turn = turns.get(one.id)
            if turn is None:  # deleted meanwhile
                continue
            if asks(turn.content) and not self._analysis.tells(question, turn.content):
                one = one.adding("echo", self._weights.echo)
            elif quotes(turn.content):
                one = one.adding("quoted", self._weights.quoted)
            read.append(one)
        return ordered(read)


@dataclass(frozen=True, slots=True)
class _Floor:
    """A question's scale of scores, and the least that is wanted on it."""

    calibration: Calibration
    sure: float
    best: float
    least: float

    def score(self, one: Scored) -> float:
        return self.calibration.score(self.sure, max(0.0, self.best - one.raw))

    def passes(self, one: Scored) -> bool:
        return self.score(one) >= self.least


def _grounds(question: Question, terms: Set[str], cosine: float) -> float:
    """Words and meaning as independent grounds: the share of the question's terms that a text has, and the cosine."""
    asked = sum(question.terms.values()) or 1.0
    words = sum(weight for term, weight in question.terms.items() if term in terms) / asked
    if not cosine and any(map(is_cjk, question.folded)):
        words = math.sqrt(words)  # a question's pairs of characters are seldom all in its answer
    meaning = min(1.0, max(0.0, (cosine - _LOW) / (_HIGH - _LOW)))
    return 1 - (1 - words) * (1 - meaning)


async def _aside(chars: float, work: Callable[[], _T]) -> _T:
    """The result of `work`, done in another thread if so much text would hold up everybody else."""
    return work() if chars <= LONG_CHARS else await asyncio.to_thread(work)


def _quotes(question: Question, query: str) -> Callable[[str], bool]:
    """Whether a text has the query word for word; never for a few words, which many texts have by chance."""
    wanted = query.strip().rstrip("?？!！.。").casefold()
    if len(question.terms) < _QUOTE_TERMS:
        return lambda content: False
    return lambda content: wanted in content.casefold()


def _chars(turns: Mapping[str, Turn]) -> float:
    """Of all text that is read about this share is folded or analysed."""
    return sum(len(turn.content) for turn in turns.values()) / _READ_SHARE


def _explained(calibration: Calibration, sure: float, best: float) -> str:
    return (
        f"score = 1 / (1 + exp({calibration.lag:.4f} * ({best:.4f} - raw) - ({sure:.4f}))): the log odds of the best turn"
        " follow from how much of the question it and its window have, and from its closeness in meaning"
    )
