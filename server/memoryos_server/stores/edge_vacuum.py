"""How a shard's files come to hold nothing of what was removed: everything that lives is copied into a fresh shard.

The engine's own way stands still for as long as it takes, which at a hundred thousand points is seconds. Copying is done in
steps of some milliseconds instead, one a request, between which others are answered; what they write meanwhile goes into
both shards.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import qdrant_edge as qe

from memoryos_server.stores.edge_ids import text
from memoryos_server.stores.edge_points import behind
from memoryos_server.stores.edge_shards import Shards

_STEP = 32
_FLUSH_STEPS = 50  # so that the last flush is no longer than the others


class Vacuum:
    """The operation of a vacuum.

    Args:
        shards: All shards.
    """

    def __init__(self, shards: Shards) -> None:
        """Keeps the shards."""
        self._shards = shards
        self._name = ""
        self._making: Generator[None, None, Path] | None = None
        self._pair: tuple[qe.EdgeShard, qe.EdgeShard] | None = None
        self._after = ""
        self._steps = 0
        self._finish: list[Callable[[], None]] = []
        self._leaving = False
        self.operations: Mapping[str, Callable[..., Any]] = {"vacuum": self.step}

    def step(self, name: str, first: bool) -> bool:
        """Goes on rewriting a shard, with `first` from its beginning; whether there is more to do.

        Raises:
            LookupError: There is no such shard, or it is not being rewritten: another process began, or another call.
            OSError: The old files could not be deleted.
        """
        if first:
            self._begin(name)
        if name != self._name or (self._pair is None and self._making is None and not self._leaving):
            raise LookupError("the shard is not being rewritten")
        if self._leaving:
            self._leaving = not self._shards.is_gone()
            return self._leaving
        if self._pair is not None and not self._shards.is_rewriting(self._pair[1]):
            self._begin(name)  # a write that cannot be repeated came between
        if self._making is not None:
            self._make(self._making)
        elif self._finish:
            self._finish.pop(0)()
            if not self._finish:
                self._pair, self._leaving = None, True
        elif self._pair is not None:
            self._copy(*self._pair)
        return True

    def _begin(self, name: str) -> None:
        if self._making is not None:
            self._making.close()
        self._name, self._after, self._steps, self._finish, self._pair = name, "", 0, [], None
        self._leaving = False
        self._making = self._shards.making(name)

    def _make(self, making: Generator[None, None, Path]) -> None:
        try:
            next(making)
        except StopIteration as made:
            self._making = None
            self._pair = self._shards.rewrite(self._name, made.value)

    def _copy(self, old: qe.EdgeShard, fresh: qe.EdgeShard) -> None:
        request = qe.ScrollRequest(offset=behind(self._after), limit=_STEP, with_payload=True, with_vector=True)
        records, more = old.scroll(request)
        points = [qe.Point(text(one.id), one.vector or {}, one.payload or {}) for one in records]
        if points:
            fresh.update(qe.UpdateOperation.upsert_points(points))
            self._after = text(records[-1].id)
        self._steps += 1
        if more is None:
            # Each by itself: one step must not take as long as all of them.
            self._finish = [fresh.flush, self._shards.flush, lambda: self._end(old, fresh)]
        elif self._steps % _FLUSH_STEPS == 0:
            fresh.flush()

    def _end(self, old: qe.EdgeShard, fresh: qe.EdgeShard) -> None:
        counted = qe.CountRequest(exact=True)
        if old.count(counted) != fresh.count(counted):
            self._shards.abandon()
            raise LookupError("a rewritten shard has not all points; it is rewritten again")
        fresh.flush()  # what came since it was flushed
        self._shards.replace()
