"""What the vector process can be asked for about records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import numbers_of, text
from memoryos_server.stores.edge_points import Points, Prepared, behind, matching
from memoryos_server.stores.frames import LEXICAL
from memoryos_server.stores.hits import likeliest
from memoryos_server.stores.points import record_fields

_ANSWER_BYTES = 8 * 1024 * 1024


class TakenError(Exception):
    """An id is already somebody else's, or of another kind."""


class Records:
    """The operations on records."""

    def __init__(self, points: Points) -> None:
        """Keeps where they lie."""
        self._points = points
        self.operations: Mapping[str, Callable[..., Any]] = {
            "find": self.find,
            "records": self.records,
            "page": self.page,
            "scan": self.scan,
        }

    def put(self, points: Iterable[Prepared]) -> int:
        """Adds points or replaces those whose version `v` is not higher, all at once; gives the incarnation.

        Raises:
            TakenError: An id belongs to another corpus. Nothing is written.
        """
        newest: dict[str, Prepared] = {}
        for point in points:
            if point.id not in newest or newest[point.id].payload["v"] < point.payload["v"]:
                newest[point.id] = point
        there = self._points.read(newest, "s", "v")
        written, changed = [], []
        for memory_id, point in newest.items():
            old = there.get(memory_id)
            if old is not None:
                if old["s"] != point.payload["s"]:
                    raise TakenError("an id is already used for something else")
                if old["v"] > point.payload["v"]:
                    continue
                if old["v"] < point.payload["v"]:
                    changed.append(memory_id)
            written.append(point)
        self._points.shards.forget_vectors(changed)
        self._points.write(written)
        return self._points.incarnation

    def find(
        self, queries: Sequence[tuple[Mapping[str, Any], list[int], list[float], Mapping[str, bytes], int, int | None]]
    ) -> Any:
        """For each query the records its legs find: a row and its scores each."""
        answer = []
        for chosen, indices, values, dense, limit, most in queries:
            scores: dict[str, dict[str, float]] = {}
            words = [(LEXICAL, indices, values)]
            for name, hits in self._points.legs(chosen["s"], matching(chosen), words, dense, limit):
                for hit in hits:
                    scores.setdefault(text(hit.id), {})[name] = hit.score
            best = likeliest(scores, most)
            rows = {row[0]: row for row in _rows(self._points.read(list(best), *record_fields(False)), [chosen["s"]])}
            answer.append([(rows[memory_id], found) for memory_id, found in best.items() if memory_id in rows])
        return answer

    def records(self, corpora: Sequence[str], ids: Sequence[str], history: bool) -> list[Any]:
        """The rows of those points that are in one of the corpora."""
        return _rows(self._points.read_of(corpora, ids, *record_fields(history)), corpora)

    def page(self, chosen: Mapping[str, Any], offset: int, limit: int, history: bool) -> tuple[list[Any], int]:
        """Rows from an offset, newest first, of equal times by id; and how many there are in all."""
        wanted = matching(chosen)
        total = self._points.main.count(qe.CountRequest(exact=True, filter=wanted))
        end = min(offset + limit, total)
        if offset >= end:
            return [], total
        order = qe.OrderBy("cr", qe.Direction.Desc)
        head, _ = self._points.main.scroll(
            qe.ScrollRequest(filter=wanted, limit=end, order_by=order, with_payload=False)
        )
        times = (-float(record.order_value or 0.0) for record in head)
        found = set(zip(times, numbers_of(head), strict=True))
        if end < total:
            # The engine breaks ties as it likes: which of the last time's are before the end is for their ids to say.
            last = -max(found)[0]
            ties = matching({**chosen, "cr": last})
            tied, _ = self._points.main.scroll(qe.ScrollRequest(filter=ties, limit=total, with_payload=False))
            found |= {(-last, number) for number in numbers_of(tied)}
        ids = [text(number) for _, number in sorted(found)[offset:end]]
        rows = {row[0]: row for row in _rows(self._points.read(ids, *record_fields(history)), [chosen["s"]])}
        return [rows[memory_id] for memory_id in ids], total

    def scan(self, chosen: Mapping[str, Any], after: str, limit: int, history: bool) -> tuple[list[Any], str]:
        """Rows in the order of ids from behind one, and the id to go on behind, "" at the end."""
        request = qe.ScrollRequest(offset=behind(after), limit=limit, filter=matching(chosen), with_payload=False)
        found, more = self._points.main.scroll(request)
        ids = [text(record.id) for record in found]
        rows: list[Any] = []
        size = 0
        # Few at a time, so that an answer grows little over its bound even if histories are long.
        for start in range(0, len(ids), 16):
            for row in sorted(
                _rows(self._points.read(ids[start : start + 16], *record_fields(history)), [chosen["s"]])
            ):
                rows.append(row)
                size += len(row[2]) + len(row[3] or "")
            if size >= _ANSWER_BYTES and start + 16 < len(ids):
                return rows, ids[start + 15]
        return rows, ids[-1] if more is not None else ""


def _rows(found: Mapping[str, Mapping[str, Any]], corpora: Sequence[str]) -> list[Any]:
    """Rows of those that are records of some corpora: id, kind, text, history or None."""
    rows = []
    for memory_id, payload in found.items():
        _, _, kind = payload["s"].partition("/")
        if kind and payload["s"] in corpora:
            rows.append((memory_id, kind, payload["t"], payload.get("h")))
    return rows
