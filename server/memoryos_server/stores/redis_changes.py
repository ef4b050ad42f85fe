"""How replicas learn what to forget: one channel, listened to for as long as the store is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import CHANGES

log = logging.getLogger(__name__)

_SILENCE = 5.0
_RETRY = 0.5
_FIRST = 1.0


class Changes:
    """Hears what other replicas changed.

    Whoever caches asks `live`: while the connection is not proved to live, messages may be missed, and what is cached
    must not be taken as fresh. A connection that dies without a sign is noticed within ten seconds.

    Args:
        client: The connection.
        heard: Called with each message.
        missed: Called when messages may have been missed, before `live` says so again.
    """

    def __init__(self, client: Client, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._client = client
        self._heard = heard
        self._missed = missed
        self._live = False
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def live(self) -> bool:
        """Whether every change is heard."""
        return self._live

    async def __aenter__(self) -> Changes:
        self._task = asyncio.create_task(self._listen_forever())
        # Not a condition for starting: until changes are heard, caches ask the store.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST):
                await self._first.wait()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen_forever(self) -> None:
        while True:
            try:
                async with self._client.subscribe(CHANGES) as subscription:
                    self._missed()
                    self._live = True
                    self._first.set()
                    while True:
                        message = await subscription.next(_SILENCE)
                        if message is not None:
                            self._heard(message)
            except BackendDown as fault:
                log.debug("changes of other replicas are not heard: %s", fault.message)
            except Exception:
                log.exception("changes of other replicas are not heard")
            finally:
                self._live = False
            await asyncio.sleep(_RETRY)
