"""How replicas learn what to forget: one channel, listened to for as long as the store is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import CHANGES

log = logging.getLogger(__name__)

_SILENCE = 5.0
_RETRY = 0.5
_FIRST = 1.0
_MOST_TOLD_AT_ONCE = 1000

Heard = Callable[[str], None]
"""Called with the name of what changed."""


class Changes:
    """Hears what other replicas changed, and tells them what changed here.

    Whoever caches asks `live`: while the connection is not proved to live, messages may be missed, and what is cached
    must not be taken as fresh. A connection that dies without a sign is noticed within ten seconds. A message is
    `kind name`, or `kind name origin` of one that its own origin need not hear.

    Args:
        client: The connection.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._origin = os.urandom(8).hex()
        self._heard: dict[str, Heard] = {}
        self._missed: list[Callable[[], None]] = []
        self._live = False
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> bool:
        """Whether every change is heard."""
        return self._live

    def listen(self, kind: str, heard: Heard, missed: Callable[[], None] | None = None) -> None:
        """Has a kind of message heard.

        Args:
            kind: The kind.
            heard: Called with what each message names.
            missed: Called when messages may have been missed, before `live` says so again.
        """
        self._heard[kind] = heard
        if missed is not None:
            self._missed.append(missed)

    def tell(self, kind: str, name: str) -> None:
        """Tells the others, soon; if the store does not answer they are not told, and see it when their caches run out."""
        if len(self._telling) < _MOST_TOLD_AT_ONCE:
            task = asyncio.create_task(self._publish(f"{kind} {name} {self._origin}"))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def __aenter__(self) -> Changes:
        self._task = asyncio.create_task(self._listen_forever())
        # Not a condition for starting: until changes are heard, caches ask the store.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST):
                await self._first.wait()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._telling:
            await asyncio.wait(list(self._telling), timeout=_FIRST)
        tasks = [task for task in (self._task, *self._telling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self, message: str) -> None:
        with contextlib.suppress(BackendDown):
            await self._client.run("PUBLISH", CHANGES, message)

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._client.subscribe(CHANGES) as subscription:
                    for missed in self._missed:
                        missed()
                    self._live = True
                    self._first.set()
                    while True:
                        message = await subscription.next(_SILENCE)
                        if message is not None:
                            self._hear(message)
            except BackendDown as fault:
                log.debug("changes of other replicas are not heard: %s", fault.message)
            except Exception:
                log.exception("changes of other replicas are not heard")
            finally:
                self._live = False
            await asyncio.sleep(_RETRY)

    def _hear(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        name, _, origin = rest.partition(" ")
        heard = self._heard.get(kind)
        if heard is not None and origin != self._origin:
            heard(name)
