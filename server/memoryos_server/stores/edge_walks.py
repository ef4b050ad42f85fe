"""What the vector process can be asked for by background work: what lacks vectors or terms, and how it gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import text
from memoryos_server.stores.edge_points import DENSE_FIELDS, Points, behind, present
from memoryos_server.stores.frames import LEXICAL

_WALK = 2_000


class Walks:
    """The operations of background work.

    Args:
        points: Where everything lies.
        changed: Called with the id of an episode whose row is another now.
    """

    def __init__(self, points: Points, changed: Callable[[str], None]) -> None:
        """Keeps where everything lies."""
        self._points = points
        self._changed = changed
        self.operations: Mapping[str, Callable[..., Any]] = {
            "coverage": self.coverage,
            "unembedded": self.unembedded,
            "stale": self.stale,
            "add_dense": self.add_dense,
            "replace_terms": self.replace_terms,
            "drop_old_dense": points.shards.drop_old,
        }

    def coverage(self) -> tuple[int, int, int]:
        """How many points there are, how many of them were embedded, and how many shards of other models."""
        total = self._points.main.count(qe.CountRequest(exact=True))
        dense = self._points.shards.dense
        return total, dense.count(qe.CountRequest(exact=True)) if dense is not None else 0, self._points.shards.old

    def unembedded(self, after: str, limit: int) -> tuple[list[Any], str]:
        """Points that the dense shard lacks, in the order of ids: id, corpus, text, version; and where to go on."""
        dense = self._points.shards.dense
        if dense is None:
            return [], ""
        found, more = self._points.main.scroll(qe.ScrollRequest(offset=behind(after), limit=_WALK, with_payload=False))
        ids = [text(record.id) for record in found]
        there = present(dense, ids)
        lacking = [memory_id for memory_id in ids if memory_id not in there]
        rows = self._texts(lacking[:limit])
        if len(lacking) > limit:
            return rows, lacking[limit - 1]
        return rows, ids[-1] if more is not None else ""

    def stale(self, analysis: int, after: str, limit: int) -> tuple[list[Any], str]:
        """Points whose terms another analysis made, in the order of ids, as `unembedded` gives them."""
        other = qe.Filter(must_not=[qe.FieldCondition("a", match=qe.MatchValue(analysis))])
        found, more = self._points.main.scroll(
            qe.ScrollRequest(offset=behind(after), limit=limit, filter=other, with_payload=False)
        )
        ids = [text(record.id) for record in found]
        return self._texts(ids), ids[-1] if more is not None else ""

    def add_dense(self, corpora: Sequence[str], vectors: Sequence[tuple[str, Mapping[str, bytes], int | None]]) -> int:
        """Adds vectors to points of corpora: id, vectors, and the version they were made from (None: whichever).

        A point without vectors counts as embedded all the same: there was nothing to tell of it.
        """
        there = self._points.read((memory_id for memory_id, _, _ in vectors), *DENSE_FIELDS, "v")
        made = [
            self._points.dense_point(memory_id, dense, payload)
            for memory_id, dense, version in vectors
            if (payload := there.get(memory_id)) and payload["s"] in corpora
            if version is None or payload.get("v", 0) == version
        ]
        if made and self._points.shards.dense is not None:
            self._points.shards.write(self._points.shards.dense, qe.UpdateOperation.upsert_points(made))
        return self._points.incarnation

    def replace_terms(
        self,
        corpora: Sequence[str],
        analysis: int,
        changes: Sequence[tuple[str, list[int], list[float], list[int], list[float]]],
    ) -> int:
        """Gives points of corpora new terms, names and hints: id, terms, weights, names, hints.

        Those that this analysis has seen stay as they are: they were written anew meanwhile.
        """
        there = self._points.read((memory_id for memory_id, *_ in changes), "s", "a", "q")
        for memory_id, indices, values, words, hints in changes:
            old = there.get(memory_id)
            if not old or old["s"] not in corpora or old["a"] == analysis:
                continue
            vector = qe.PointVectors(memory_id, {LEXICAL: qe.SparseVector(indices=indices, values=values)})
            self._points.shards.write(self._points.main, qe.UpdateOperation.update_vectors([vector]))
            payload: dict[str, Any] = {"a": analysis}
            if "q" in old:
                payload |= {"p": words, "f": hints}
            self._points.shards.write(self._points.main, qe.UpdateOperation.set_payload([memory_id], payload))
            self._changed(memory_id)
        return self._points.incarnation

    def _texts(self, ids: Sequence[str]) -> list[Any]:
        found = self._points.read(ids, "s", "t", "v")
        return sorted((memory_id, p["s"], p["t"], p.get("v", 0)) for memory_id, p in found.items())
