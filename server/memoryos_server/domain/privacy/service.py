"""A person's data: handed over whole, and erased; and what says that it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Forbidden, NotFound
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import AuditLog, Subject, Subjects
from memoryos_server.domain.ports.privacy import ERASED, Erasure, Erasures, UserData, Whose
from memoryos_server.domain.privacy.exporting import document
from memoryos_server.domain.privacy.items import moment


class Erasing(Protocol):
    """Brings erasures to their end."""

    async def erase(self, erasure: Erasure, asked: AuditEvent | None = None) -> Erasure:
        """Tries an erasure that is begun; gives it as it is then. `asked` is recorded with its outcome once all is gone."""


class PrivacyService:
    """What may be asked of a person's whole data. One's own, or with `admin` anybody's of the tenant.

    Args:
        subjects: Who is known.
        data: The categories, in the order in which an export has them.
        erasures: The records of erasures.
        eraser: Brings them to their end.
        log: Where intents are recorded.
        profile: Who a subject is, in a few words.
        end_everywhere: Ends a user's keys of all tenants.
        level: Whether the searchable side lacks something.
        flush: Has written what is recorded late, before the key is destroyed that who and what are sealed under.
        now: The present time.
    """

    def __init__(
        self,
        subjects: Subjects,
        data: Sequence[UserData],
        erasures: Erasures,
        eraser: Erasing,
        log: AuditLog,
        profile: Callable[[Subject], Awaitable[str]],
        end_everywhere: Callable[[str], Awaitable[None]],
        level: Level,
        flush: Callable[[], Awaitable[None]],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._subjects = subjects
        self._data = data
        self._erasures = erasures
        self._eraser = eraser
        self._log = log
        self._profile = profile
        self._end_everywhere = end_everywhere
        self._level = level
        self._flush = flush
        self._now = now
        self._under_way: set[asyncio.Task[Erasure]] = set()

    async def export(self, who: Caller, user_id: str) -> AsyncIterator[str]:
        """The pieces of one JSON document with everything that is kept of a user; empty lists for one never heard of.

        Raises:
            Invalid: The user is named in two ways, or malformed.
            Forbidden: It is another user's data, and the caller is no admin.
            BackendDown: A store does not answer, it cannot be recorded that this was asked for, or something may be missing for
                now on the searchable side; that also midway, and the document has no end then.
        """
        owner = _owner(who, user_id)
        mark = await self._level.whole()
        await self._intend(who, owner, "gdpr.export", "ExportUserData")
        subject = await self._subjects.find(who.tenant_id, owner)
        now = self._now()
        whose = Whose(
            who.tenant_id, self._erasures.lookup(who.tenant_id, owner), subject.id if subject else "", now, owner
        )
        head = {
            "user_id": owner,
            "tenant_id": who.tenant_id,
            "exported_at": moment(now),
            "profile": await self._profile(subject) if subject else "",
        }
        return document(head, self._data, whose, subject, lambda: self._level.check_since(mark))

    async def erase(self, who: Caller, user_id: str) -> Erasure:
        """Erases everything that is kept of a user; what cannot be erased now is tried again until it is.

        The data of before cannot be read any more when this returns, whatever the state. Cancelling undoes nothing. Where an
        earlier erasure of the user has not come to its end, it is tried again too, and given if something is still left.

        Raises:
            Invalid, Forbidden: As `export`.
            BackendDown: It cannot be recorded that this was asked for: nothing was erased. Or the store went away midway.
        """
        owner = _owner(who, user_id)
        await self._flush()
        # Known before it begins, so that the intent names it: whatever dies then, one can see what became of it.
        erasure_id = self._erasures.fresh_id(who.tenant_id, owner)
        asked = await self._intend(who, owner, "gdpr.delete", "DeleteUserData", erasure_id)
        reach("erase.intent")
        work = asyncio.create_task(self._erase(who, owner, erasure_id, asked))
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)
        erasure = await asyncio.shield(work)
        if (draft := audit.draft()) is not None and draft.event is not None:
            outcome = "ok" if erasure.state == ERASED else "partial"
            resource = f"erasure/{erasure.id}"
            draft.event = draft.event._replace(timestamp=self._now(), outcome=outcome, resource=resource)
            draft.taken = erasure.state == ERASED and erasure.told
        return erasure

    async def certificate(self, who: Caller, erasure_id: str) -> Erasure:
        """The record of an erasure of one's own data, or with `admin` of anybody's in the tenant.

        Raises:
            Forbidden: The header names another user, and the caller is no admin.
            NotFound: There is no such record, or it is somebody else's.
            BackendDown: The store does not answer.
        """
        if who.named_user:
            _owner(who, "")  # whoever speaks for another must be allowed to
        found = await self._erasures.find(erasure_id)
        mine = found is not None and found.whose.tenant_id == who.tenant_id
        if found is not None and mine and not (who.anonymous or who.may("admin")):
            mine = self._erasures.lookup(who.tenant_id, who.user_id or "") == found.whose.lookup
        if found is None or not mine:
            raise NotFound("There is no such certificate", param="id")
        return found

    async def _erase(self, who: Caller, owner: str, erasure_id: str, asked: AuditEvent) -> Erasure:
        audit.begin(None)  # what ends with the user is recorded by itself; the outcome of the call is still to be
        if who.any_tenant:
            # First, because the record of an erasure is a tenant's and knows no name: nobody would come back to them.
            await self._end_everywhere(owner)
        erasure = await self._erasures.begin(who.tenant_id, owner, who.key_id, self._now(), erasure_id=erasure_id)
        reach("erase.begun")
        made = await self._eraser.erase(erasure, asked)
        for earlier in await self._erasures.pending(erasure.whose.lookup):
            if earlier.id != erasure.id and earlier.state != ERASED:
                again = await self._eraser.erase(earlier, asked)
                made = again if made.state == ERASED else made
        return made

    async def _intend(self, who: Caller, owner: str, event_type: str, action: str, erasure_id: str = "") -> AuditEvent:
        """Records that something is asked for, before it is done; gives the event of the call.

        Raises:
            BackendDown: It cannot be recorded.
        """
        drafted = audit.draft()
        event = drafted.event if drafted is not None else None
        if event is None:  # a command on the machine itself
            event = AuditEvent(
                uuid7(), self._now(), event_type, who.tenant_id, owner, "gdpr", action, "intent", who.key_id
            )
        if erasure_id:
            event = event._replace(resource=f"erasure/{erasure_id}", outlives=True)
        await self._log.append([event._replace(outcome="intent")])
        if drafted is not None and drafted.event is not None:
            drafted.event = event._replace(id=uuid7(), timestamp=self._now())  # the outcome comes behind it
        return event


def _owner(who: Caller, user_id: str) -> str:
    with contextlib.suppress(Forbidden):  # to act for another is not enough here, whether one may or not
        owner = who.owner(user_id)
        if who.anonymous or who.may("admin") or owner == who.user_id:
            return owner
    raise Forbidden("The data of another user needs the permission admin", metadata={"permission": "admin"})
