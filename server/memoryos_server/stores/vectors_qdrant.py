"""The searchable side of memory over a live Qdrant server.

What is kept leaves this module sealed and comes back opened; the server sees ciphertext, keyed terms, vectors and
times. Every read names its subject, and what is not the subject's is never given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from qdrant_client import grpc as q

from memoryos_server.domain.core.faults import Exists
from memoryos_server.domain.ports import (
    Candidate,
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
from memoryos_server.stores import qdrant_forms as forms
from memoryos_server.stores.frames import LEXICAL
from memoryos_server.stores.hits import likeliest
from memoryos_server.stores.points import chosen, dense, names, point, record_fields, record_point, sparse
from memoryos_server.stores.qdrant_points import Asked, Leg, grouped
from memoryos_server.stores.qdrant_upkeep import INCARNATION, QdrantUpkeep
from memoryos_server.stores.scope import Scope, corpus_of
from memoryos_server.stores.sealing import Sealer
from memoryos_server.stores.traffic import in_pieces, is_uuid, known_ids, opened_records, opened_turns

# Records travel with their histories, which may be long.
_SCANNED = 64


class QdrantVectors(QdrantUpkeep):
    """`domain.ports.Vectors` on a live Qdrant server; connects when first called, and again when it broke.

    It is an async context manager that closes its connection. Every method may raise `BackendDown`: the server cannot
    be reached, did not answer within the deadline, or failed; a write may have been done all the same.
    """

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is. In pieces: a failure may leave some written."""
        sealer = await self._sealers.sealer(subject)
        first: dict[str, IndexedTurn] = {}
        for turn in turns:
            first.setdefault(turn.turn.id, turn)
        points = (point(subject, turn, sealer, self._analysis) for turn in first.values())
        for piece in await in_pieces(points, sum(len(turn.terms) for turn in first.values())):
            there = await self._points.read(one["id"] for one in piece)
            fresh = [one for one in piece if one["id"] not in there]
            await self._write_dense(fresh)
            await self._points.upsert(
                self._schema.main, [forms.main_point(one) for one in fresh], update_mode=q.UpdateMode.InsertOnly
            )
        return INCARNATION

    async def put(self, subject: Subject, records: Sequence[IndexedRecord]) -> int:
        """Adds records, or replaces those whose version is not higher.

        Of several versions of one record the highest counts. Vectors of a version that is replaced are gone; the same
        version put again without vectors keeps those it has. A server has no change of many points at once: they become
        visible piece by piece, and a failure may leave some written, which putting them again completes.

        Raises:
            Exists: An id is that of an episode, of another kind, or of another subject. Nothing was written.
        """
        sealer = await self._sealers.sealer(subject)
        newest: dict[str, IndexedRecord] = {}
        for record in records:
            known = newest.get(record.record.id)
            if known is None or known.record.version < record.record.version:
                newest[record.record.id] = record
        there = await self._points.read(newest, "s", "v")
        scope = Scope(subject, sealer)
        for memory_id, old in there.items():
            if old["s"] != scope.corpus(newest[memory_id].record.kind):
                raise Exists("An id is already used by another memory", param="id")
        wanted = [one for one in newest.values() if there.get(one.record.id, {}).get("v", 0) <= one.record.version]
        points = (record_point(subject, record, sealer, self._analysis) for record in wanted)
        for piece in await in_pieces(points, sum(len(record.terms) for record in wanted)):
            await self._write_dense(piece)
            # Should another server have written a higher version since, or the id be another's by now, that one stays.
            versions = {one["id"]: one["payload"]["v"] for one in piece}
            corpora = {one["payload"]["s"] for one in piece}
            not_over = forms.either(
                forms.all_of(forms.is_one_of(ids), forms.within("v", lte=version), forms.any_of("s", sorted(corpora)))
                for version, ids in grouped(versions).items()
            )
            await self._points.upsert(
                self._schema.main, [forms.main_point(one) for one in piece], update_filter=not_over
            )
            replaced = {memory_id: version for memory_id, version in versions.items() if memory_id in there}
            if replaced:
                # Vectors of a text that is no more; also those that background work brings at this moment.
                outdated = forms.either(
                    forms.all_of(forms.is_one_of(ids), forms.within("v", lt=version))
                    for version, ids in grouped(replaced).items()
                )
                await self._points.delete_vectors(outdated)
        return INCARNATION

    async def search(
        self, subject: Subject, query: SearchQuery, later: Awaitable[Mapping[str, Sequence[float]]] | None = None
    ) -> Candidates:
        """The union of what each leg finds among the subject's turns, in no order. IDF is the subject's own.

        While the vectors of `later` are being made, the server looks up the words.
        """
        if query.limit < 1:
            return Candidates.of(())
        sealer = await self._sealers.sealer(subject)
        wanted: dict[str, Any] = {"s": Scope(subject, sealer).corpus()}
        if query.until is not None:
            wanted["began"] = query.until.timestamp()
        words = [(leg, *sparse(terms, sealer)) for leg, terms in query.lexical.items() if terms]
        asked = [self._legs(wanted, words, query.dense, query.limit)]
        if later is not None:
            asked.append(self._legs(wanted, [], later, query.limit))
        legs = [leg for of in await asyncio.gather(*asked) for leg in of]
        found = {memory_id for name, hits in legs if name not in query.parts for memory_id, _ in hits}
        rows = await self._points.read(found, forms.ROW) if found else {}
        return _candidates(rows, legs, frozenset(names(query.names, sealer)))

    async def _legs(
        self,
        wanted: Mapping[str, Any],
        words: Sequence[tuple[str, list[int], list[float]]],
        vectors: Mapping[str, Sequence[float]] | Awaitable[Mapping[str, Sequence[float]]],
        limit: int,
    ) -> Sequence[Leg]:
        made = vectors if isinstance(vectors, Mapping) else await vectors
        if not words and not made:
            return []
        vectors_sent = {name: dense(vector) for name, vector in made.items()}
        (legs,) = await self._points.legs([Asked(wanted, words, vectors_sent, limit)])
        return legs

    async def find(self, subject: Subject, queries: Sequence[RecordQuery]) -> list[list[RecordHit]]:
        """For each query, the union of what its legs find among the subject's records, in no order."""
        sealer = await self._sealers.sealer(subject)
        scope, now = Scope(subject, sealer), datetime.now(UTC)
        asked = []
        for query in queries:
            at = (query.as_of or now).timestamp()
            wanted = chosen(scope, RecordFilter(query.kind, query.type), sealer, now) | {"at": at, "began": at}
            vectors = {name: dense(vector) for name, vector in query.dense.items()}
            words = [(LEXICAL, *sparse(query.terms, sealer))]
            asked.append(Asked(wanted, words, vectors, query.limit))
        legs = await self._points.legs(asked)
        ids = {memory_id for of in legs for _, hits in of for memory_id, _ in hits}
        opened = {record.id: record for record in await self._records(ids, scope.corpora, sealer)}
        answers: list[list[RecordHit]] = []
        for query, found in zip(queries, legs, strict=True):
            scores: dict[str, dict[str, float]] = {}
            for name, hits in found:
                for memory_id, score in hits:
                    scores.setdefault(memory_id, {})[name] = score
            there = {i: of for i, of in scores.items() if i in opened and opened[i].kind == query.kind}
            answers.append([RecordHit(opened[i], of) for i, of in likeliest(there, query.most).items()])
        return answers

    async def near(self, subject: Subject, dense: Mapping[str, Sequence[float]], limit: int) -> list[tuple[str, float]]:
        """The ids of the turns closest in meaning, with the best of their cosines, best first."""
        if limit < 1 or not dense:
            return []
        vectors = {name: _vector(vector) for name, vector in dense.items()}
        sealer = await self._sealers.sealer(subject)
        (legs,) = await self._points.legs([Asked({"s": Scope(subject, sealer).corpus()}, [], vectors, limit)])
        best: dict[str, float] = {}
        for _, hits in legs:
            for memory_id, cosine in hits:
                best[memory_id] = max(cosine, best.get(memory_id, -1.0))
        there = await self._points.read(best)
        order = sorted(((cosine, memory_id) for memory_id, cosine in best.items() if memory_id in there), reverse=True)
        return [(memory_id, cosine) for cosine, memory_id in order[:limit]]

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist, in no order. What is no UUID does not exist."""
        known = known_ids(ids)
        if not known:
            return []
        sealer = await self._sealers.sealer(subject)
        corpus = Scope(subject, sealer).corpus()
        found = await self._points.read_of([corpus], known, "t")
        return list(opened_turns(((name, row["t"]) for name, row in found.items()), sealer))

    async def records(self, subject: Subject, ids: Sequence[str], *, history: bool = False) -> list[Record]:
        """Those of the subject's records that exist, in no order."""
        known = known_ids(ids)
        if not known:
            return []
        sealer = await self._sealers.sealer(subject)
        corpora = Scope(subject, sealer).corpora
        found = await self._points.read_of(corpora, known, *record_fields(history))
        return list(opened_records(_rows(found, corpora), sealer))

    async def page(
        self, subject: Subject, chosen: RecordFilter, offset: int, limit: int, *, history: bool = False
    ) -> tuple[list[Record], int]:
        """Records newest first, of equal `created_at` by id, from `offset`; and how many there are in all."""
        wanted, sealer = await self._wanted(subject, chosen)
        matching = forms.matching(wanted)
        total = await self._points.count(matching)
        end = min(offset + max(limit, 0), total)
        if offset >= end:
            return [], total
        order = q.OrderBy(key="cr", direction=q.Direction.Desc)
        head = (await self._points.scroll(matching, end, order=order)).result
        found = {(-_order(one), one.id.uuid) for one in head}
        if found and end < total:
            # The server breaks ties as it likes: which of the last time's are before the end is for their ids to say.
            last = -max(found)[0]
            ties = forms.matching({**wanted, "cr": last})
            found |= {(-last, one.id.uuid) for one in (await self._points.scroll(ties, total)).result}
        ids = [memory_id for _, memory_id in sorted(found)[offset:end]]
        records = await self._records(ids, [wanted["s"]], sealer, history=history)
        by_id = {record.id: record for record in records}
        return [by_id[memory_id] for memory_id in ids if memory_id in by_id], total

    async def scan(self, subject: Subject, chosen: RecordFilter, *, history: bool = False) -> AsyncIterator[Record]:
        """Every such record, in the order of ids, read in pieces; one that is written meanwhile may be given or not."""
        wanted, sealer = await self._wanted(subject, chosen)
        fields, after, more = ("s", "t", *(("h",) if history else ())), "", True
        while more:
            found = await self._points.scroll(forms.matching(wanted), _SCANNED, *fields, after=after)
            rows = {
                one.id.uuid: {field: forms.plain(value) for field, value in one.payload.items()} for one in found.result
            }
            after = found.next_page_offset.uuid
            more = bool(after)
            for record in opened_records(_rows(rows, [wanted["s"]]), sealer):
                yield record

    async def said(self, subject: Subject, session_id: str | None, after: int, limit: int) -> list[Turn]:
        """A session's turns (None: those of all) in the order of acceptance, those with a `seq` above `after`."""
        if limit < 1:
            return []
        sealer = await self._sealers.sealer(subject)
        scope = Scope(subject, sealer)
        of_session = {} if session_id is None else {"n": scope.session(session_id)}
        mine = forms.matching({"s": scope.corpus(), **of_session})
        order = q.OrderBy(key="q", direction=q.Direction.Asc, start_from=q.StartFrom(integer=after + 1))
        found = await self._points.scroll(mine, limit, "t", order=order)
        return list(opened_turns(((one.id.uuid, one.payload["t"].string_value) for one in found.result), sealer))

    async def remove(self, subject: Subject, ids: Sequence[str]) -> int:
        """Removes the subject's episodes and records of these ids from every answer. Gives the incarnation."""
        known = known_ids(ids)
        if known:
            corpora = await self._corpora(subject)
            await self._remove(forms.all_of(forms.any_of("s", corpora), forms.is_one_of(known)))
        return INCARNATION

    async def owner(self, memory_id: str) -> str | None:
        """The subject id that an episode or a record belongs to, or None."""
        found = await self._points.read([memory_id], "s") if is_uuid(memory_id) else {}
        return str(found[memory_id]["s"]).partition("/")[0] if found else None

    async def count(self, subject: Subject | None = None) -> int:
        """The number of episodes and records, of a subject or of all."""
        chosen = None if subject is None else forms.all_of(forms.any_of("s", await self._corpora(subject)))
        return await self._points.count(chosen)

    async def delete_subject(self, subject: Subject) -> None:
        """Removes all that is a subject's from every answer; the bytes stay in the server's files until it tidies them."""
        await self._remove(forms.all_of(forms.any_of("s", await self._corpora(subject))))

    async def erase(self, subject_id: str, kind: str) -> int:
        """Removes all of one kind that a subject has, "" for episodes, durably; gives how much there was.

        A write that was under way, here or on another server of ours, may still come behind it: look again later.
        """
        removed = await self.left(subject_id, kind)
        await self._remove(forms.all_of(forms.any_of("s", [corpus_of(subject_id, kind)])))
        return removed

    async def left(self, subject_id: str, kind: str) -> int:
        """How much of one kind a subject has, in the collection that has most of it."""
        chosen = forms.all_of(forms.any_of("s", [corpus_of(subject_id, kind)]))
        places = [self._schema.main, *await self._points.denses()]
        return max(await asyncio.gather(*(self._points.count(chosen, collection=place) for place in places)))

    async def _remove(self, chosen: Any) -> None:
        # The points first: vectors that background work brings meanwhile then find none, and go again.
        await self._points.delete(self._schema.main, chosen)
        await self._points.delete_vectors(chosen)

    async def _write_dense(self, piece: Sequence[Mapping[str, Any]]) -> None:
        made = []
        for one in piece:
            for name, raw in one["dense"].items():
                self._points.check(name, raw)
            if one["dense"]:
                made.append(forms.dense_point(one["id"], one["dense"], one["payload"]))
        if self._schema.dense is not None:
            versions = {one["id"]: one["payload"]["v"] for one in piece if "v" in one["payload"]}
            if not versions:
                # Episodes do not change: those of a server that was faster stay.
                await self._points.upsert(self._schema.dense, made, update_mode=q.UpdateMode.InsertOnly)
                return
            # Never over the vectors of a higher version, which another server may have written since.
            older = forms.either(
                forms.all_of(forms.is_one_of(ids), forms.within("v", lte=version))
                for version, ids in grouped(versions).items()
            )
            await self._points.upsert(self._schema.dense, made, update_filter=older)

    async def _records(
        self, ids: Iterable[str], corpora: Sequence[str], sealer: Sealer, *, history: bool = False
    ) -> list[Record]:
        return list(opened_records(_rows(await self._points.read(ids, *record_fields(history)), corpora), sealer))

    async def _corpora(self, subject: Subject) -> Sequence[str]:
        return Scope(subject, await self._sealers.sealer(subject)).corpora

    async def _wanted(self, subject: Subject, wanted: RecordFilter) -> tuple[Mapping[str, Any], Sealer]:
        sealer = await self._sealers.sealer(subject)
        return chosen(Scope(subject, sealer), wanted, sealer, datetime.now(UTC)), sealer


_vector = dense  # `near` has an argument of that name


def _candidates(rows: Mapping[str, Mapping[str, str]], legs: Iterable[Leg], named: frozenset[int]) -> Candidates:
    """What a search found: a candidate for each row, with what each leg scored it."""
    scores: dict[str, dict[str, float]] = {memory_id: {} for memory_id in rows}
    for name, hits in legs:
        for memory_id, score in hits:
            if memory_id in scores:
                scores[memory_id][name] = score
    found = []
    for memory_id, fields in rows.items():
        seq, session, at, hints, speaker = orjson.loads(fields[forms.ROW])
        heard = not named.isdisjoint(speaker)
        found.append(Candidate(memory_id, seq, session, at, tuple(hints), heard, scores[memory_id]))
    return Candidates.of(found)


def _rows(found: Mapping[str, Mapping[str, Any]], corpora: Sequence[str]) -> Iterable[tuple[str, str, str, str | None]]:
    """Rows of records: id, kind, payload, history or None."""
    for memory_id, row in found.items():
        _, _, kind = row["s"].partition("/")
        if kind and row["s"] in corpora:
            yield memory_id, kind, row["t"], row.get("h")


def _order(record: Any) -> float:
    value = record.order_value
    return float(value.float if value.WhichOneof("variant") == "float" else value.int)
