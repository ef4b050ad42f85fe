"""What becomes of a turn: junk and repetitions are told apart, and what it states is learnt.

A turn is a repetition if it adds nothing to one the user said lately: the same words, or nearly the same meaning in words
that bring nothing new, with the same numbers, names and negation. It stays findable as it was said; it just makes no segment
of its own. What it states counts: saying a fact again makes it surer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from memoryos_server.domain.core.text import is_cjk
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memory.extraction import Extraction, extract, judge, resolve
from memoryos_server.domain.memory.facts import Sighting, sightings
from memoryos_server.domain.memory.model import Verdict
from memoryos_server.domain.memory.summary import asks
from memoryos_server.domain.ports import SearchQuery, Subject, Turn, Vectors

SAME_MEANING = 0.9
"""The cosine from which two statements without new words, names, numbers or negation are the same."""

LATELY = timedelta(days=30)
"""What was said longer ago is worth saying again."""

_LEG = "lexical"
_NEAR = 5
_LONGEST = 2_000  # longer texts are not compared: they are seldom the same, and dear to read
_MOST_WORDS = 60
_LONG = 5_000

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_NUMBER = re.compile(
    r"\d+(?:[.,:/-]\d+)*|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|first|second|third)\b|[一二两三四五六七八九十]+"
)
_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’]*")
_NOT = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|hardly|cannot|stopped|quit|former|formerly|used)\b|n['’]t\b|[不没沒别別无無未非戒]",
    re.IGNORECASE,
)


class Indexing(Protocol):
    """What search needs of texts; the recall engine gives it."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """For each text, its terms and vectors."""


class Learning(Protocol):
    """Where facts go."""

    async def learn(self, subject: Subject, seen: Sequence[Sighting]) -> None:
        """Adds what was sighted to what is believed."""


class Digester:
    """`domain.memory.model.Digest`.

    Args:
        vectors: The searchable side.
        indexing: Terms and vectors.
        knowledge: Where facts go.
        fold: A text in one form for comparing.
        stem: The stem of a word.
        clock: The present time.
    """

    def __init__(
        self,
        vectors: Vectors,
        indexing: Indexing,
        knowledge: Learning,
        fold: Callable[[str], str],
        stem: Callable[[str], str],
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._vectors = vectors
        self._indexing = indexing
        self._knowledge = knowledge
        self._fold = fold
        self._stem = stem
        self._clock = clock

    async def digest(self, subject: Subject, turns: Sequence[Turn]) -> list[Verdict]:
        """The verdicts, in order; facts are written when this returns.

        Raises:
            BackendDown: The searchable side does not answer. Repeating changes nothing that was written.
        """
        reasons = [judge(turn.content, turn.role) for turn in turns]
        verdicts = [Verdict("rejected", reason, fresh=False) if reason else Verdict() for reason in reasons]
        seen: list[Sighting] = []
        for turn, reason in zip(turns, reasons, strict=True):
            if not reason:
                facts = (await _aside(turn, self._extract)).facts
                seen += sightings(turn, facts, self._clock())
        await self._knowledge.learn(subject, seen)
        comparable = [at for at, turn in enumerate(turns) if not reasons[at] and _states(turn)]
        if comparable:
            indexed = await self._indexing.terms_and_vectors([turns[at].content for at in comparable])
            for at, (terms, dense) in zip(comparable, indexed, strict=True):
                first = await self._said_before(subject, turns[at], terms, dense)
                if first is not None:
                    verdicts[at] = Verdict("merged", "duplicate", first, fresh=False)
        return verdicts

    def _extract(self, turn: Turn) -> Extraction:
        return extract(turn.content, speaker=turn.name, role=turn.role, said_at=turn.timestamp, fold=self._fold)

    async def _said_before(
        self, subject: Subject, turn: Turn, terms: Mapping[str, float], dense: Mapping[str, Sequence[float]]
    ) -> str | None:
        """The first statement that this one repeats."""
        cosines: dict[str, float] = {}
        if dense:
            cosines = {id_: c for id_, c in await self._vectors.near(subject, dense, _NEAR) if c >= SAME_MEANING}
            ids = list(cosines)
        else:  # no meaning to go by, as for Chinese: the same words must be there
            query = SearchQuery({_LEG: terms}, {}, _NEAR, until=turn.timestamp)
            found = await self._vectors.search(subject, query)
            ids = [c.id for c in sorted(found, key=lambda c: -c.scores.get(_LEG, 0.0))[:_NEAR]]
        ids = [id_ for id_ in ids if id_ != turn.id]
        if not ids:
            return None
        before = [
            old
            for old in await self._vectors.get(subject, ids)
            if old.seq < turn.seq
            and _states(old)
            and old.name == turn.name
            and self._same(old, turn, old.id in cosines)
        ]
        return min(before, key=lambda old: (old.seq, old.id)).id if before else None

    def _same(self, old: Turn, new: Turn, close: bool) -> bool:
        apart = abs(new.timestamp - old.timestamp)
        if apart > LATELY:
            return False
        if apart >= timedelta(hours=12) and resolve(new.content, new.timestamp):
            return False  # "I run a race tomorrow", said on two days, are two races
        if self._words(old.content) == self._words(new.content):
            return True
        return close and guards(old.content) == guards(new.content) and self._adds_nothing(old.content, new.content)

    def _words(self, text: str) -> list[str]:
        return _WORD.findall(self._fold(text))

    def _adds_nothing(self, old: str, new: str) -> bool:
        """Whether the new text has words of the old one only, in their order, but for a part moved to the other end.

        The order matters, because meaning as vectors does not tell who bit whom.
        """
        said, again = self._content(old), self._content(new)
        if not again or max(len(said), len(again)) > _MOST_WORDS:
            return False
        turns = len(said) if len(said) > 2 else 1
        return any(_within(again, said[at:] + said[:at]) for at in range(turns))

    def _content(self, text: str) -> list[str]:
        return [self._stem(word) for word in self._words(text) if word not in _SMALL]


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def guards(text: str) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """What two texts must agree in to mean the same: numbers and names in order, and how often they deny."""
    numbers = tuple(_NUMBER.findall(text.casefold()))
    names = tuple(name.casefold().removesuffix("'s") for name in _NAME.findall(text) if name not in ("I", "I'm", "I’m"))
    return numbers, names, len(_NOT.findall(text))


_SMALL_TEXT = """
a an the i i'm im i've i'd me my mine am is are was were be been have has had do does did to of in on at for with and that
this it it's as so really very just also
"""
_SMALL = frozenset(_SMALL_TEXT.split())


async def _aside(turn: Turn, work: Callable[[Turn], Extraction]) -> Extraction:
    """What `work` makes of a turn, in another thread if so much text would hold up everybody else."""
    return work(turn) if len(turn.content) <= _LONG else await asyncio.to_thread(work, turn)


def _states(turn: Turn) -> bool:
    """Whether a user says something, short enough to compare, rather than ask."""
    text = turn.content
    return (
        turn.role == "user" and len(text) <= _LONGEST and not asks(text) and any(c.isalnum() or is_cjk(c) for c in text)
    )
