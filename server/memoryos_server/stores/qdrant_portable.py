"""Every point in the collections of a Qdrant server, out and in, for moves between it and the embedded engine.

A collection is called here as the engine's shard: `main`, or `dense-<hash>`, whose hash is the same on both sides. A
server's collections of vectors also say which version of a record the vectors are of, so that no server writes over
newer ones; the engine, which one process has for itself, needs none. And episodes there have their rows as one text.
Both are added on the way in, and left out on the way back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from qdrant_client import grpc as q

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores import qdrant_forms as forms
from memoryos_server.stores.frames import LEXICAL
from memoryos_server.stores.portable_points import MAIN, Row
from memoryos_server.stores.qdrant_link import Place, QdrantLink, QdrantRefused
from memoryos_server.stores.qdrant_schema import Schema, SchemaDiffers

_DENSE = "dense-"
_AT_ONCE = 128
_BYTES = 4 * 1024 * 1024
_SECONDS = 60.0

_T = TypeVar("_T")


class QdrantPortable:
    """`PortablePoints` on a Qdrant server; an async context manager that closes its connection.

    Args:
        place: Where the server is.
        prefix: What the names of collections begin with.
    """

    def __init__(self, place: Place, *, prefix: str) -> None:
        self._link = QdrantLink(place, deadline=_SECONDS)
        self._schema = Schema(prefix, {}, "")
        self._made: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._link.close()

    async def look(self) -> None:
        """Sees that the server and what it holds under our names can be used. Makes nothing.

        Raises:
            SchemaDiffers: They cannot.
            BackendDown: The server does not answer.
        """
        await self._schema.examine(self._link)

    async def collections(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Name of a collection -> its number of points, and the dimensions of its dense vectors by name."""
        names = await self._call(self._link.collections.List, q.ListCollectionsRequest())
        there = {one.name for one in names.collections}
        found: dict[str, tuple[int, dict[str, int]]] = {}
        if self._schema.main in there:
            found[MAIN] = await self._count(self._schema.main), {}
        for name in sorted(there):
            if name.startswith(self._schema.denses_begin):
                request = q.GetCollectionInfoRequest(collection_name=name)
                info = (await self._call(self._link.collections.Get, request)).result
                vectors = info.config.params.vectors_config.params_map.map
                sizes = {vector: int(params.size) for vector, params in vectors.items()}
                shard = _DENSE + name.removeprefix(self._schema.denses_begin)
                found[shard] = await self._count(name), sizes
        return found

    async def read(self, collection: str, after: str = "") -> AsyncIterator[list[Row]]:
        """Points in pages, in the order of ids, from behind the id `after`."""
        offset = forms.behind(after)
        while True:
            request = q.ScrollPoints(
                collection_name=self._named(collection),
                limit=_AT_ONCE,
                offset=q.PointId(uuid=offset) if offset else None,
                with_payload=q.WithPayloadSelector(enable=True),
                with_vectors=q.WithVectorsSelector(enable=True),
            )
            answer = await self._call(self._link.points.Scroll, request)
            rows = [_row(one, main=collection == MAIN) for one in answer.result]
            if rows:
                yield rows
            offset = answer.next_page_offset.uuid
            if not offset:
                return

    async def write(self, collection: str, sizes: Mapping[str, int], rows: Sequence[Row]) -> None:
        """Writes points over what is there of them; makes the collection if need be."""
        name = self._named(collection)
        if name not in self._made:
            making = (
                self._schema.ensure(self._link)
                if collection == MAIN
                else self._schema.ensure_dense(self._link, name, sizes)
            )
            await _understood(making)
            self._made.add(name)
        for piece in _pieces(rows):
            points = (
                [
                    forms.main_point({"id": memory_id, "payload": payload, "sparse": (indices, values)})
                    for memory_id, payload, indices, values, _ in piece
                ]
                if collection == MAIN
                else await self._dense_points(piece)
            )
            request = q.UpsertPoints(collection_name=name, wait=True, points=points)
            answer = await self._call(self._link.points.Upsert, request)
            if answer.result.status != q.UpdateStatus.Completed:
                raise BackendDown("The vector store does not write in time")

    async def flush(self) -> None:
        """Returns at once: what was written is in the server's log since the write returned."""

    async def _dense_points(self, rows: Sequence[Row]) -> list[Any]:
        """Points of vectors, with the versions that `main`, which is written before, has of them."""
        ids = [row[0] for row in rows if "/" in row[1].get("s", "")]  # of records: episodes have no versions
        versions: dict[str, Any] = {}
        if ids:
            request = q.GetPoints(
                collection_name=self._schema.main, ids=forms.point_ids(ids), with_payload=forms.including(("v",))
            )
            found = (await self._call(self._link.points.Get, request)).result
            versions = {one.id.uuid: {f: forms.plain(value) for f, value in one.payload.items()} for one in found}
        return [
            forms.dense_point(memory_id, dense, {**payload, **versions.get(memory_id, {})})
            for memory_id, payload, _, _, dense in rows
        ]

    async def _count(self, name: str) -> int:
        request = q.CountPoints(collection_name=name, exact=True)
        return int((await self._call(self._link.points.Count, request)).result.count)

    async def _call(self, method: Any, request: Any) -> Any:
        return await _understood(self._link.call(method, request))

    def _named(self, collection: str) -> str:
        if collection == MAIN:
            return self._schema.main
        return self._schema.denses_begin + collection.removeprefix(_DENSE)


async def _understood(asked: Awaitable[_T]) -> _T:
    """What was asked; a refusal is a store that cannot be used."""
    try:
        return await asked
    except (QdrantRefused, SchemaDiffers) as error:
        raise BackendDown(f"The vector store cannot be used: {error}") from error


def _pieces(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows as requests carry them: a server takes no message of any size."""
    piece: list[Row] = []
    held = 0
    for row in rows:
        piece.append(row)
        held += len(row[1].get("t", "")) + len(row[1].get("h", "")) + 14 * len(row[2]) + sum(map(len, row[4].values()))
        if len(piece) == _AT_ONCE or held >= _BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _row(one: Any, *, main: bool) -> Row:
    payload = {field: forms.plain(value) for field, value in one.payload.items()}
    payload.pop(forms.ROW if main else "v", None)
    indices: list[int] = []
    values: list[float] = []
    dense: dict[str, bytes] = {}
    for name, vector in sorted(one.vectors.vectors.vectors.items()):
        if name == LEXICAL:
            pairs = sorted(zip(vector.sparse.indices, vector.sparse.values, strict=True))
            indices, values = [index for index, _ in pairs], [value for _, value in pairs]
        else:
            dense[name] = forms.floats_of(vector.dense.data)
    return [one.id.uuid, payload, indices, values, dense]
