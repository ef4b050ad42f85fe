"""Typed memories: create, list, get, update, delete, search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Exists, Invalid, NotFound
from memoryos_server.domain.core.ids import derived_uuid, uuid7
from memoryos_server.domain.core.text import check_id, check_text
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memories.model import (
    DEFAULT_IMPORTANCE,
    KIND,
    Kept,
    Page,
    Results,
    changed,
    check_share,
    check_type,
    first_content,
    memory_of,
    new_record,
)
from memoryos_server.domain.memories.neighbours import Changes, Touch
from memoryos_server.domain.memories.search import Finder
from memoryos_server.domain.ports import Change, Record, RecordFilter, Subject, Subjects, Vectors
from memoryos_server.domain.ports.shield import UNSHIELDED, Shield

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100
DEFAULT_TOP_K = 5
MAX_TOP_K = 100
DELETED_AT_ONCE = 1000
UPDATABLE = ("content", "importance")


class MemoriesService:
    """A user's typed memories.

    Args:
        subjects: Who is known.
        vectors: The searchable side.
        changes: The way of changes.
        finder: Finds memories by meaning and words.
        touch: Counts accesses, or None.
        forget: Drops what is kept in passing of a user's memories, by tenant and user; called after deletions.
        shield: Looks at what is written down, and cleans it.
        now: The present time, UTC.
    """

    def __init__(
        self,
        subjects: Subjects,
        vectors: Vectors,
        changes: Changes,
        finder: Finder,
        touch: Touch | None = None,
        *,
        forget: Callable[[str, str], None] = lambda tenant_id, user_id: None,
        shield: Shield = UNSHIELDED,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Keeps its collaborators."""
        self._subjects = subjects
        self._vectors = vectors
        self._changes = changes
        self._finder = finder
        self._touch = touch
        self._forget = forget
        self._shield = shield
        self._now = now

    async def create(
        self,
        who: Caller,
        content: str,
        memory_type: str,
        *,
        importance: float | None = None,
        event_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Kept:
        """Keeps a memory; it is found when this returns. A repeated event_id gives the memory made first, as it is now.

        Args:
            who: Who calls.
            content: The text.
            memory_type: One of `TYPES`.
            importance: 0..1, or None for the default.
            event_id: Makes the call repeatable, or None.
            created_at: When it was first known, or None for now.

        Raises:
            Invalid: A field is malformed, or created_at is in the future.
            Exists: reason `event_id_conflict`: the event_id was used for other content, or what it made was deleted.
            BackendDown: The memory could not be kept.
        """
        check_text(content, "content")
        check_type(memory_type)
        share = check_share(DEFAULT_IMPORTANCE if importance is None else importance, "importance")
        if event_id is not None:
            check_id(event_id, "event_id")
        now = self._now()
        if created_at is not None and created_at > now:
            raise Invalid("created_at must not be in the future", param="created_at")
        owner = who.owner()
        await self._shield.look(who, [content], where="memory", param="content", owner=owner)
        content = self._shield.clean(content)
        subject = await self._subjects.open(who.tenant_id, owner)
        memory_id = uuid7() if event_id is None else derived_uuid(subject.tenant_id, subject.id, KIND, event_id)
        if event_id is not None and (known := await self._known(subject, memory_id)) is not None:
            if (first_content(known), known.type) != (content, memory_type):
                raise Exists("The event_id was used for another memory", reason="event_id_conflict", param="event_id")
            _say_repeated()
            return Kept(memory_of(known), duplicate=True)
        record = new_record(memory_id, content, memory_type, share, created_at or now)

        async def make() -> Change:
            return Change(put=(record,), made_once="" if event_id is None else memory_id)

        return Kept(memory_of(record), await self._changes.change(subject, make, reads=False))

    async def page(
        self,
        who: Caller,
        *,
        memory_type: str | None = None,
        page: int | None = None,
        page_size: int | None = None,
    ) -> Page:
        """A page of memories, newest first.

        Raises:
            Invalid: A field is out of range.
            BackendDown: The searchable side does not answer.
        """
        owner = who.owner()
        if memory_type is not None:
            check_type(memory_type)
        number = 1 if page is None else page
        size = DEFAULT_PAGE_SIZE if page_size is None else min(page_size, MAX_PAGE_SIZE)
        for value, param in ((number, "page"), (size, "page_size")):
            if value < 1:
                raise Invalid(f"{param} must be at least 1", param=param)
        subject = await self._subjects.find(who.tenant_id, owner)
        if subject is None:
            return Page((), 0, number, size)
        chosen = RecordFilter(KIND, type=memory_type)
        (records, total), lacking = await self._changes.level.read(
            lambda: self._vectors.page(subject, chosen, (number - 1) * size, size)
        )
        return Page([memory_of(record) for record in records], total, number, size, lacking)

    async def get(self, who: Caller, memory_id: str) -> Kept:
        """A memory.

        Raises:
            NotFound: There is no such memory, or it is somebody else's.
            BackendDown: The searchable side does not answer, or may lack it for now.
        """
        subject = await self._subjects.find(who.tenant_id, who.owner())
        record, lacking = await self._changes.level.read(lambda: self._record(subject, memory_id))
        return Kept(memory_of(record), lacking)

    async def update(
        self,
        who: Caller,
        memory_id: str,
        *,
        content: str | None = None,
        importance: float | None = None,
        mask: Sequence[str] | None = None,
    ) -> Kept:
        """Changes a memory's content, its importance, or both; equal values make no new version.

        Args:
            who: Who calls.
            memory_id: The memory.
            content: The new text, or None.
            importance: The new importance, or None.
            mask: The fields to change; None: those that are given.

        Raises:
            Invalid: A value is malformed, a field is not one of `UPDATABLE`, or there is nothing to change.
            NotFound: There is no such memory, or it is somebody else's.
            BackendDown: The change could not be kept.
        """
        given = {"content": content, "importance": importance}
        fields = [name for name in UPDATABLE if given[name] is not None] if mask is None else list(mask)
        for name in fields:
            if name not in given:
                raise Invalid(f"{name} cannot be changed; {' and '.join(UPDATABLE)} can", param=name)
            if given[name] is None:
                raise Invalid(f"{name} is to be changed and is missing", param=name)
        if not fields:
            raise Invalid("Give content, importance, or both", param="content")
        if "content" in fields and content is not None:
            check_text(content, "content")
        if "importance" in fields and importance is not None:
            check_share(importance, "importance")
        owner = who.owner()
        if content is not None and "content" in fields:
            await self._shield.look(who, [content], where="memory", param="content", owner=owner)
            content = self._shield.clean(content)
        subject = await self._subjects.find(who.tenant_id, owner)
        if subject is None:
            raise _unknown()
        made: list[Record] = []

        async def make() -> Change | None:
            record = await self._record(subject, memory_id, history=True)
            old = memory_of(record)
            text = content if content is not None and "content" in fields else old.content
            share = importance if importance is not None and "importance" in fields else old.importance
            if (text, share) == (old.content, old.importance):
                made[:] = [record]
                return None
            made[:] = [changed(record, text, share, self._now())]
            return Change(put=(made[0],))

        degraded = await self._changes.change(subject, make)
        return Kept(memory_of(made[0]), degraded)

    async def delete(self, who: Caller, memory_id: str) -> bool:
        """Deletes a memory and its history; gives whether that waits to be applied.

        Raises:
            NotFound: There is no such memory, or it is somebody else's.
            BackendDown: The deletion could not be kept.
        """
        subject = await self._subjects.find(who.tenant_id, who.owner())
        if subject is None:
            raise _unknown()

        async def make() -> Change:
            return Change(remove=((await self._record(subject, memory_id)).id,))

        degraded = await self._changes.change(subject, make)
        self._forget(subject.tenant_id, subject.user_id)
        return degraded

    async def delete_all(self, who: Caller, memory_type: str) -> tuple[int, bool]:
        """Deletes all memories of a type that there are now; gives how many, and whether that waits to be applied.

        Raises:
            Invalid: There is no such type.
            BackendDown: A deletion could not be kept; what was deleted before stays deleted.
        """
        check_type(memory_type)
        subject = await self._subjects.find(who.tenant_id, who.owner())
        if subject is None:
            return 0, False

        async def read() -> list[str]:
            return [record.id async for record in self._vectors.scan(subject, RecordFilter(KIND, type=memory_type))]

        ids = await self._changes.level.sure(read)
        deleted, degraded = 0, False
        for at in range(0, len(ids), DELETED_AT_ONCE):
            some = ids[at : at + DELETED_AT_ONCE]
            there: list[str] = []

            async def make(some: Sequence[str] = some, there: list[str] = there) -> Change | None:
                found = {record.id for record in await self._vectors.records(subject, some)}
                there[:] = [memory_id for memory_id in some if memory_id in found]
                return Change(remove=tuple(there)) if there else None

            degraded |= await self._changes.change(subject, make)
            deleted += len(there)
            self._forget(subject.tenant_id, subject.user_id)
        return deleted, degraded

    async def search(
        self,
        who: Caller,
        query: str,
        *,
        top_k: int | None = None,
        min_similarity: float | None = None,
        memory_type: str | None = None,
    ) -> Results:
        """The memories that have to do with a question, best first.

        Raises:
            Invalid: A field is out of range.
            BackendDown: The searchable side does not answer.
        """
        owner = who.owner()
        check_text(query, "query")
        most = DEFAULT_TOP_K if top_k is None else top_k
        if not 1 <= most <= MAX_TOP_K:
            raise Invalid(f"top_k must be 1..{MAX_TOP_K}", param="top_k")
        if min_similarity is not None:
            check_share(min_similarity, "min_similarity")
        if memory_type is not None:
            check_type(memory_type)
        subject = await self._subjects.find(who.tenant_id, owner)
        if subject is None:
            return Results(())
        found, lacking = await self._changes.level.read(
            lambda: self._finder.find(subject, query, most, types=(memory_type,), min_similarity=min_similarity or 0.0)
        )
        self._used(subject, [one.memory.id for one in found])
        return Results(found, lacking)

    async def _known(self, subject: Subject, memory_id: str) -> Record | None:
        try:
            found = await self._vectors.records(subject, [memory_id], history=True)
        except BackendDown:
            return None  # then the repeat is kept again, under the same id and version: it changes nothing
        return found[0] if found else None

    async def _record(self, subject: Subject | None, memory_id: str, *, history: bool = False) -> Record:
        found = await self._vectors.records(subject, [memory_id], history=history) if subject else []
        if not found or found[0].kind != KIND:
            raise _unknown()
        return found[0]

    def _used(self, subject: Subject, ids: Sequence[str]) -> None:
        if self._touch is not None and ids:
            self._touch.touch(subject, ids)


def _unknown() -> NotFound:
    return NotFound("There is no such memory", param="id")


def _say_repeated() -> None:
    draft = audit.draft()
    if draft is not None and draft.event is not None:
        draft.event = draft.event._replace(outcome="duplicate")
