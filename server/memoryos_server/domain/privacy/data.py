"""The categories of a person's data that lie on the searchable side, and those that other rooms make of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

from memoryos_server.domain.core.caller import ANY_TENANT
from memoryos_server.domain.core.faults import NotFound
from memoryos_server.domain.ports import ApiKey, KeyStore, Record, RecordFilter, Subject, Turn
from memoryos_server.domain.ports.audit import AuditTrail, Wanted
from memoryos_server.domain.ports.privacy import Whose
from memoryos_server.domain.privacy.items import of_event, of_key, of_record, of_turn

_TURNS_AT_ONCE = 256
_EVENTS_AT_ONCE = 200
_KEPT = frozenset({"act_as", "admin"})


class Searchable(Protocol):
    """The searchable side, as far as a person's whole data goes."""

    async def said(self, subject: Subject, session_id: str | None, after: int, limit: int) -> list[Turn]:
        """Turns in the order of acceptance, those with a `seq` above `after`; of one session, or of all (None)."""

    def scan(self, subject: Subject, chosen: RecordFilter, *, history: bool = False) -> AsyncIterator[Record]:
        """Every such record."""

    async def erase(self, subject_id: str, kind: str) -> int:
        """Removes all of one kind that a subject has, "" for episodes, durably; gives how much there was.

        Nothing of the subject is taken any more afterwards, where the engine can see to that.
        """

    async def left(self, subject_id: str, kind: str) -> int:
        """How much of one kind a subject has, hidden and outdated ones included."""


class Nothing:
    """A category of which nothing is kept yet, or that another one has: it is exported as an empty list."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Nothing."""
        nothing: tuple[Mapping[str, Any], ...] = ()
        for item in nothing:
            yield item

    async def erase(self, whose: Whose) -> int:
        """Nothing is there."""
        return 0

    async def left(self, whose: Whose) -> int:
        """Nothing is there."""
        return 0


class Episodes:
    """What was said, as far as it is searchable; what is not yet, the ledger's categories have."""

    def __init__(self, vectors: Searchable) -> None:
        self.name = "episodes"
        self._vectors = vectors

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Turns in the order of acceptance."""
        after = 0
        while subject is not None and (turns := await self._vectors.said(subject, None, after, _TURNS_AT_ONCE)):
            for turn in turns:
                yield of_turn(turn)
            after = turns[-1].seq

    async def erase(self, whose: Whose) -> int:
        """As `UserData.erase`."""
        return await self._vectors.erase(whose.subject_id, "") if whose.subject_id else 0

    async def left(self, whose: Whose) -> int:
        """As `UserData.left`."""
        return await self._vectors.left(whose.subject_id, "") if whose.subject_id else 0


class Records:
    """The records of one kind, with every version."""

    def __init__(self, vectors: Searchable, name: str, kind: str) -> None:
        self.name = name
        self._vectors = vectors
        self.kind = kind

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Records in the order of ids."""
        if subject is not None:
            async for record in self._vectors.scan(subject, RecordFilter(self.kind), history=True):
                yield of_record(record)

    async def erase(self, whose: Whose) -> int:
        """As `UserData.erase`."""
        return await self._vectors.erase(whose.subject_id, self.kind) if whose.subject_id else 0

    async def left(self, whose: Whose) -> int:
        """As `UserData.left`."""
        return await self._vectors.left(whose.subject_id, self.kind) if whose.subject_id else 0


class Trail:
    """What was recorded of a person. It is never removed: an erasure destroys the key that who and from where are sealed under."""

    def __init__(self, trail: AuditTrail) -> None:
        self.name = "audit"
        self._trail = trail

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Events, newest first."""
        below, more = None, True
        while more:
            events, below = await self._trail.page(Wanted(whose.tenant_id, whose.user_id), _EVENTS_AT_ONCE, below)
            for event in events:
                yield of_event(event)
            more = below is not None

    async def erase(self, whose: Whose) -> int:
        """Nothing is removed."""
        return 0

    async def left(self, whose: Whose) -> int:
        """Nothing that could be read."""
        return 0


class Keys:
    """A user's API keys, without the keys. Those that may act for others belong to whoever runs the application: they stay.

    Keys of all tenants are no one tenant's: they are not given out, and end by `end_everywhere` only.

    Args:
        keys: All keys.
        revoke: Ends one by its id; recorded as ever.
        lookup: The keyed hash of a tenant and a user.
    """

    def __init__(
        self, keys: KeyStore, revoke: Callable[[str], Awaitable[object]], lookup: Callable[[str, str], str]
    ) -> None:
        self.name = "keys"
        self._keys = keys
        self._revoke = revoke
        self._lookup = lookup

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        """Keys, oldest first."""
        for key in await self._of(whose):
            yield of_key(key)

    async def erase(self, whose: Whose) -> int:
        """Ends them."""
        ended = await self._ending(whose)
        for key in ended:
            with contextlib.suppress(NotFound):  # somebody else was first
                await self._revoke(key.id)
        return len(ended)

    async def left(self, whose: Whose) -> int:
        """Those that ought to have ended."""
        return len(await self._ending(whose))

    async def end_everywhere(self, user_id: str) -> None:
        """Ends a user's keys of all tenants, for whoever reaches them.

        Raises:
            BackendDown: The store does not answer, or it cannot be recorded.
        """
        for key in await self._keys.list():
            if key.tenant_id == ANY_TENANT and key.user_id == user_id and not key.permissions & _KEPT:
                with contextlib.suppress(NotFound):
                    await self._revoke(key.id)

    async def _of(self, whose: Whose) -> list[ApiKey]:
        return [
            key
            for key in await self._keys.list()
            if key.tenant_id == whose.tenant_id and self._lookup(key.tenant_id, key.user_id) == whose.lookup
        ]

    async def _ending(self, whose: Whose) -> list[ApiKey]:
        return [key for key in await self._of(whose) if key.created_at <= whose.before and not key.permissions & _KEPT]
