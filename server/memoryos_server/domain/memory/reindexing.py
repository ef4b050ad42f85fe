"""Brings what was kept before in step with the models in use, in the background.

Another embedding model starts with no vectors, another analysis of words with terms that do not match. Until this is
done, what was kept before is found by words, or less well; nothing waits for it. A crash loses no more than some pages:
what lacks something is found again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from memoryos_server.domain.core.faults import BackendDown, Fault
from memoryos_server.domain.memory.counts import Counts, Uncounted
from memoryos_server.domain.ports import IndexedTurn, Record, Subject, Subjects, Turn

log = logging.getLogger(__name__)

_PAGE = 128
_RETRY_SECONDS = 5.0
_PROGRESS_SECONDS = 5.0


class Lacking(Protocol):
    """A point that lacks something; the store knows more of it."""

    @property
    def subject_id(self) -> str:
        """Whose."""

    @property
    def id(self) -> str:
        """The memory id."""

    @property
    def version(self) -> int:
        """The record's version, 0 for an episode."""


class Upkeep(Protocol):
    """What the searchable side lacks, and how it gets it."""

    async def coverage(self) -> tuple[int, int]:
        """How many episodes and records there are, and how many of them the models in use have embedded."""

    async def unembedded(self, after_id: str, limit: int) -> Sequence[Lacking]:
        """Points that are not embedded, in the order of ids from behind `after_id`."""

    async def stale(self, analysis: int, after_id: str, limit: int) -> Sequence[Lacking]:
        """Points with terms of another analysis, in the order of ids from behind `after_id`."""

    async def opened(self, subject: Subject, stored: Any) -> Turn | Record:
        """What a point holds; only what this store gave is taken."""

    async def add_dense(
        self,
        subject: Subject,
        vectors: Iterable[tuple[str, Mapping[str, Sequence[float]]]],
        versions: Mapping[str, int] | None = None,
    ) -> int:
        """Adds vectors to points, and counts them as embedded even without any."""

    async def replace_terms(
        self,
        subject: Subject,
        changes: Iterable[tuple[str, Mapping[str, float], Sequence[str], Sequence[float]]],
    ) -> int:
        """Gives points new terms, names and hints."""

    async def old_dense(self) -> int:
        """The number of sets of vectors of models not in use."""

    async def drop_old_dense(self) -> int:
        """Deletes them."""

    async def flush(self) -> int:
        """Makes it durable."""


class Indexer(Protocol):
    """Makes terms and vectors."""

    async def index(self, turns: Sequence[Turn]) -> list[IndexedTurn]:
        """Of turns."""

    async def terms_and_vectors(
        self, texts: Sequence[str]
    ) -> list[tuple[dict[str, float], Mapping[str, Sequence[float]]]]:
        """Of texts."""


class Reindexer:
    """Runs while it is open; at rest once nothing lacks anything.

    Args:
        upkeep: The searchable side.
        subjects: Who is known.
        indexer: Makes terms and vectors.
        analysis: The version of its terms.
        embeds: Whether there is a model at all.
        progress: Gets a line now and then.
        counts: Is told how far it is.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        subjects: Subjects,
        indexer: Indexer,
        *,
        analysis: int,
        embeds: bool,
        progress: Callable[[str], None],
        counts: Counts | None = None,
    ) -> None:
        self._upkeep = upkeep
        self._subjects = subjects
        self._indexer = indexer
        self._analysis = analysis
        self._embeds = embeds
        self._progress = progress
        self._counts = counts or Uncounted()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._task: asyncio.Task[None] | None = None
        self._said = 0.0

    async def __aenter__(self) -> Reindexer:
        self._task = asyncio.create_task(self._run_forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def again(self) -> None:
        """Looks over everything once more: the store may have lost what was not durable."""
        self._wanted.set()

    async def _run_forever(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._run()
                continue
            except BackendDown as fault:
                log.warning("indexing again waits: %s", fault.message)
            except Exception:
                log.exception("indexing again failed")
            self._wanted.set()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _run(self) -> None:
        done = 0
        after = ""
        while page := await self._upkeep.stale(self._analysis, after, _PAGE):
            after = page[-1].id
            await self._each(page, terms=True)
            done += len(page)
            self._say(f"{done} memories are analysed again")
        if self._embeds:
            await self._covered()
            after = ""
            while page := await self._upkeep.unembedded(after, _PAGE):
                after = page[-1].id
                await self._each(page, terms=False)
                done += len(page)
                total, embedded = await self._covered()
                self._say(f"{embedded} of {total} memories are embedded by the model in use")
            if await self._upkeep.old_dense():
                await self._upkeep.flush()  # what replaces them first
                await self._upkeep.drop_old_dense()
        if done:
            await self._upkeep.flush()
            self._progress(f"indexing again is done: {done} memories")

    async def _covered(self) -> tuple[int, int]:
        total, embedded = await self._upkeep.coverage()
        self._counts.embedded(total, embedded)
        return total, embedded

    def _say(self, line: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            self._progress(line)

    async def _each(self, page: Sequence[Lacking], *, terms: bool) -> None:
        by_subject: dict[str, list[Lacking]] = {}
        for stored in page:
            by_subject.setdefault(stored.subject_id, []).append(stored)
        for subject_id, mine in by_subject.items():
            subject = await self._subjects.by_id(subject_id)
            if subject is None:
                continue  # erased
            try:
                await self._index(subject, mine, terms=terms)
            except BackendDown:
                raise
            except Fault:
                for stored in mine:  # one that the model refuses must not spoil the others
                    await self._alone(subject, stored, terms=terms)

    async def _alone(self, subject: Subject, stored: Lacking, *, terms: bool) -> None:
        try:
            await self._index(subject, [stored], terms=terms)
        except BackendDown:
            raise
        except Fault as fault:
            log.warning("memory %s stays without a vector: %s", stored.id, fault.message)
            await self._upkeep.add_dense(subject, [(stored.id, {})], {stored.id: stored.version})

    async def _index(self, subject: Subject, mine: Sequence[Lacking], *, terms: bool) -> None:
        turns: list[Turn] = []
        records: list[Record] = []
        for stored in mine:
            try:
                opened = await self._upkeep.opened(subject, stored)
            except BackendDown:
                raise
            except Exception as error:
                log.error("memory %s cannot be opened and stays as it is: %s", stored.id, error)
                continue
            (turns if isinstance(opened, Turn) else records).append(opened)  # type: ignore[arg-type]  # by the test
        indexed = await self._indexer.index(turns) if turns else []
        texts = await self._indexer.terms_and_vectors([record.text for record in records]) if records else []
        if terms:
            changes: list[tuple[str, Mapping[str, float], Sequence[str], Sequence[float]]] = [
                (one.turn.id, one.terms, one.names, one.hints) for one in indexed
            ]
            changes += [(record.id, made, (), ()) for record, (made, _) in zip(records, texts, strict=True)]
            await self._upkeep.replace_terms(subject, changes)
        if self._embeds:
            vectors = [(one.turn.id, one.dense) for one in indexed]
            vectors += [(record.id, dense) for record, (_, dense) in zip(records, texts, strict=True)]
            versions = {record.id: record.version for record in records}
            await self._upkeep.add_dense(subject, vectors, versions)
