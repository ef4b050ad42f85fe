"""What was said, read conversation by conversation, and taken back.

Taking a turn back removes what was derived from it. A segment that still has other sources is made anew from those, and
its older versions, which quote what is gone, are dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import Invalid, NotFound
from memoryos_server.domain.core.ids import derived_uuid, kept_ids
from memoryos_server.domain.core.text import NO_SESSION, check_id
from memoryos_server.domain.memory.retraction import Facts, Rebuild, Retraction
from memoryos_server.domain.ports import (
    Change,
    EventState,
    Session,
    Subject,
    Subjects,
    Turn,
    Turns,
    Vectors,
)

MAX_PAGE = 100
DEFAULT_PAGE = 20

_TURNS_PER_CHANGE = 500
_SOURCES_AT_ONCE = 50


class Changes(Protocol):
    """Makes changes durable and applies them."""

    async def change(
        self, subject: Subject, make: Callable[[], Awaitable[Change | None]], *, reads: bool = True
    ) -> bool:
        """Makes a change; whether it waits to be applied."""

    async def written(self, subject: Subject) -> None:
        """Sees to it that every turn that was accepted is on the searchable side, where it is looked for."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was removed.

    Attributes:
        turns: How many turns.
        derived: How many memories that were derived from them.
        degraded: It is durable, and waits to be applied, because a store is down.
    """

    turns: int
    derived: int
    degraded: bool = False


@dataclass(slots=True)
class _Tally:
    turns: int = 0
    derived: int = 0


class SaidService:
    """A user's conversations.

    Args:
        subjects: Who is known.
        turns: The ledger's view of turns.
        vectors: The searchable side.
        changes: Makes changes.
        facts: What is believed.
        rebuild: Makes segments anew; None: a segment that lost a source is removed.
        forget: Told of a (tenant, user) of whom something was removed.
    """

    def __init__(
        self,
        subjects: Subjects,
        turns: Turns,
        vectors: Vectors,
        changes: Changes,
        facts: Facts,
        rebuild: Rebuild | None = None,
        forget: Callable[[str, str], None] = lambda tenant_id, user_id: None,
    ) -> None:
        self._subjects = subjects
        self._turns = turns
        self._vectors = vectors
        self._changes = changes
        self._retraction = Retraction(vectors, facts, rebuild)
        self._forget = forget

    async def sessions(
        self, who: Caller, user_id: str, *, page_size: int | None = None, page_token: str = ""
    ) -> tuple[list[Session], str]:
        """A page of conversations, last active first, and the token of the next; none for a user never heard of.

        Raises:
            Invalid: The page size or token is malformed.
            Forbidden: The caller may not act for the user.
            BackendDown: The ledger does not answer.
        """
        size = page_of(page_size)
        subject = await self._subjects.find(who.tenant_id, who.owner(user_id))
        if subject is None:
            return [], ""
        return await self._turns.sessions(subject, page_token, size)

    async def session(
        self, who: Caller, user_id: str, session_id: str, *, page_size: int | None = None, page_token: str = ""
    ) -> tuple[list[Turn], str]:
        """A page of what was said in a conversation, in the order of acceptance, and the token of the next.

        Raises:
            Invalid: The session, page size or token is malformed.
            NotFound: There is no such conversation.
            Forbidden: The caller may not act for the user.
            BackendDown: The searchable side does not answer.
        """
        size, after = page_of(page_size), _position(page_token)
        session = _session(session_id)
        subject = await self._subjects.find(who.tenant_id, who.owner(user_id))
        found = await self._vectors.said(subject, session, after, size + 1) if subject else []
        if not found and not page_token:
            raise NotFound("There is no such session", param="session_id")
        return found[:size], str(found[size - 1].seq) if len(found) > size else ""

    async def delete_session(self, who: Caller, user_id: str, session_id: str) -> Deleted:
        """Removes a conversation with all that was derived from it, and from nothing else.

        Raises:
            NotFound: There is no such conversation.
            Forbidden: The caller may not act for the user.
            BackendDown: A store does not answer; what is left can be deleted by calling again.
        """
        session = _session(session_id)
        owner = who.owner(user_id)
        subject = await self._subjects.find(who.tenant_id, owner)
        deleted = Deleted(0, 0)
        if subject is not None:
            await self._changes.written(subject)
        while subject is not None:
            tally = _Tally()

            async def some(subject: Subject = subject, tally: _Tally = tally) -> Change | None:
                turns = await self._vectors.said(subject, session, 0, _TURNS_PER_CHANGE)
                return await self._without(subject, turns, tally) if turns else None

            late = await self._changes.change(subject, some)
            deleted = Deleted(deleted.turns + tally.turns, deleted.derived + tally.derived, deleted.degraded or late)
            if tally.turns < _TURNS_PER_CHANGE or late:
                break
        if not deleted.turns:
            raise NotFound("There is no such session", param="session_id")
        self._forget(who.tenant_id, owner)
        return deleted

    async def delete(self, who: Caller, user_id: str, memory_id: str) -> Deleted:
        """Removes a memory of any kind, and what was derived from it.

        Raises:
            NotFound: There is no such memory, or it is somebody else's.
            Forbidden: The caller may not act for the user.
            BackendDown: A store does not answer.
        """
        subject = await self._owner_of(who, user_id, memory_id)
        if subject is None:
            raise NotFound("There is no such memory", param="memory_id")
        await self._changes.written(subject)
        tally = _Tally()

        async def one() -> Change | None:
            turns = await self._vectors.get(subject, [memory_id])
            if turns:
                return await self._without(subject, turns, tally)
            kept = kept_ids(subject.id, memory_id)
            there = {record.id for record in await self._vectors.records(subject, kept)}
            if not there:
                raise NotFound("There is no such memory", param="memory_id")
            return Change(remove=(next(name for name in kept if name in there),))

        late = await self._changes.change(subject, one)
        self._forget(subject.tenant_id, subject.user_id)
        return Deleted(tally.turns, tally.derived, late)

    async def event(self, who: Caller, user_id: str, event_id: str) -> EventState:
        """What became of an event.

        Raises:
            Invalid: The id is malformed.
            NotFound: Nothing is known of it.
            Forbidden: The caller may not act for the user.
            BackendDown: A store does not answer.
        """
        check_id(event_id, "event_id")
        subject = await self._subjects.find(who.tenant_id, who.owner(user_id))
        if subject is None:
            raise NotFound("There is no such event", param="event_id")
        if state := await self._turns.state(subject, event_id):
            return state
        memory_id = derived_uuid(subject.tenant_id, subject.id, event_id)
        if turns := await self._vectors.get(subject, [memory_id]):
            return EventState(event_id, memory_id, "stored", changed_at=turns[0].timestamp)
        raise NotFound("There is no such event", param="event_id")

    async def _owner_of(self, who: Caller, user_id: str, memory_id: str) -> Subject | None:
        if user_id or not who.anonymous or who.named_user:
            return await self._subjects.find(who.tenant_id, who.owner(user_id))
        # With auth off and nobody named, an id alone is enough within the tenant, as for history.
        owner = await self._vectors.owner(memory_id)
        subject = await self._subjects.by_id(owner) if owner else None
        return subject if subject and subject.tenant_id == who.tenant_id else None

    async def _without(self, subject: Subject, turns: Sequence[Turn], tally: _Tally) -> Change:
        """The change that removes turns and what was derived from them alone."""
        put, remove = await self._retraction.derived(subject, {turn.id for turn in turns})
        tally.turns, tally.derived = len(turns), len(remove)
        events = {turn.id: (turn.event_id, turn.session_id) for turn in turns}
        return Change(put=tuple(put), remove=(*events, *remove), events=events)


def page_of(size: int | None) -> int:
    """The page size to use.

    Raises:
        Invalid: It is below 1.
    """
    if size is None:
        return DEFAULT_PAGE
    if size < 1:
        raise Invalid("page_size must be at least 1", param="page_size")
    return min(size, MAX_PAGE)


def _session(session_id: str) -> str:
    return "" if session_id == NO_SESSION else check_id(session_id, "session_id")


def _position(token: str) -> int:
    if token and not (token.isascii() and token.isdigit() and len(token) < 16):
        raise Invalid("page_token is none that was given out", param="page_token")
    return int(token or 0)
