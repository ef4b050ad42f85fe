"""Points in the shards: how they are written and matched, for every operation of the vector process."""

from __future__ import annotations

import array
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import text
from memoryos_server.stores.edge_shards import Shards
from memoryos_server.stores.frames import LEXICAL

DENSE_FIELDS = ("s", "ts", "te", "y")
"""What the dense shards have of a payload: what filters need."""

_REFUSED = 50_000
"""Corpora of erased people that are remembered, some 150 bytes each: what was under way when they were erased ends soon."""


class InvalidRequestError(Exception):
    """A request is wrong; the message says how and holds no content."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A point as the shards take it."""

    id: str
    payload: Mapping[str, Any]
    main: qe.Point
    dense: qe.Point | None


class Points:
    """The points of one directory.

    Attributes:
        shards: Where they lie.
        incarnation: Tells whether a write was taken by this process or by one before it, which may have lost it.
    """

    def __init__(self, shards: Shards) -> None:
        """Keeps the shards."""
        self.shards = shards
        self.incarnation = secrets.randbits(62)
        self._refused: OrderedDict[str, None] = OrderedDict()

    @property
    def main(self) -> qe.EdgeShard:
        """Payloads and terms."""
        return self.shards.main

    def refuse(self, corpus: str) -> None:
        """Takes no point of a corpus any more: it is erased, and its name is never used again."""
        self._refused[corpus] = None
        while len(self._refused) > _REFUSED:
            self._refused.popitem(last=False)

    def prepare(self, point: Mapping[str, Any]) -> Prepared:
        """A point as the shards take it."""
        memory_id, payload = str(UUID(point["id"])), point["payload"]
        indices, values = point["sparse"]
        terms: dict[str, Any] = {LEXICAL: qe.SparseVector(indices=indices, values=values)} if indices else {}
        dense = self.dense_point(memory_id, point["dense"], payload) if point["dense"] else None
        return Prepared(memory_id, payload, qe.Point(memory_id, terms, payload), dense)

    def read(self, ids: Iterable[str], *fields: str) -> dict[str, dict[str, Any]]:
        """Id -> these fields of its payload, for those points that exist."""
        found = self.main.retrieve(list(ids), with_payload=list(fields), with_vector=False)
        return {text(record.id): record.payload or {} for record in found}

    def read_of(self, corpora: Sequence[str], ids: Sequence[str], *fields: str) -> dict[str, dict[str, Any]]:
        """As `read`, of those points that are in one of some corpora.

        The engine leaves the others out before it reads them: by `read`, the answer would take longer if somebody else had one.
        """
        wanted: set[int | UUID | str] = set(ids)
        if not wanted:
            return {}
        chosen = qe.Filter(must=[_in_any(corpora), qe.HasIdCondition(wanted)])
        found, _ = self.main.scroll(qe.ScrollRequest(filter=chosen, limit=len(wanted), with_payload=list(fields)))
        return {text(record.id): record.payload or {} for record in found}

    def write(self, points: Sequence[Prepared]) -> None:
        """Adds points, or replaces what there is of them; those that are refused are left out."""
        if self._refused:
            points = [point for point in points if point.payload["s"] not in self._refused]
        dense = [point.dense for point in points if point.dense is not None]
        if dense and self.shards.dense is not None:
            self.shards.write(self.shards.dense, qe.UpdateOperation.upsert_points(dense))
        if points:
            self.shards.write(self.main, qe.UpdateOperation.upsert_points([point.main for point in points]))

    def dense_point(self, memory_id: str, vectors: Mapping[str, bytes], payload: Mapping[str, Any]) -> qe.Point:
        """What the dense shard keeps of a point.

        Raises:
            InvalidRequestError: A vector is none of the models in use.
        """
        named: dict[str, Any] = {name: self._vector(name, raw) for name, raw in vectors.items()}
        return qe.Point(memory_id, named, {field: payload[field] for field in DENSE_FIELDS if field in payload})

    def legs(
        self,
        corpus: str,
        chosen: qe.Filter,
        lexical: Sequence[tuple[str, list[int], list[float]]],
        dense: Mapping[str, bytes],
        limit: int,
    ) -> list[tuple[str, Sequence[qe.ScoredPoint]]]:
        """What each leg of a question finds, best first.

        Args:
            corpus: What IDF is counted over.
            chosen: Which points count.
            lexical: Names, terms and their weights; a leg without terms is left out.
            dense: Names and vectors.
            limit: Hits per leg.
        """
        if limit < 1:
            return []
        idf = qe.SearchParams(idf=qe.IdfParams(corpus=matching({"s": corpus})))
        words = [leg for leg in lexical if leg[1]]
        requests = [
            qe.QueryRequest(
                limit=limit,
                query=qe.Query.Nearest(qe.SparseVector(indices=indices, values=values), using=LEXICAL),
                filter=chosen,
                params=idf,
            )
            for _, indices, values in words
        ]
        legs: list[tuple[str, Sequence[qe.ScoredPoint]]] = []
        if requests:
            found = self.main.query_batch(qe.QueryBatchRequest(requests))
            legs += zip((name for name, _, _ in words), found, strict=True)
        for name, raw in dense.items():
            vector = qe.Query.Nearest(self._vector(name, raw), using=name)
            if self.shards.dense is not None:
                legs.append((name, self.shards.dense.query(qe.QueryRequest(limit=limit, query=vector, filter=chosen))))
        return legs

    def _vector(self, name: str, raw: bytes) -> list[float]:
        if len(raw) != self.shards.sizes.get(name, -1) * 4:
            raise InvalidRequestError(f"no vector {name!r} of {len(raw) // 4} dimensions is configured")
        vector = array.array("f")
        vector.frombytes(raw)
        return vector.tolist()


def present(shard: qe.EdgeShard, ids: Iterable[str]) -> set[str]:
    """Those of some ids that a shard has."""
    found = shard.retrieve(list(ids), with_payload=False, with_vector=False)
    return {text(record.id) for record in found}


def matching(chosen: Mapping[str, Any]) -> qe.Filter:
    """A filter of what `points.chosen` makes.

    Args:
        chosen: `s`, `n`, `y`: equal. `any`, `all`: of these tags. `src`: any of these sources. `began`: since then or
            earlier. `at`: still believed then. `cr`: made at this very time.
    """
    must: list[Any] = [
        qe.FieldCondition(field, match=qe.MatchValue(chosen[field])) for field in ("s", "n", "y") if field in chosen
    ]
    must += [qe.FieldCondition("g", match=qe.MatchValue(tag)) for tag in chosen.get("all", ())]
    if "any" in chosen:
        must.append(qe.FieldCondition("g", match=qe.MatchAny(chosen["any"])))
    if "src" in chosen:
        must.append(qe.FieldCondition("src", match=qe.MatchAny(chosen["src"])))
    if "began" in chosen:
        must.append(qe.FieldCondition("ts", range=qe.RangeFloat(lte=chosen["began"])))
    if "cr" in chosen:
        must.append(qe.FieldCondition("cr", range=qe.RangeFloat(gte=chosen["cr"], lte=chosen["cr"])))
    if "at" not in chosen:
        return qe.Filter(must=must)
    return qe.Filter(must=must, must_not=[qe.FieldCondition("te", range=qe.RangeFloat(lte=chosen["at"]))])


def any_of(corpora: Sequence[str]) -> qe.Filter:
    """A filter of all that is in one of some corpora."""
    return qe.Filter(must=[_in_any(corpora)])


def _in_any(corpora: Sequence[str]) -> qe.FieldCondition:
    return qe.FieldCondition("s", match=qe.MatchAny(list(corpora)))


def behind(memory_id: str) -> str | None:
    """The first id behind one, to scroll on from; None for the beginning."""
    return text(UUID(memory_id).int + 1) if memory_id else None
