"""Refusals that are equal become one event with a count, so that whoever knocks all day does not fill the audit trail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from memoryos_server.domain.core.audit import AuditEvent

_MINUTE = 60
_HELD_SECONDS = 5.0
_MOST = 10_000


class Refusals:
    """Passes the first refusal of a kind, address and minute on at once; of equal ones that follow, now and then their number.

    What is only counted is lost if the process is killed: at most what came within `held_seconds`.

    Args:
        put: Has an event written.
        held_seconds: How long repeats are counted before they are passed on.
        most: So many kinds are told apart; of further ones each refusal is passed on.
    """

    def __init__(
        self, put: Callable[[AuditEvent], None], *, held_seconds: float = _HELD_SECONDS, most: int = _MOST
    ) -> None:
        self._put = put
        self._seconds = held_seconds
        self._most = most
        self._minute = 0
        self._seen: set[Hashable] = set()
        self._held: dict[Hashable, AuditEvent] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, event: AuditEvent) -> None:
        """Takes a refusal."""
        if (minute := int(event.timestamp.timestamp()) // _MINUTE) != self._minute:
            self.flush()
            self._minute = minute
            self._seen.clear()
        kind = (
            *(event.event_type, event.tenant_id, event.user_id, event.resource, event.action),
            *(event.outcome, event.actor, event.address, event.details),
        )
        if kind in self._held:
            self._held[kind] = self._held[kind]._replace(count=self._held[kind].count + 1)
        elif kind in self._seen:
            self._held[kind] = event
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._seconds, self.flush)
        else:
            if len(self._seen) < self._most:
                self._seen.add(kind)
            self._put(event)

    def flush(self) -> None:
        """Passes on what is held."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, {}
        for event in held.values():
            self._put(event)
