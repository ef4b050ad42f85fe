"""What keeps the embedded vector process in step with the models: what it lacks, and how it gets it.

Background work walks over what has no vectors, or terms of another analysis, opens it, and brings what is missing.
Nothing of this needs the ledger: what a crash takes is found lacking again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memoryos_server.domain.core.faults import BackendDown, Exists
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.ports import Subject
from memoryos_server.stores.breaker import Breaker, probing
from memoryos_server.stores.edge_client import EdgeClient, EdgeError
from memoryos_server.stores.points import dense, names, sparse
from memoryos_server.stores.scope import Scope
from memoryos_server.stores.sealing import Sealers
from memoryos_server.stores.traffic import Stored, stored
from memoryos_server.stores.upkeep import DEADLINE_SECONDS, Upkeep

_log = Sparing(logging.getLogger(__name__))

FLUSH_SECONDS = 60.0
# A walk looks at many points in one request.
_WALK_SECONDS = 30.0
_VACUUM_PAUSE_SECONDS = 0.25


class EdgeUpkeep(Upkeep):
    """The connection to the vector process, and its upkeep. `EdgeVectors` is what else one asks of it.

    Args:
        socket: Where the process listens.
        sealers: Where sealers come from.
        deadline: Per call, seconds.
        analysis: The version of the analysis that makes the terms of what is written.
    """

    def __init__(
        self, socket: Path, sealers: Sealers, *, deadline: float = DEADLINE_SECONDS, analysis: int = 1
    ) -> None:
        super().__init__(sealers, analysis)
        self._client = EdgeClient(socket)
        self._deadline = deadline

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()

    @property
    def breaker(self) -> Breaker:
        """Has calls fail at once while the process does not answer."""
        return self._client.breaker

    def on_reconnect(self, follower: Callable[[], None]) -> None:
        """Has `follower` called whenever the process may be another than before, ahead of the first request to it."""
        self._client.reconnected = follower

    async def ping(self) -> None:
        """Returns if the process answers.

        Raises:
            BackendDown: It does not.
        """
        with probing():
            await self._call("ping")

    async def flush(self) -> int:
        """Returns once every write that this incarnation of the process took before this call is durable.

        Returns:
            The incarnation. Writes that another one took may be lost and must be repeated.

        Raises:
            BackendDown: The process does not answer.
        """
        return int(await self._call("flush", deadline=FLUSH_SECONDS))

    async def coverage(self) -> tuple[int, int]:
        """How many episodes and records there are, and how many of them the models in use have embedded.

        Raises:
            BackendDown: The process does not answer.
        """
        total, embedded, _ = await self._call("coverage")
        return total, embedded

    async def old_dense(self) -> int:
        """The number of sets of vectors that are kept of models not in use.

        Raises:
            BackendDown: The process does not answer.
        """
        return int((await self._call("coverage"))[2])

    async def drop_old_dense(self) -> int:
        """Deletes the vectors of models that are not in use; gives the number of such sets.

        Raises:
            BackendDown: The process does not answer.
        """
        return int(await self._call("drop_old_dense", deadline=FLUSH_SECONDS))

    async def vacuum(self) -> None:
        """Rewrites every shard, so that the files hold nothing of what was removed before this call.

        It takes as long as it takes: in small steps, half of the time, so that everybody else is answered in between.

        Raises:
            BackendDown: The process does not answer, or was restarted midway.
        """
        for name in await self._call("shards"):
            first, more, began = True, True, time.monotonic()
            while more:
                more = await self._call("vacuum", name, first, deadline=FLUSH_SECONDS)
                first, took = False, time.monotonic() - began
                await asyncio.sleep(min(took, _VACUUM_PAUSE_SECONDS))
                began = time.monotonic()

    async def unembedded(self, after_id: str, limit: int) -> list[Stored]:
        """At most `limit` points that the models in use have not embedded, in the order of ids from behind `after_id`.

        None at the end, and where there is no model.

        Raises:
            BackendDown: The process does not answer.
        """
        return await self._walk("unembedded", after_id, limit)

    async def stale(self, analysis: int, after_id: str, limit: int) -> list[Stored]:
        """At most `limit` points with terms of another analysis, in the order of ids from behind `after_id`.

        Raises:
            BackendDown: The process does not answer.
        """
        return await self._walk("stale", after_id, limit, analysis)

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

        Raises:
            BackendDown: The process does not answer.
        """
        known = versions or {}
        made = [
            (memory_id, {name: dense(vector) for name, vector in named.items()}, known.get(memory_id))
            for memory_id, named in vectors
        ]
        scope = Scope(subject, await self._sealers.sealer(subject))
        return int(await self._call("add_dense", scope.corpora, made))

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

        Raises:
            BackendDown: The process does not answer.
        """
        sealer = await self._sealers.sealer(subject)
        made = [
            (memory_id, *sparse(terms, sealer), names(words, sealer), list(hints))
            for memory_id, terms, words, hints in changes
        ]
        return int(await self._call("replace_terms", Scope(subject, sealer).corpora, self._analysis, made))

    async def _walk(self, operation: str, after_id: str, limit: int, *arguments: Any) -> list[Stored]:
        found: list[Stored] = []
        while len(found) < limit:
            rows, after_id = await self._call(
                operation, *arguments, after_id, limit - len(found), deadline=_WALK_SECONDS
            )
            found += [stored(memory_id, corpus, version, sealed) for memory_id, corpus, sealed, version in rows]
            if not after_id:
                break
        return found

    async def _call(self, operation: str, *arguments: Any, deadline: float | None = None) -> Any:
        try:
            return await self._client.call(
                operation, *arguments, timeout=deadline or self._deadline, long=deadline is not None
            )
        except TimeoutError as error:
            raise BackendDown("The vector store does not answer in time") from error
        except OSError as error:
            raise BackendDown("The vector store is not reachable") from error
        except EdgeError as error:
            if error.kind == "invalid":
                raise  # a mistake of ours, which trying again does not mend
            if error.kind == "taken":
                raise Exists("An id is already used by another memory", param="id") from error
            _log.error("the vector store refused a request: %s", error)
            raise BackendDown("The vector store failed") from error
