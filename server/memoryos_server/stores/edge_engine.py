"""What the vector process can be asked for.

It knows no user, no key and no plain text: subjects are ids, terms are numbers, texts are ciphertext. One request is
done at a time, so a request is seen by others as done wholly or not at all.
"""

from __future__ import annotations

import array
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import numbers_of, text
from memoryos_server.stores.edge_points import Points, Prepared, any_of, matching, present
from memoryos_server.stores.edge_portable import Portable
from memoryos_server.stores.edge_records import Records
from memoryos_server.stores.edge_rows import EMPTY, pack_row
from memoryos_server.stores.edge_shards import Shards
from memoryos_server.stores.edge_vacuum import Vacuum
from memoryos_server.stores.edge_walks import Walks

_ROW_FIELDS = ("q", "ts", "n", "f", "p")
# Some 200 bytes each. A process that answers for many at once reads those of the rest from the files, 4 us a piece.
_ROWS_KEPT = 200_000

Leg = tuple[str, list[int], list[float]]
"""A leg's name, the numbers of the ids that it found, best first, and their scores."""


class Engine:
    """The operations that requests name, over the shards of one directory.

    Attributes:
        points: What is in the shards.
        records: The operations on records.
        operations: Name -> operation.
    """

    def __init__(self, shards: Shards) -> None:
        """Keeps the shards."""
        self.points = Points(shards)
        self.records = Records(self.points)
        # Number of an id -> what a search gives of its payload: reading payloads would cost more than the search.
        self._rows: dict[int, bytes] = {}
        self.operations: Mapping[str, Callable[..., Any]] = {
            "ping": self.ping,
            "insert": self.insert,
            "search": self.search,
            "near": self.near,
            "get": self.get,
            "said": self.said,
            "remove": self.remove,
            "owner": self.owner,
            "flush": self.flush,
            "count": self.count,
            "delete_subject": self.delete_subject,
            "erase": self.erase,
            "left": self.left,
            **self.records.operations,
            **Walks(self.points, self._forget_row).operations,
            **Vacuum(shards).operations,
            **Portable(self.points, self._rows.clear).operations,
        }

    def close(self) -> None:
        """Flushes and lets go of the files."""
        self.points.shards.close()

    def ping(self) -> dict[str, Any]:
        """Which process this is."""
        return {"pid": os.getpid(), "incarnation": self.points.incarnation}

    def insert(self, points: Sequence[Mapping[str, Any]]) -> int:
        """Adds points that are not there; gives the incarnation. Of equal ids in a request the first counts."""
        made: dict[str, Prepared] = {}
        for point in points:
            prepared = self.points.prepare(point)
            made.setdefault(prepared.id, prepared)
        there = present(self.points.main, made)
        self.points.write([point for memory_id, point in made.items() if memory_id not in there])
        return self.points.incarnation

    def legs(
        self,
        corpus: str,
        lexical: Sequence[tuple[str, list[int], list[float]]],
        dense: Mapping[str, bytes],
        limit: int,
        until: float | None,
    ) -> list[Leg]:
        """The best `limit` of each leg among a corpus. IDF is counted over the corpus, whatever `until` says."""
        chosen = matching({"s": corpus} if until is None else {"s": corpus, "began": until})
        legs = self.points.legs(corpus, chosen, lexical, dense, limit)
        return [(name, numbers_of(hits), [hit.score for hit in hits]) for name, hits in legs]

    def search(
        self,
        before: Sequence[Leg],
        corpus: str,
        lexical: Sequence[tuple[str, list[int], list[float]]],
        dense: Mapping[str, bytes],
        limit: int,
        until: float | None,
        parts: Collection[str] = (),
    ) -> list[Any]:
        """The best of each leg, with those that were looked up before: rows, and for each leg its name, places and scores.

        Of the legs named in `parts` only those hits count that another leg has, too.
        """
        legs = [*before, *self.legs(corpus, lexical, dense, limit, until)]
        places: dict[int, int] = {}
        answer: list[tuple[str, bytes, bytes]] = []
        for name, numbers, scores in sorted(legs, key=lambda leg: leg[0] in parts):
            if name in parts:
                both = [
                    (places[number], score) for number, score in zip(numbers, scores, strict=True) if number in places
                ]
                at, scores = [place for place, _ in both], [score for _, score in both]
            else:
                at = [places.setdefault(number, len(places)) for number in numbers]
            answer.append((name, array.array("I", at).tobytes(), array.array("f", scores).tobytes()))
        return [self._rows_of(places), answer]

    def near(self, corpus: str, dense: Mapping[str, bytes], limit: int) -> list[tuple[str, float]]:
        """The points of a corpus closest to a vector, best first, with the best of their cosines."""
        best: dict[str, float] = {}
        for _, hits in self.points.legs(corpus, matching({"s": corpus}), [], dense, limit):
            for hit in hits:
                memory_id = text(hit.id)
                best[memory_id] = max(hit.score, best.get(memory_id, -1.0))
        # After a crash a vector may be there before its point is again.
        there = present(self.points.main, best)
        order = sorted(((score, memory_id) for memory_id, score in best.items() if memory_id in there), reverse=True)
        return [(memory_id, score) for score, memory_id in order[:limit]]

    def get(self, corpus: str, ids: Sequence[str]) -> dict[str, str]:
        """Id -> text of those points that are in a corpus."""
        return {memory_id: payload["t"] for memory_id, payload in self.points.read_of([corpus], ids, "t").items()}

    def said(self, corpus: str, session: str | None, after: int, limit: int) -> list[tuple[str, str]]:
        """Id and text of a session's points (None: of all) in the order of `q`, those above `after`."""
        request = qe.ScrollRequest(
            filter=matching({"s": corpus} if session is None else {"s": corpus, "n": session}),
            limit=limit,
            order_by=qe.OrderBy("q", qe.Direction.Asc, start_from=after + 1),
            with_payload=["t"],
        )
        return [(text(record.id), (record.payload or {})["t"]) for record in self.points.main.scroll(request)[0]]

    def remove(self, corpora: Sequence[str], ids: Sequence[str]) -> int:
        """Removes those points that are in one of the corpora; gives the incarnation."""
        gone = list(self.points.read_of(corpora, ids))
        self.points.shards.remove(gone)
        for memory_id in gone:
            self._forget_row(memory_id)
        return self.points.incarnation

    def owner(self, memory_id: str) -> str | None:
        """The corpus a point belongs to, or None."""
        found = self.points.read([memory_id], "s")
        return str(found[memory_id]["s"]) if found else None

    def flush(self) -> int:
        """Makes all writes durable; gives the incarnation whose writes they are."""
        self.points.shards.flush()
        return self.points.incarnation

    def count(self, corpora: Sequence[str] | None) -> int:
        """The number of points, of some corpora or of all."""
        chosen = None if corpora is None else any_of(corpora)
        return self.points.main.count(qe.CountRequest(exact=True, filter=chosen))

    def delete_subject(self, corpora: Sequence[str]) -> None:
        """Removes the points of corpora from every answer; the bytes stay in the files until a vacuum."""
        self.points.shards.remove_matching(any_of(corpora))
        self._rows.clear()

    def erase(self, corpus: str) -> int:
        """Removes a corpus for good: nothing of it is taken any more. Gives how many points it had."""
        removed = self.left(corpus)
        self.points.refuse(corpus)
        self.delete_subject([corpus])
        return removed

    def left(self, corpus: str) -> int:
        """The number of points of a corpus, in the shard that has most of them."""
        request = qe.CountRequest(exact=True, filter=any_of([corpus]))
        return max(shard.count(request) for shard, _ in self.points.shards.named().values())

    def _forget_row(self, memory_id: str) -> None:
        self._rows.pop(UUID(memory_id).int, None)

    def _rows_of(self, numbers: Collection[int]) -> bytes:
        """What a search gives of payloads; `EMPTY` where there is no point: a crash took it, and replay brings it."""
        kept = self._rows
        missing = [number for number in numbers if number not in kept]
        read: dict[int, bytes] = {}
        if missing:
            found = self.points.read(map(text, missing), *_ROW_FIELDS)
            read = {UUID(memory_id).int: pack_row(memory_id, payload) for memory_id, payload in found.items()}
        rows = [kept.get(number) or read.get(number, EMPTY) for number in numbers]
        if len(kept) + len(read) > _ROWS_KEPT:
            # The oldest half: what is asked for again comes back by itself.
            for number in list(kept)[: _ROWS_KEPT // 2]:
                del kept[number]
        kept.update(read)
        return b"".join(rows)
