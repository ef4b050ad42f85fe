"""The searchable side of memory over the embedded vector process.

Turns leave this module sealed and come back opened; the process sees ciphertext, keyed terms, vectors and times.
Every read names its subject, and what is not the subject's is never given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports import Candidate, IndexedTurn, SearchQuery, Subject, Turn
from memoryos_server.stores.edge_client import EdgeClient, EdgeError
from memoryos_server.stores.points import dense, open_turn, point, sparse
from memoryos_server.stores.sealing import SealBroken, Sealer, Sealers

_log = logging.getLogger(__name__)

_DEADLINE_SECONDS = 5.0
_FLUSH_SECONDS = 60.0
# The process does one request at a time: small ones let others in between, and no frame comes near its limit.
_POINTS_PER_REQUEST = 128
# A term costs a keyed hash, 1.5 us: more than this many would hold up everybody else and are hashed in a thread.
_TERMS_AT_ONCE = 3_000
_BYTES_PER_REQUEST = 4 * 1024 * 1024


class EdgeVectors:
    """`domain.ports.Vectors` on the socket of the vector process; connects when first called, and again when it broke.

    A call gives up after 5 s (`flush` 60 s) with `BackendDown`, at once while the process is away. It is an async
    context manager that closes its connection.

    Args:
        socket: Where the process listens.
        sealers: Where sealers come from.
        deadline: Per call, seconds.
    """

    def __init__(self, socket: Path, sealers: Sealers, *, deadline: float = _DEADLINE_SECONDS) -> None:
        self._client = EdgeClient(socket)
        self._sealers = sealers
        self._deadline = deadline

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()

    def on_reconnect(self, follower: Callable[[], None]) -> None:
        """Has `follower` called whenever the process may be another than before, ahead of the first request to it."""
        self._client.reconnected = follower

    async def ping(self) -> None:
        """Returns if the process answers.

        Raises:
            BackendDown: It does not.
        """
        await self._call("ping")

    async def insert(self, subject: Subject, turns: Sequence[IndexedTurn]) -> int:
        """Adds turns that are not there yet; one that is stays as it is. In pieces: a failure may leave some written.

        Returns:
            The incarnation of the process that took them: a number that changes when it was restarted.

        Raises:
            BackendDown: The process does not answer, or was restarted midway.
        """
        if not turns:
            return int((await self._call("ping"))["incarnation"])
        sealer = await self._sealers.sealer(subject)
        took: set[int] = set()
        pieces: Iterable[list[Mapping[str, Any]]] = _pieces(subject, turns, sealer)
        if sum(len(turn.terms) for turn in turns) > _TERMS_AT_ONCE:
            pieces = await asyncio.to_thread(list, pieces)
        for piece in pieces:
            took.add(await self._call("insert", piece))
            if len(took) > 1:
                raise BackendDown("The vector store was restarted midway")
        return took.pop()

    async def search(self, subject: Subject, query: SearchQuery) -> list[Candidate]:
        """The union of what each leg finds among the subject's turns, in no order. IDF is the subject's own.

        Raises:
            BackendDown: The process does not answer.
        """
        if query.limit < 1 or not (query.terms or query.dense):
            return []
        sealer = await self._sealers.sealer(subject)
        answer = await self._call(
            "search",
            subject.id,
            sparse(query.terms, sealer),
            {name: dense(vector) for name, vector in query.dense.items()},
            query.limit,
            query.until.timestamp() if query.until is not None else None,
        )
        scores: dict[str, dict[str, float]] = {}
        for leg, hits in answer["legs"].items():
            for memory_id, score in hits:
                scores.setdefault(memory_id, {})[leg] = score
        return [Candidate(turn, scores[turn.id]) for turn in _opened(answer["payloads"], sealer)]

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        """Those of the subject's turns that exist, in no order. What is no UUID does not exist.

        Raises:
            BackendDown: The process does not answer.
        """
        known = [memory_id for memory_id in dict.fromkeys(ids) if _is_uuid(memory_id)]
        if not known:
            return []
        payloads = await self._call("get", subject.id, known)
        return list(_opened(payloads, await self._sealers.sealer(subject))) if payloads else []

    async def owner(self, memory_id: str) -> str | None:
        """The subject id that a memory belongs to, or None.

        Raises:
            BackendDown: The process does not answer.
        """
        if not _is_uuid(memory_id):
            return None
        found: str | None = await self._call("owner", memory_id)
        return found

    async def flush(self) -> int:
        """Returns once every write that this incarnation of the process took before this call is durable.

        Returns:
            The incarnation. Writes that another one took may be lost and must be repeated.

        Raises:
            BackendDown: The process does not answer.
        """
        return int(await self._call("flush", deadline=_FLUSH_SECONDS))

    async def count(self, subject: Subject | None = None) -> int:
        """The number of turns, of a subject or of all.

        Raises:
            BackendDown: The process does not answer.
        """
        return int(await self._call("count", subject.id if subject is not None else None))

    async def delete_subject(self, subject: Subject) -> None:
        """Removes a subject's turns from every answer; their bytes stay in the files until a vacuum.

        Raises:
            BackendDown: The process does not answer.
        """
        await self._call("delete_subject", subject.id)

    async def _call(self, operation: str, *arguments: Any, deadline: float | None = None) -> Any:
        try:
            return await self._client.call(operation, *arguments, timeout=deadline or self._deadline)
        except TimeoutError as error:
            raise BackendDown("The vector store does not answer in time") from error
        except OSError as error:
            raise BackendDown("The vector store is not reachable") from error
        except EdgeError as error:
            if error.kind == "invalid":
                raise  # a mistake of ours, which trying again does not mend
            _log.error("the vector store refused a request: %s", error)
            raise BackendDown("The vector store failed") from error


def _pieces(subject: Subject, turns: Iterable[IndexedTurn], sealer: Sealer) -> Iterator[list[Mapping[str, Any]]]:
    """Points as requests carry them, in pieces of bounded size."""
    piece: list[Mapping[str, Any]] = []
    size = 0
    for turn in turns:
        made = point(subject, turn, sealer)
        piece.append(
            {"id": made.id, "sparse": (made.indices, made.values), "dense": made.dense, "payload": made.payload}
        )
        size += len(str(made.payload["t"])) + 14 * len(made.indices) + sum(map(len, made.dense.values()))
        if len(piece) == _POINTS_PER_REQUEST or size >= _BYTES_PER_REQUEST:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _opened(payloads: Mapping[str, str], sealer: Sealer) -> Iterator[Turn]:
    for memory_id, text in payloads.items():
        try:
            yield open_turn(memory_id, text, sealer)
        except SealBroken as error:
            # One damaged turn must not hide the others; the log says which it is.
            _log.error("memory %s cannot be opened: %s", memory_id, error)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
