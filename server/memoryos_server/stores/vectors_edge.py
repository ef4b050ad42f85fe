"""The searchable side of memory over the embedded vector process.

What is kept leaves this module sealed and comes back opened; the process sees ciphertext, keyed terms, vectors and
times. Every read names its subject, and what is not the subject's is never given.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports import (
    Candidates,
    IndexedRecord,
    IndexedTurn,
    Record,
    RecordFilter,
    RecordHit,
    RecordQuery,
    SearchQuery,
    Subject,
    Turn,
)
from memoryos_server.stores.edge_rows import candidates
from memoryos_server.stores.edge_upkeep import FLUSH_SECONDS, EdgeUpkeep
from memoryos_server.stores.points import chosen, dense, names, point, record_point, sparse
from memoryos_server.stores.scope import Scope, corpus_of
from memoryos_server.stores.sealing import Sealer
from memoryos_server.stores.traffic import in_pieces, is_uuid, known_ids, opened_records, opened_turns

_SCANNED = 256


class EdgeVectors(EdgeUpkeep):
    """`domain.ports.Vectors` on the socket of the vector process; connects when first called, and again when it broke.

    A call gives up after 5 s (`flush` 60 s) with `BackendDown`, at once while the process is away. It is an async
    context manager that closes its connection. Every method may raise `BackendDown`.
    """

    _staged = itertools.count(1)
    _questions = itertools.count(1)

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is. In pieces: a failure may leave some written.

        Returns:
            The incarnation of the process that took them: a number that changes when it was restarted.

        Raises:
            BackendDown: The process does not answer, or was restarted midway.
        """
        sealer = await self._sealers.sealer(subject)
        points = (point(subject, turn, sealer, self._analysis) for turn in turns)
        took = set()
        for piece in await in_pieces(points, sum(len(turn.terms) for turn in turns)):
            took.add(await self._call("insert", piece))
        return await self._one(took)

    async def put(self, subject: Subject, records: Sequence[IndexedRecord]) -> int:
        """Adds records, or replaces those whose version is not higher; all become visible at once.

        Of several versions of one record the highest counts. Vectors of a version that is replaced are gone; the same
        version put again without vectors keeps those it has.

        Returns:
            The incarnation of the process that took them.

        Raises:
            Exists: An id is that of an episode, of another kind, or of another subject. Nothing was written.
            BackendDown: The process does not answer, or was restarted midway. All or nothing was written.
        """
        sealer = await self._sealers.sealer(subject)
        points = (record_point(subject, record, sealer, self._analysis) for record in records)
        sent = list(await in_pieces(points, sum(len(record.terms) for record in records)))
        if len(sent) <= 1:
            return await self._one({await self._call("put", piece) for piece in sent})
        number = next(self._staged)
        took = {await self._call("stage", number, piece) for piece in sent}
        took.add(await self._call("put_staged", number, deadline=FLUSH_SECONDS))
        return await self._one(took)

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """The union of what each leg finds among the subject's turns, in no order. IDF is the subject's own.

        While the vectors of `later` are being made, the process looks up the words.
        """
        sealer = await self._sealers.sealer(subject)
        words = [(leg, *sparse(terms, sealer)) for leg, terms in query.lexical.items() if terms]
        corpus, until = Scope(subject, sealer).corpus(), query.until.timestamp() if query.until is not None else None
        vectors, number = dict(query.dense), None
        if later is not None:
            if words and query.limit > 0:
                number = next(self._questions)
                looked_up = asyncio.create_task(self._call("words", number, corpus, words, {}, query.limit, until))
                try:
                    vectors |= await later
                    await looked_up
                finally:
                    looked_up.cancel()
            else:
                vectors |= await later
        if query.limit < 1 or not (words or vectors):
            return Candidates.of(())
        asked = ({name: dense(vector) for name, vector in vectors.items()}, query.limit, until, list(query.parts))
        answer = await self._call("search", number, corpus, words if number is None else [], *asked)
        if answer is None:  # too many others asked meanwhile, or the connection was made anew
            answer = await self._call("search", None, corpus, words, *asked)
        rows, legs = answer
        return candidates(rows, legs, names(query.names, sealer))

    async def find(self, subject: Subject, queries: Sequence[RecordQuery]) -> list[list[RecordHit]]:
        """For each query, the union of what its legs find among the subject's records, in no order. One round trip."""
        sealer = await self._sealers.sealer(subject)
        scope, now = Scope(subject, sealer), datetime.now(UTC)
        asked = []
        for query in queries:
            at = (query.as_of or now).timestamp()
            wanted = chosen(scope, RecordFilter(query.kind, query.type), sealer, now) | {"at": at, "began": at}
            vectors = {name: dense(vector) for name, vector in query.dense.items()}
            asked.append((wanted, *sparse(query.terms, sealer), vectors, max(query.limit, 0), query.most))
        answers: list[list[RecordHit]] = []
        for hits in await self._call("find", asked) if asked else ():
            scores = {row[0]: found for row, found in hits}
            opened = opened_records((row for row, _ in hits), sealer)
            answers.append([RecordHit(record, scores[record.id]) for record in opened])
        return answers

    async def near(self, subject: Subject, dense: Mapping[str, Sequence[float]], limit: int) -> list[tuple[str, float]]:
        """The ids of the turns closest in meaning, with the best of their cosines, best first."""
        if limit < 1 or not dense:
            return []
        vectors = {name: _vector(vector) for name, vector in dense.items()}
        sealer = await self._sealers.sealer(subject)
        found = await self._call("near", Scope(subject, sealer).corpus(), vectors, limit)
        return [(memory_id, cosine) for memory_id, cosine in found]

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist, in no order. What is no UUID does not exist."""
        known = known_ids(ids)
        if not known:
            return []
        sealer = await self._sealers.sealer(subject)
        payloads = await self._call("get", Scope(subject, sealer).corpus(), known)
        return list(opened_turns(payloads.items(), sealer))

    async def records(self, subject: Subject, ids: Sequence[str], *, history: bool = False) -> list[Record]:
        """Those of the subject's records that exist, in no order."""
        known = known_ids(ids)
        if not known:
            return []
        sealer = await self._sealers.sealer(subject)
        rows = await self._call("records", Scope(subject, sealer).corpora, known, history)
        return list(opened_records(rows, sealer))

    async def page(
        self, subject: Subject, chosen: RecordFilter, offset: int, limit: int, *, history: bool = False
    ) -> tuple[list[Record], int]:
        """Records newest first, of equal `created_at` by id, from `offset`; and how many there are in all."""
        wanted, sealer = await self._wanted(subject, chosen)
        rows, total = await self._call("page", wanted, offset, max(limit, 0), history)
        return list(opened_records(rows, sealer)), total

    async def scan(self, subject: Subject, chosen: RecordFilter, *, history: bool = False) -> AsyncIterator[Record]:
        """Every such record, in the order of ids, read in pieces; one that is written meanwhile may be given or not."""
        wanted, sealer = await self._wanted(subject, chosen)
        after, more = "", True
        while more:
            rows, after = await self._call("scan", wanted, after, _SCANNED, history)
            more = bool(after)
            for record in opened_records(rows, sealer):
                yield record

    async def said(self, subject: Subject, session_id: str | None, after: int, limit: int) -> list[Turn]:
        """A session's turns (None: those of all) in the order of acceptance, those with a `seq` above `after`."""
        if limit < 1:
            return []
        sealer = await self._sealers.sealer(subject)
        scope = Scope(subject, sealer)
        session = None if session_id is None else scope.session(session_id)
        rows = await self._call("said", scope.corpus(), session, after, limit)
        return list(opened_turns(rows, sealer))

    async def remove(self, subject: Subject, ids: Sequence[str]) -> int:
        """Removes the subject's episodes and records of these ids from every answer. Gives the incarnation."""
        sealer = await self._sealers.sealer(subject)
        return int(await self._call("remove", Scope(subject, sealer).corpora, known_ids(ids)))

    async def owner(self, memory_id: str) -> str | None:
        """The subject id that an episode or a record belongs to, or None."""
        corpus = await self._call("owner", memory_id) if is_uuid(memory_id) else None
        return None if corpus is None else str(corpus).partition("/")[0]

    async def count(self, subject: Subject | None = None) -> int:
        """The number of episodes and records, of a subject or of all."""
        return int(await self._call("count", None if subject is None else await self._corpora(subject)))

    async def delete_subject(self, subject: Subject) -> None:
        """Removes all that is a subject's from every answer; the bytes stay in the files until a vacuum."""
        await self._call("delete_subject", await self._corpora(subject))

    async def erase(self, subject_id: str, kind: str) -> int:
        """Removes all of one kind that a subject has, "" for episodes, durably; gives how much there was.

        The process takes nothing more of it: a write that was under way comes to nothing.
        """
        corpus = corpus_of(subject_id, kind)
        removed = int(await self._call("erase", corpus))
        await self.flush()
        return removed

    async def left(self, subject_id: str, kind: str) -> int:
        """How much of one kind a subject has, in any of the shards."""
        return int(await self._call("left", corpus_of(subject_id, kind)))

    async def _corpora(self, subject: Subject) -> Sequence[str]:
        return Scope(subject, await self._sealers.sealer(subject)).corpora

    async def _wanted(self, subject: Subject, wanted: RecordFilter) -> tuple[Mapping[str, Any], Sealer]:
        sealer = await self._sealers.sealer(subject)
        return chosen(Scope(subject, sealer), wanted, sealer, datetime.now(UTC)), sealer

    async def _one(self, took: set[int]) -> int:
        """The incarnation that took a write; of an empty one, the present one."""
        if len(took) > 1:
            raise BackendDown("The vector store was restarted midway")
        return took.pop() if took else int((await self._call("ping"))["incarnation"])


_vector = dense  # `near` has an argument of that name
