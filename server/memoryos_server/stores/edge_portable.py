"""What the vector process can be asked for by a backup and a move: every point as it stands, out and in.

A shard is named as its directory: `main` has payloads and terms, `dense-<hash>` the vectors of one set of models. Points go
in the order of ids, so that a walk can be taken up behind any of them.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import text
from memoryos_server.stores.edge_points import InvalidRequestError, Points, behind
from memoryos_server.stores.frames import LEXICAL

_ANSWER_BYTES = 4 * 1024 * 1024
_AT_ONCE = 32


class Portable:
    """The operations of backups and moves.

    Args:
        points: Where everything lies.
        changed: Called once points came in.
    """

    def __init__(self, points: Points, changed: Callable[[], None]) -> None:
        """Keeps where everything lies."""
        self._shards = points.shards
        self._changed = changed
        self.operations: Mapping[str, Callable[..., Any]] = {
            "shards": self.shards,
            "dump": self.dump,
            "load": self.load,
        }

    def shards(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Name of a shard -> its number of points, and the names and dimensions of its dense vectors."""
        counted = qe.CountRequest(exact=True)
        return {name: (shard.count(counted), sizes) for name, (shard, sizes) in self._shards.named().items()}

    def dump(self, name: str, after: str, limit: int) -> tuple[list[Any], str]:
        """Points in the order of ids from behind one, and the id to go on behind, "" at the end.

        A point is its id, its payload, its terms and their weights, and its dense vectors as float32 bytes. A shard
        that is no more has none.
        """
        if name not in (found := self._shards.named()):
            return [], ""
        shard = found[name][0]
        request = qe.ScrollRequest(offset=behind(after), limit=limit, with_payload=False, with_vector=False)
        records, more = shard.scroll(request)
        ids = [text(record.id) for record in records]
        rows: list[Any] = []
        size = 0
        for start in range(0, len(ids), _AT_ONCE):
            piece: list[Any] = ids[start : start + _AT_ONCE]
            there = {text(one.id): one for one in shard.retrieve(piece, with_payload=True, with_vector=True)}
            for memory_id in piece:
                rows.append(row := _row(memory_id, there[memory_id]))
                size += len(row[1].get("t", "")) + len(row[1].get("h", "")) + 14 * len(row[2])
                size += sum(map(len, row[4].values()))
            if size >= _ANSWER_BYTES and start + _AT_ONCE < len(ids):
                return rows, piece[-1]
        return rows, ids[-1] if more is not None else ""

    def load(self, name: str, sizes: Mapping[str, int], rows: Sequence[Sequence[Any]]) -> int:
        """Writes points as `dump` gave them over what is there of them; makes the shard if need be. Gives their number.

        Raises:
            InvalidRequestError: No shard has such a name, or it has other vectors.
        """
        try:
            shard = self._shards.made(name, sizes)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from None
        made = []
        for memory_id, payload, indices, values, dense in rows:
            vectors: dict[str, Any] = {LEXICAL: qe.SparseVector(indices=indices, values=values)} if indices else {}
            for vector, raw in dense.items():
                numbers = array.array("f")
                numbers.frombytes(raw)
                vectors[vector] = numbers.tolist()
            made.append(qe.Point(memory_id, vectors, payload))
        if made:
            self._shards.write(shard, qe.UpdateOperation.upsert_points(made))
            self._changed()
        return len(made)


def _row(memory_id: str, record: qe.Record) -> list[Any]:
    indices: list[int] = []
    values: list[float] = []
    dense: dict[str, bytes] = {}
    vectors: Any = record.vector or {}
    for name, vector in sorted(vectors.items()):
        if name == LEXICAL:
            pairs = sorted(zip(vector.indices, vector.values, strict=True))
            indices, values = [index for index, _ in pairs], [value for _, value in pairs]
        else:
            dense[name] = array.array("f", vector).tobytes()
    return [memory_id, record.payload or {}, indices, values, dense]
