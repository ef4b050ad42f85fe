"""What providers list themselves, asked when it is needed and kept for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from memoryos_server.domain.core.faults import Upstream
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.tools.llm import interfaces
from memoryos_server.tools.llm.provider import Provider
from memoryos_server.tools.llm.transport import Transport

KEPT_SECONDS = 60.0
FAILED_SECONDS = 15.0

_log = Sparing(logging.getLogger(__name__))

Listed = list[Mapping[str, object]]
_UNKNOWN: tuple[float, Listed | None] = (-1.0, None)


class Lists:
    """The lists of models of providers.

    Args:
        transport: The way to them.
        clock: Seconds, monotonic.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._kept: dict[tuple[str, str], tuple[float, Listed | None]] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[Listed | None]] = {}

    def keep(self, providers: Iterable[Provider]) -> None:
        """Forgets the lists of all others."""
        left = {_key(one) for one in providers}
        self._kept = {key: kept for key, kept in self._kept.items() if key in left}

    async def close(self) -> None:
        """Ends what is asked for still."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def of(self, providers: Sequence[Provider]) -> list[tuple[Provider, Listed | None]]:
        """The lists; empty where a provider has none, None where it cannot be had now.

        A list is asked for anew after a minute, while the old one does. Only what was never asked for is waited for.
        """
        now = self._clock()
        waiting = []
        for one in providers:
            key = _key(one)
            kept = self._kept.get(key)
            if kept is not None and now < kept[0]:
                continue
            task = self._asking.get(key)
            if task is None:
                task = self._asking[key] = asyncio.create_task(self._asked(one, kept[1] if kept else None))
            if kept is None:
                waiting.append(task)
        if waiting:
            await asyncio.wait(waiting)
        return [(one, self._kept.get(_key(one), _UNKNOWN)[1]) for one in providers]

    async def _asked(self, provider: Provider, old: Listed | None) -> Listed | None:
        """Asks for a list, and keeps it with its expiry; where it cannot be had, the old one."""
        key = _key(provider)
        found: Listed | None
        try:
            found, seconds = await interfaces.listed(self._transport, provider), KEPT_SECONDS
        except Upstream as fault:
            _log.warning("the models of %s are not known: %s", provider.name, fault.message)
            found, seconds = old, FAILED_SECONDS
        finally:
            del self._asking[key]
        self._kept[key] = (self._clock() + seconds, found)
        return found


def _key(provider: Provider) -> tuple[str, str]:
    return provider.name, provider.base_url
