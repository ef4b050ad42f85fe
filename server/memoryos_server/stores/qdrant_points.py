"""Points in the collections of a Qdrant server: how they are read, written and found, for every operation on them.

Every write waits until it is applied, so that reads see it. A point's vectors are written before the point itself, and
removed after it: what has vectors and no point is given by no answer, and `added` clears it away.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import grpc as q

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.stores import qdrant_forms as forms
from memoryos_server.stores.qdrant_link import NoCollection, QdrantLink, QdrantRefused
from memoryos_server.stores.qdrant_schema import Schema, SchemaDiffers

_log = logging.getLogger(__name__)

Leg = tuple[str, list[tuple[str, float]]]
"""The name of a leg, and the ids and scores it found, best first."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question.

    Attributes:
        chosen: Which points count, as `points.chosen` makes it; `s` is what the rarity of words is counted over.
        lexical: Names, terms and their weights; a leg without terms is left out.
        dense: Names and vectors.
        limit: Hits per leg.
    """

    chosen: Mapping[str, Any]
    lexical: Sequence[tuple[str, list[int], list[float]]]
    dense: Mapping[str, bytes]
    limit: int


class QdrantPoints:
    """The points.

    Args:
        link: To the server.
        schema: The collections.
    """

    def __init__(self, link: QdrantLink, schema: Schema) -> None:
        self.link = link
        self.schema = schema
        self._say = Sparing(_log)
        self._looked = False
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Sees to it, before anything else, that the collections are there and what they should be.

        Raises:
            SchemaDiffers: They are not.
            BackendDown: The server does not answer.
        """
        if not self._looked:
            # All who wait share one look: one after another they would wait for a server that hangs once each.
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(_heard)
            await asyncio.shield(self._looking)

    async def _look(self) -> None:
        await self.schema.ensure(self.link)
        self._looked = True

    async def call(self, method: Any, request: Any, *, deadline: float | None = None) -> Any:
        """As `QdrantLink.call`, on collections that were looked at."""
        await self._usable()
        try:
            return await self.link.call(method, request, deadline=deadline)
        except NoCollection:
            self._looked = False  # it is made again with the next call
            raise

    async def _usable(self) -> None:
        """As `look`, for a call: whoever asked is told that the store is down, and the log why.

        Raises:
            BackendDown: The server does not answer, or the collections are not what they should be.
        """
        try:
            await self.look()
        except SchemaDiffers as error:
            self._say.error("the vector store cannot be used: %s", error)
            raise BackendDown("The vector store cannot be used as it is; the server's log says why") from error

    async def read(self, ids: Iterable[str], *fields: str, collection: str = "") -> dict[str, dict[str, Any]]:
        """Id -> these fields of its payload, for those points that exist."""
        wanted = forms.point_ids(ids)
        if not wanted:
            return {}
        request = q.GetPoints(
            collection_name=collection or self.schema.main, ids=wanted, with_payload=forms.including(fields)
        )
        found = (await self.call(self.link.points.Get, request)).result
        return {one.id.uuid: {field: forms.plain(value) for field, value in one.payload.items()} for one in found}

    async def read_of(self, corpora: Sequence[str], ids: Sequence[str], *fields: str) -> dict[str, dict[str, Any]]:
        """As `read`, of those points that are in one of some corpora.

        The server leaves the others out before it reads them: by `read`, the answer would take longer if somebody else had one.
        """
        chosen = forms.all_of(forms.any_of("s", corpora), forms.is_one_of(ids))
        found = (await self.scroll(chosen, len(ids), *fields)).result if ids else []
        return {one.id.uuid: {field: forms.plain(value) for field, value in one.payload.items()} for one in found}

    async def scroll(self, chosen: Any, limit: int, *fields: str, after: str = "", order: Any = None) -> Any:
        """Points of a filter: what the server answers. In the order of ids from one on, or in another order."""
        request = q.ScrollPoints(
            collection_name=self.schema.main,
            filter=chosen,
            limit=limit,
            with_payload=forms.including(fields),
            offset=q.PointId(uuid=after) if after else None,
            order_by=order,
        )
        return await self.call(self.link.points.Scroll, request)

    async def count(self, chosen: Any = None, *, collection: str = "") -> int:
        """The number of points, of a filter or of all."""
        request = q.CountPoints(collection_name=collection or self.schema.main, filter=chosen, exact=True)
        return int((await self.call(self.link.points.Count, request)).result.count)

    async def legs(self, asked: Sequence[Asked]) -> list[list[Leg]]:
        """What the legs of each question find. One round trip."""
        words, meanings = [], []
        places: list[tuple[int, str, bool]] = []
        for place, one in enumerate(asked):
            if one.limit < 1:
                continue
            chosen = forms.matching(one.chosen)
            for name, indices, values in one.lexical:
                if indices:
                    words.append(
                        forms.words_query(self.schema.main, one.chosen["s"], chosen, indices, values, one.limit)
                    )
                    places.append((place, name, True))
            for name, raw in one.dense.items():
                self.check(name, raw)
                if self.schema.dense is not None:
                    meanings.append(forms.dense_query(self.schema.dense, chosen, name, raw, one.limit))
                    places.append((place, name, False))
        by_words, by_meaning = await asyncio.gather(
            self._batch(self.schema.main, words), self._batch(self.schema.dense or "", meanings)
        )
        answer: list[list[Leg]] = [[] for _ in asked]
        of_words, of_meaning = iter(by_words), iter(by_meaning)
        for place, name, lexical in places:
            hits = next(of_words if lexical else of_meaning).result
            answer[place].append((name, [(hit.id.uuid, hit.score) for hit in hits]))
        return answer

    async def _batch(self, collection: str, queries: Sequence[Any]) -> Any:
        if not queries:
            return ()
        request = q.QueryBatchPoints(collection_name=collection, query_points=queries)
        return (await self.call(self.link.points.QueryBatch, request)).result

    def check(self, name: str, raw: bytes) -> None:
        """Looks whether a vector is one of the models in use.

        Raises:
            QdrantRefused: It is none.
        """
        if len(raw) != self.schema.sizes.get(name, -1) * 4:
            raise QdrantRefused(f"no vector {name!r} of {len(raw) // 4} dimensions is configured")

    async def upsert(self, collection: str, points: Sequence[Any], **how: Any) -> None:
        """Adds or replaces points; `how` are further fields of the request."""
        if points:
            await self.done(
                self.link.points.Upsert, q.UpsertPoints(collection_name=collection, wait=True, points=points, **how)
            )

    async def delete(self, collection: str, chosen: Any) -> None:
        """Removes the points of a filter from a collection."""
        selected = q.PointsSelector(filter=chosen)
        await self.done(self.link.points.Delete, q.DeletePoints(collection_name=collection, wait=True, points=selected))

    async def delete_vectors(self, chosen: Any) -> None:
        """Removes what every collection of vectors has of a filter's points, those of models not in use, too."""
        await self._delete_from(chosen, await self.denses())

    async def _delete_from(self, chosen: Any, collections: Iterable[str]) -> None:
        """Removes the points of a filter from collections, some of which may be dropped meanwhile."""
        done = await asyncio.gather(*(self.delete(name, chosen) for name in collections), return_exceptions=True)
        for failed in done:
            if isinstance(failed, BaseException) and not isinstance(failed, NoCollection):
                raise failed

    async def denses(self) -> list[str]:
        """Every collection of vectors. Asked each time: another replica may have made one for another model."""
        await self._usable()
        return await self.schema.denses(self.link)

    async def done(self, method: Any, request: Any) -> None:
        """A write, applied.

        Raises:
            BackendDown: It is not, or not yet.
        """
        result = (await self.call(method, request)).result
        for one in result if isinstance(request, q.UpdateBatchPoints) else (result,):
            if one.status != q.UpdateStatus.Completed:
                raise BackendDown("The vector store does not write in time")


def _heard(task: asyncio.Task[None]) -> None:
    """Takes note of a failure that nobody may wait for any more."""
    if not task.cancelled():
        task.exception()


def grouped(versions: Mapping[str, int]) -> Mapping[int, list[str]]:
    """Ids by their versions."""
    groups: dict[int, list[str]] = {}
    for memory_id, version in versions.items():
        groups.setdefault(version, []).append(memory_id)
    return groups
