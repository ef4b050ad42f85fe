"""Consent: recorded, asked for, and what follows from it for memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.consent import check_purpose, withdrawn
from memoryos_server.domain.core.faults import Forbidden
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Subject, Subjects
from memoryos_server.domain.ports.consents import Consent, ConsentStore


class ConsentedSubjects:
    """The ports `Consents` and `Subjects`: whoever opens a subject here may keep something of it.

    Args:
        subjects: Who is known.
        store: What they agreed to.
        required: Whether nobody is remembered who did not agree to it; else everybody who did not object.
    """

    def __init__(self, subjects: Subjects, store: ConsentStore, *, required: bool = False) -> None:
        self._subjects = subjects
        self._store = store
        self._required = required

    async def allows(self, subject: Subject | None) -> bool:
        """Whether a subject, None for a person never heard of, may be remembered and recalled."""
        granted = None if subject is None else await self._store.processing(subject)
        return not self._required if granted is None else granted

    async def allowed(self, tenant_id: str, user_id: str) -> bool:
        """As `allows`, by name."""
        return await self.allows(await self._subjects.find(tenant_id, user_id))

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        """The subject, or None if the user was never heard of. Asks nothing: what is there may be read, and deleted."""
        return await self._subjects.find(tenant_id, user_id)

    async def by_id(self, subject_id: str) -> Subject | None:
        """The subject of an id, or None."""
        return await self._subjects.by_id(subject_id)

    async def open(self, tenant_id: str, user_id: str) -> Subject:
        """The subject, made if need be.

        Raises:
            Forbidden: reason `consent_withdrawn`: the person may not be remembered. None was made.
        """
        if not await self.allowed(tenant_id, user_id):
            raise withdrawn()
        return await self._subjects.open(tenant_id, user_id)


class ConsentService:
    """Records what people agree to.

    Args:
        subjects: Who is known.
        store: Where it is kept.
        now: The present time, UTC.
    """

    def __init__(self, subjects: Subjects, store: ConsentStore, *, now: Callable[[], datetime] = utc_now) -> None:
        self._subjects = subjects
        self._store = store
        self._now = now
        self._under_way: set[asyncio.Task[None]] = set()

    async def record(self, who: Caller, user_id: str, purpose: str, granted: bool) -> None:
        """Records a decision, with its audit event in one write. It holds from when this returns, on every replica.

        Raises:
            Invalid: A field is malformed.
            Forbidden: It is somebody else's, and the caller is no `admin`.
            BackendDown: It could not be recorded.
        """
        owner = _owner(who, user_id)
        decided = Consent(uuid7(), check_purpose(purpose), granted, self._now(), who.key_id)
        # A withdrawal must hold for somebody, too, of whom there is nothing yet.
        subject = await self._subjects.open(who.tenant_id, owner)
        draft = audit.draft()
        # A task of its own: whoever leaves, it is recorded what became of it.
        work = asyncio.create_task(self._record(subject, decided, draft))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        await asyncio.shield(work)

    def _ended(self, work: asyncio.Task[None]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # whoever has left does not ask for it

    async def _record(self, subject: Subject, decided: Consent, draft: audit.Draft | None) -> None:
        event = None if draft is None else draft.take()
        if draft is None or event is None:
            await self._store.record(subject, decided, None)
            return
        try:
            details = "granted" if decided.granted else "withdrawn"
            await self._store.record(subject, decided, event._replace(details=details))
        except Exception:
            draft.give_back()
            raise

    async def check(self, who: Caller, user_id: str, purpose: str) -> tuple[str, bool]:
        """Whose decision it is, and whether the person agrees; False if nothing was recorded.

        Raises:
            Invalid: A field is malformed.
            Forbidden: It is somebody else's, and the caller is no `admin`.
        """
        owner = _owner(who, user_id)
        check_purpose(purpose)
        subject = await self._subjects.find(who.tenant_id, owner)
        last = None if subject is None else await self._store.last(subject, purpose)
        return owner, last is not None and last.granted


def _owner(who: Caller, user_id: str) -> str:
    owner = who.owner(user_id)
    # `act_as` speaks for people in talk; what they agree to is another matter.
    if not who.anonymous and owner != who.user_id and not who.may("admin"):
        raise Forbidden("The consent of another user needs the permission admin", metadata={"permission": "admin"})
    return owner
