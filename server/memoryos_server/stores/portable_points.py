"""Every point of a store's searchable side, out and in, whatever engine holds it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import orjson

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.edge_client import EdgeClient, EdgeError

MAIN = "main"
"""The collection of payloads and terms. The others, `dense-<hash>`, hold the vectors of one set of models each."""

_PAGE = 256
_SECONDS = 60.0
_MODULUS = 1 << 128

Row = Sequence[Any]
"""A point: id, payload, terms, their weights, and vector name -> float32 bytes."""


class PortablePoints(Protocol):
    """Where points are read from or written to. Every method may raise `BackendDown`."""

    async def collections(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Name of a collection -> its number of points, and the dimensions of its dense vectors by name."""

    def read(self, collection: str, after: str = "") -> AsyncIterator[list[Row]]:
        """Points in pages, in the order of ids, from behind the id `after`."""

    async def write(self, collection: str, sizes: Mapping[str, int], rows: Sequence[Row]) -> None:
        """Writes points over what is there of them; makes the collection if need be."""

    async def flush(self) -> None:
        """Returns once everything that was written is durable."""


class EdgePoints:
    """`PortablePoints` on the socket of the vector process; an async context manager that closes its connection."""

    def __init__(self, socket: Path) -> None:
        """Connects when first used."""
        self._client = EdgeClient(socket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def collections(self) -> dict[str, tuple[int, dict[str, int]]]:
        """Name of a shard -> its number of points, and the dimensions of its dense vectors by name."""
        return {name: (count, sizes) for name, (count, sizes) in (await self._call("shards")).items()}

    async def read(self, collection: str, after: str = "") -> AsyncIterator[list[Row]]:
        """Points in pages, in the order of ids."""
        more = True
        while more:
            rows, after = await self._call("dump", collection, after, _PAGE)
            more = bool(after)
            if rows:
                yield rows

    async def write(self, collection: str, sizes: Mapping[str, int], rows: Sequence[Row]) -> None:
        """Writes points over what is there of them."""
        await self._call("load", collection, dict(sizes), list(rows))

    async def flush(self) -> None:
        """Returns once everything that was written is durable."""
        await self._call("flush")

    async def _call(self, operation: str, *arguments: Any) -> Any:
        try:
            return await self._client.call(operation, *arguments, timeout=_SECONDS)
        except TimeoutError as error:
            raise BackendDown("The vector store does not answer in time") from error
        except (OSError, EdgeError) as error:
            raise BackendDown(f"The vector store failed: {error}") from error


def subject_of(row: Row) -> str:
    """Whose a point is."""
    return str(row[1].get("s", "")).partition("/")[0]


class PointDigest:
    """A number per corpus that says whether two sets of points are equal, in whatever order they were read."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}

    def add(self, row: Row) -> None:
        """Takes a point."""
        corpus = str(row[1].get("s", ""))
        count, total = self._found.get(corpus, (0, 0))
        self._found[corpus] = count + 1, (total + _hashed(row)) % _MODULUS

    @property
    def found(self) -> dict[str, tuple[int, str]]:
        """Corpus -> number of points, 32 hex digits."""
        return {corpus: (count, f"{total:032x}") for corpus, (count, total) in self._found.items()}


def _hashed(row: Row) -> int:
    memory_id, payload, indices, values, dense = row
    digest = hashlib.blake2b(memory_id.encode(), digest_size=16)
    digest.update(orjson.dumps(payload, option=orjson.OPT_SORT_KEYS))
    digest.update(struct.pack(f">{len(indices)}I{len(values)}f", *indices, *values))
    for name, raw in sorted(dense.items()):
        digest.update(b"%s:%d:" % (name.encode(), len(raw)) + raw)
    return int.from_bytes(digest.digest())
