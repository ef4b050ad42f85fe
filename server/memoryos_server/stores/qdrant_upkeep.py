"""What keeps a Qdrant server's collections in step with the models: what they lack, and how they get it.

Several servers may do this at once, and beside writes: what is brought says which version it was made from, and is
looked at again once it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qdrant_client import grpc as q

from memoryos_server.domain.ports import Subject
from memoryos_server.stores import qdrant_forms as forms
from memoryos_server.stores.breaker import Breaker, probing
from memoryos_server.stores.points import dense, names, sparse
from memoryos_server.stores.qdrant_link import Place, QdrantLink
from memoryos_server.stores.qdrant_points import QdrantPoints, grouped
from memoryos_server.stores.qdrant_schema import Schema
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import Sealers
from memoryos_server.stores.traffic import Stored, stored
from memoryos_server.stores.upkeep import DEADLINE_SECONDS, Upkeep

INCARNATION = 1
"""What every write and flush gives. A server answers a write once it is in its log, from which it reads after a crash:
no restart of it takes a write that was acknowledged, so there is nothing to tell apart and nothing to repeat."""

_WALK = 2_000


class QdrantUpkeep(Upkeep):
    """The connection to a Qdrant server, and its upkeep. `QdrantVectors` is what else one asks of it.

    Args:
        place: Where the server is.
        sealers: Where sealers come from.
        sizes: Dense vector name -> dimension.
        fingerprint: What the models are: vectors that others made are kept, but not searched.
        prefix: What the names of collections begin with.
        deadline: Per call, seconds.
        analysis: The version of the analysis that makes the terms of what is written.
    """

    def __init__(
        self,
        place: Place,
        sealers: Sealers,
        sizes: Mapping[str, int],
        *,
        fingerprint: str = "",
        prefix: str = "memoryos",
        deadline: float = DEADLINE_SECONDS,
        analysis: int = 1,
    ) -> None:
        super().__init__(sealers, analysis)
        self._link = QdrantLink(place, deadline=deadline)
        self._schema = Schema(prefix, sizes, fingerprint)
        self._points = QdrantPoints(self._link, self._schema)

    async def close(self) -> None:
        """Closes the connection."""
        await self._link.close()

    @property
    def breaker(self) -> Breaker:
        """Has calls fail at once while the server does not answer."""
        return self._link.breaker

    def on_reconnect(self, follower: Callable[[], None]) -> None:
        """Has `follower` called whenever the server answers again after it did not."""
        self._link.regained = follower

    async def look(self) -> None:
        """Makes the collections, or sees that they are what they should be.

        Raises:
            SchemaDiffers: They are not, or the server is too old.
            BackendDown: The server does not answer.
        """
        await self._points.look()

    async def ping(self) -> None:
        """Returns if the server answers and has the collections.

        Raises:
            BackendDown: It does not.
        """
        request = q.GetCollectionInfoRequest(collection_name=self._schema.main)
        with probing():
            await self._points.call(self._link.collections.Get, request)

    async def flush(self) -> int:
        """Returns at once: what was written is durable since the write returned."""
        return INCARNATION

    async def coverage(self) -> tuple[int, int]:
        """How many episodes and records there are, and how many of them the models in use have embedded."""
        total, embedded = await asyncio.gather(
            self._points.count(), self._points.count(collection=self._schema.dense) if self._schema.dense else _none()
        )
        return total, embedded

    async def old_dense(self) -> int:
        """The number of sets of vectors that are kept of models not in use."""
        return len(await self._old())

    async def drop_old_dense(self) -> int:
        """Deletes the vectors of models that are not in use; gives the number of such sets."""
        old = await self._old()
        for name in old:
            await self._points.call(self._link.collections.Delete, q.DeleteCollection(collection_name=name))
        return len(old)

    async def unembedded(self, after_id: str, limit: int) -> list[Stored]:
        """At most `limit` points that the models in use have not embedded, in the order of ids from behind `after_id`.

        None at the end, and where there is no model.
        """
        if self._schema.dense is None:
            return []
        lacking: list[str] = []
        after = forms.behind(after_id)
        while len(lacking) < limit:
            found = await self._points.scroll(None, _WALK, after=after)
            ids = [one.id.uuid for one in found.result]
            there = await self._points.read(ids, collection=self._schema.dense)
            lacking += [memory_id for memory_id in ids if memory_id not in there]
            after = found.next_page_offset.uuid
            if not after:
                break
        rows = await self._points.read(lacking[:limit], "s", "t", "v")
        return [_stored(memory_id, rows[memory_id]) for memory_id in lacking[:limit] if memory_id in rows]

    async def stale(self, analysis: int, after_id: str, limit: int) -> list[Stored]:
        """At most `limit` points with terms of another analysis, in the order of ids from behind `after_id`."""
        other = forms.all_of(but_not=[forms.equal("a", analysis)])
        found = await self._points.scroll(other, limit, "s", "t", "v", after=forms.behind(after_id))
        return [
            _stored(one.id.uuid, {field: forms.plain(value) for field, value in one.payload.items()})
            for one in found.result
        ]

    async def add_dense(
        self,
        subject: Subject,
        vectors: Iterable[tuple[str, Mapping[str, Sequence[float]]]],
        versions: Mapping[str, int] | None = None,
    ) -> int:
        """Adds vectors to those of the subject's points that exist, and counts them as embedded even without any.

        Args:
            subject: Whose.
            vectors: Memory id -> vector name -> vector; those it has are replaced.
            versions: Memory id -> the version they were made from: one that was replaced meanwhile gets none.

        Returns:
            The incarnation.
        """
        given, known = dict(vectors), versions or {}
        corpora = Scope(subject, await self._sealers.sealer(subject)).corpora
        there = await self._points.read(given, *forms.DENSE_FIELDS)
        made, of = [], {}
        for memory_id, fields in there.items():
            version = fields.get("v", 0)
            if fields["s"] in corpora and known.get(memory_id, version) == version:
                packed = {name: dense(vector) for name, vector in given[memory_id].items()}
                for name, raw in packed.items():
                    self._points.check(name, raw)
                made.append(forms.dense_point(memory_id, packed, fields))
                of[memory_id] = version
        if not made or self._schema.dense is None:
            return INCARNATION
        # Never over the vectors of a higher version, which may have come since it was read.
        older = forms.either(_at_most(ids, version) for version, ids in grouped(of).items())
        await self._points.upsert(self._schema.dense, made, update_filter=older)
        # What was removed or replaced since it was read must not keep them.
        now = await self._points.read(of, "v")
        outdated = {
            memory_id: version
            for memory_id, version in of.items()
            if memory_id not in now or now[memory_id].get("v", 0) != version
        }
        if outdated:
            wrong = forms.either(_at_most(ids, version) for version, ids in grouped(outdated).items())
            await self._points.delete(self._schema.dense, wrong)
        return INCARNATION

    async def replace_terms(
        self,
        subject: Subject,
        changes: Iterable[tuple[str, Mapping[str, float], Sequence[str], Sequence[float]]],
    ) -> int:
        """Gives those of the subject's points that another analysis has seen new terms, names and hints.

        Args:
            subject: Whose.
            changes: Memory id, terms, names, hints; of records the last two do not count.

        Returns:
            The incarnation.
        """
        sealer = await self._sealers.sealer(subject)
        corpora, given = Scope(subject, sealer).corpora, {change[0]: change for change in changes}
        there = await self._points.read(given, "s", "a", "q", "ts", "n")
        vectors, operations = [], []
        for memory_id, old in there.items():
            if old["s"] not in corpora or old["a"] == self._analysis:
                continue
            _, terms, words, hints = given[memory_id]
            vectors.append(q.PointVectors(id=q.PointId(uuid=memory_id), vectors=forms.terms(*sparse(terms, sealer))))
            payload: dict[str, Any] = {"a": self._analysis}
            if "q" in old:
                payload |= {"p": names(words, sealer), "f": list(hints)}
                payload[forms.ROW] = forms.row(old | payload)
            # By a filter, so that what was written anew meanwhile stays as it is.
            other = forms.all_of(forms.is_one_of([memory_id]), but_not=[forms.equal("a", self._analysis)])
            setting = q.PointsUpdateOperation.SetPayload(
                payload=forms.payload(payload), points_selector=q.PointsSelector(filter=other)
            )
            operations.append(q.PointsUpdateOperation(set_payload=setting))
        if vectors:
            main = self._schema.main
            other = forms.all_of(but_not=[forms.equal("a", self._analysis)])
            await self._points.done(
                self._link.points.UpdateVectors,
                q.UpdatePointVectors(collection_name=main, wait=True, points=vectors, update_filter=other),
            )
            await self._points.done(
                self._link.points.UpdateBatch,
                q.UpdateBatchPoints(collection_name=main, wait=True, operations=operations),
            )
        return INCARNATION

    async def _old(self) -> list[str]:
        return [name for name in await self._points.denses() if name != self._schema.dense]


async def _none() -> int:
    return 0


def _stored(memory_id: str, fields: Mapping[str, Any]) -> Stored:
    return stored(memory_id, fields["s"], fields.get("v", 0), fields["t"])


def _at_most(ids: Sequence[str], version: int) -> Any:
    """A filter of points of some ids that are of no higher version; an episode has none."""
    return forms.all_of(forms.is_one_of(ids), but_not=[forms.within("v", gt=version)])
