"""Add, retrieve, history: what an application asks of a user's memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from memoryos_server.domain.core import audit
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.consent import WITHDRAWN
from memoryos_server.domain.core.conversation import NewTurn
from memoryos_server.domain.core.faults import BackendDown, Exists, Invalid, NotFound, Stale
from memoryos_server.domain.core.ids import derived_uuid, kept_ids, uuid7
from memoryos_server.domain.core.text import check_id, check_session, check_text, turn_tokens
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.memory.currency import Ranked, current_first, instead_of
from memoryos_server.domain.memory.derived import Derived, DerivedRecall, Topic, Version, packed
from memoryos_server.domain.memory.knowledge import Belief
from memoryos_server.domain.memory.pipeline import Pipeline
from memoryos_server.domain.ports import Acceptance, Subject, Subjects, Turn, Turns, Vectors
from memoryos_server.domain.ports.consents import EVERYBODY, Consents
from memoryos_server.domain.ports.shield import UNSHIELDED, Shield

MAX_LIMIT = 1000
SHORT_TERM = 20
SETTLE_SECONDS = 0.1

ROLES = ("user", "assistant", "system")


@dataclass(frozen=True, slots=True)
class Added:
    """Where a turn is kept.

    Attributes:
        event_id: The id given, or the one made.
        memory_id: The kept turn's id.
        duplicate: It was kept before; nothing was written.
        degraded: It is durable but waits to become searchable, because a store is down.
    """

    event_id: str
    memory_id: str
    duplicate: bool
    degraded: bool = False


class Recalled(Protocol):
    """What the recall engine found."""

    @property
    def ranked(self) -> Sequence[Ranked]:
        """Best first."""

    @property
    def calibration(self) -> str:
        """How raw scores became 0..1; "" unless explained."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What a user's memory answers.

    Attributes:
        episodes: Best first.
        short_term: The newest turns, oldest first.
        calibration: How raw scores became 0..1; "" unless explained.
        degraded: Something may be missing, because a store is down or just back.
        mid_term: Segments that have to do with the question, best first.
        profile: Who the user is, in a short text; "" if nothing is known.
        knowledge: Facts: those that have to do with the question first, then those that are surest.
        outdated: Ids of those episodes that say what is no longer believed.
        withheld: Why memory is not used, as a reason code; "" where it is.
    """

    episodes: Sequence[Ranked] = ()
    short_term: Sequence[Turn] = ()
    calibration: str = ""
    degraded: bool = False
    mid_term: Sequence[Topic] = ()
    profile: str = ""
    knowledge: Sequence[Belief] = ()
    outdated: frozenset[str] = frozenset()
    withheld: str = ""


class Recall(Protocol):
    """The recall engine, as far as this room knows it."""

    async def recall(
        self,
        subject: Subject,
        query: str,
        limit: int,
        *,
        min_score: float,
        max_tokens: int | None,
        as_of: datetime | None,
        explain: bool,
    ) -> Recalled:
        """The subject's relevant turns, best first."""


class Touched(Protocol):
    """Counts what is used."""

    def touch(self, subject: Subject, ids: Sequence[str]) -> None:
        """Counts one use of each memory; returns at once."""


class MemoryService:
    """A user's memory.

    Args:
        subjects: Who is known.
        turns: Short-term memory.
        vectors: The searchable side.
        pipeline: Keeps turns.
        recall: Finds them.
        derived: Finds segments and facts; None: there are none.
        heat: Counts what is returned; None: nothing is counted.
        consents: Who may be recalled.
        shield: Looks at what is added, and cleans it.
    """

    def __init__(
        self,
        subjects: Subjects,
        turns: Turns,
        vectors: Vectors,
        pipeline: Pipeline,
        recall: Recall,
        *,
        derived: DerivedRecall | None = None,
        heat: Touched | None = None,
        consents: Consents = EVERYBODY,
        shield: Shield = UNSHIELDED,
    ) -> None:
        self._subjects = subjects
        self._turns = turns
        self._vectors = vectors
        self._pipeline = pipeline
        self._recall = recall
        self._derived = derived
        self._heat = heat
        self._consents = consents
        self._shield = shield
        self._under_way: set[asyncio.Task[tuple[list[Acceptance], bool]]] = set()

    async def add(self, who: Caller, user_id: str, turn: NewTurn) -> Added:
        """Keeps one turn; it is searchable when this returns.

        Raises:
            Invalid: A field is malformed, or (reason `injection_suspected`) the content is refused.
            Exists: reason `event_id_conflict`: the event_id was used for other content.
            Forbidden: The caller may not act for the user, or (reason `consent_withdrawn`) the user may not be remembered.
            BackendDown: The turn could not be kept.
        """
        owner = who.owner(user_id)
        _check(turn)
        await self._shield.look(who, [turn.content], where="memory", param="content", owner=owner)
        return (await self.remember(who.tenant_id, owner, [turn]))[0]

    async def remember(
        self, tenant_id: str, user_id: str, turns: Sequence[NewTurn], *, subject_id: str = ""
    ) -> list[Added]:
        """Keeps turns of one user together, all or none; with `subject_id` only if the user is still that person.

        Raises:
            Stale: The user is another person by now.
            As `add`.
        """
        for new in turns:
            _check(new)
        if subject_id:
            return await self._remembered(await self._same(tenant_id, user_id, subject_id), turns)
        try:
            return await self._remembered(await self._subjects.open(tenant_id, user_id), turns)
        except Stale:
            # Erased while this was under way: it comes after that, so it is kept, as somebody new's.
            return await self._remembered(await self._subjects.open(tenant_id, user_id), turns)

    async def _same(self, tenant_id: str, user_id: str, subject_id: str) -> Subject:
        known = await self._subjects.find(tenant_id, user_id)
        if known is not None and known.id == subject_id:  # else none is made
            known = await self._subjects.open(tenant_id, user_id)  # whoever may not be remembered is refused
        if known is None or known.id != subject_id:
            raise Stale("The user's data was erased meanwhile")
        return known

    async def _remembered(self, subject: Subject, turns: Sequence[NewTurn]) -> list[Added]:
        turns = [replace(new, content=self._shield.clean(new.content)) for new in turns]
        made = [_turn(subject, new) for new in turns]
        draft = audit.draft()
        if known := await self._known(subject, turns, made):
            _say_repeated(draft)
            return known
        # A task of its own: whoever leaves, what became of the write is known to somebody, who sees that it is recorded.
        work = asyncio.create_task(self._written(subject, made, draft))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        accepted, late = await asyncio.shield(work)
        return [Added(turn.event_id, a.memory_id, a.duplicate, late) for turn, a in zip(made, accepted, strict=True)]

    async def _written(
        self, subject: Subject, made: Sequence[Turn], draft: audit.Draft | None
    ) -> tuple[list[Acceptance], bool]:
        event = None if draft is None else draft.take()
        try:
            accepted, late = await self._pipeline.accept(subject, made, event)
        except Exception:
            _give_back(draft, event)
            raise
        if all(a.duplicate for a in accepted):
            _say_repeated(draft)
            _give_back(draft, event)
        return accepted, late

    def _ended(self, work: asyncio.Task[tuple[list[Acceptance], bool]]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # whoever has left does not ask for it

    async def _known(self, subject: Subject, turns: Sequence[NewTurn], made: Sequence[Turn]) -> list[Added] | None:
        # Idempotency marks last a day; after that an existing episode still wins and is never overwritten.
        named = [turn.id for new, turn in zip(turns, made, strict=True) if new.event_id is not None]
        if not named:
            return None
        try:
            found = {turn.id: turn for turn in await self._vectors.get(subject, named)}
        except BackendDown:
            return None
        for turn in made:
            old = found.get(turn.id)
            if old and (old.role, old.content, old.session_id, old.name) != (
                turn.role,
                turn.content,
                turn.session_id,
                turn.name,
            ):
                raise Exists(
                    "event_id was used before with other content", reason="event_id_conflict", param="event_id"
                )
        if len(found) < len(made):
            return None
        return [Added(turn.event_id, turn.id, True) for turn in made]

    async def retrieve(
        self,
        who: Caller,
        user_id: str,
        query: str,
        *,
        limit: int | None = None,
        min_score: float | None = None,
        max_tokens: int | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
    ) -> Retrieved:
        """What the user's memory has to say to a question; empty for a user never heard of, or who may not be recalled.

        Raises:
            Invalid: A field is out of range.
            Forbidden: The caller may not act for the user.
            BackendDown: Neither side of memory answers.
        """
        owner = who.owner(user_id)
        check_text(query, "query")
        if limit is not None and not 1 <= limit <= MAX_LIMIT:
            raise Invalid(f"limit must be 1..{MAX_LIMIT}", param="limit")
        if min_score is not None and not 0 <= min_score <= 1:
            raise Invalid("min_score must be 0..1", param="min_score")
        if max_tokens is not None and max_tokens < 1:
            raise Invalid("max_tokens must be at least 1", param="max_tokens")
        found = await self.recall(
            who.tenant_id,
            owner,
            query,
            limit=limit or 10,
            min_score=min_score or 0.0,
            max_tokens=max_tokens,
            as_of=as_of,
            explain=explain,
        )
        used = [topic.id for topic in found.mid_term] + [fact.id for fact in found.knowledge]
        if self._heat is not None and used:
            subject = await self._subjects.find(who.tenant_id, owner)
            if subject is not None:
                self._heat.touch(subject, used)
        return found

    async def recall(
        self,
        tenant_id: str,
        user_id: str,
        query: str,
        *,
        limit: int,
        min_score: float = 0.0,
        max_tokens: int | None = None,
        as_of: datetime | None = None,
        explain: bool = False,
    ) -> Retrieved:
        """As `retrieve`, for values that are known to be good; counts nothing as used.

        `max_tokens` is spent on episodes first, then on profile, knowledge and mid-term memory.

        Raises:
            BackendDown: Neither side of memory answers.
        """
        subject = await self._subjects.find(tenant_id, user_id)
        if not await self._consents.allows(subject):
            return Retrieved(withheld=WITHDRAWN)
        if subject is None:
            return Retrieved()
        await self._pipeline.settle(subject, SETTLE_SECONDS)
        level = self._pipeline.level
        mark = level.mark()

        async def search() -> Recalled:
            return await self._recall.recall(
                subject,
                query,
                limit,
                min_score=min_score,
                max_tokens=max_tokens,
                as_of=as_of,
                explain=explain,
            )

        async def derive() -> Derived:
            if self._derived is None:
                return Derived()
            return await self._derived.recall(subject, query, as_of=as_of)

        found, recent, derived = await asyncio.gather(
            search(), self._turns.recent(subject, SHORT_TERM), derive(), return_exceptions=True
        )
        for result in (found, recent, derived):
            if isinstance(result, BaseException) and not isinstance(result, BackendDown):
                raise result
        if isinstance(found, BaseException) and isinstance(recent, BaseException):
            raise found
        both = not isinstance(found, BaseException) and not isinstance(recent, BaseException)
        if both and level.lacked_since(mark) and await level.caught_up():
            mark = level.mark()
            # After a restart the searchable side lacked, for a moment, what was not durable there yet.
            found, derived = await asyncio.gather(search(), derive())
        short_term = [] if isinstance(recent, BaseException) else recent
        if as_of is not None:
            short_term = [turn for turn in short_term if turn.timestamp <= as_of]
        if isinstance(found, BaseException):
            return Retrieved((), short_term, degraded=True)
        degraded = isinstance(recent, BaseException) or isinstance(derived, BaseException)
        degraded = degraded or level.lacked_since(mark)
        if isinstance(derived, BaseException):
            derived = Derived()
        episodes = (await self._current(subject, found.ranked, derived.outdated, max_tokens))[:limit]
        if max_tokens is not None:
            spent = sum(_tokens(hit.turn) for hit in episodes)
            derived = packed(derived, max(0, max_tokens - spent))
        return Retrieved(
            episodes=episodes,
            short_term=short_term,
            calibration=found.calibration,
            degraded=degraded,
            mid_term=derived.topics,
            profile=derived.profile,
            knowledge=derived.knowledge,
            outdated=frozenset(hit.turn.id for hit in episodes if hit.turn.id in derived.outdated),
        )

    async def _current(
        self, subject: Subject, ranked: Sequence[Ranked], outdated: Mapping[str, Sequence[str]], most: int | None
    ) -> Sequence[Ranked]:
        """The found turns, those that are believed before those they outdate, fetched if they were not found themselves."""
        more: list[Turn] = []
        if missing := instead_of(ranked, outdated):
            with contextlib.suppress(BackendDown):  # what was found is an answer without it
                more = await self._vectors.get(subject, missing)
            if most is not None:
                left = most - sum(_tokens(hit.turn) for hit in ranked)
                more = [turn for turn in more if _tokens(turn) <= left][:1]
        return current_first(ranked, outdated, more)

    async def history(self, who: Caller, memory_id: str) -> list[Version]:
        """The versions of a memory, newest first. A turn has one: it is never changed.

        Raises:
            NotFound: There is no such memory, or it is somebody else's.
            BackendDown: The searchable side does not answer, or may lack it for now.
        """
        versions, _ = await self._pipeline.level.read(lambda: self._versions(who, memory_id))
        return versions

    async def _versions(self, who: Caller, memory_id: str) -> list[Version]:
        subject = await self._owner_of(who, memory_id)
        found = await self._vectors.get(subject, [memory_id]) if subject else []
        if found:
            return [Version(1, turn.content, turn.timestamp) for turn in found]
        if subject and self._derived:
            for kept in kept_ids(subject.id, memory_id):
                if (versions := await self._derived.history(subject, kept)) is not None:
                    return versions
        raise NotFound("There is no such memory", param="memory_id")

    async def _owner_of(self, who: Caller, memory_id: str) -> Subject | None:
        if not who.anonymous or who.named_user:
            return await self._subjects.find(who.tenant_id, who.owner())
        # With auth off and nobody named, an id alone is enough within the tenant, as the documentation's examples show it.
        owner = await self._vectors.owner(memory_id)
        subject = await self._subjects.by_id(owner) if owner else None
        return subject if subject and subject.tenant_id == who.tenant_id else None


def _tokens(turn: Turn) -> int:
    return turn_tokens(turn.name, turn.content)


def _say_repeated(draft: audit.Draft | None) -> None:
    if draft is not None and draft.event is not None:
        draft.event = draft.event._replace(outcome="duplicate")


def _give_back(draft: audit.Draft | None, event: audit.AuditEvent | None) -> None:
    if draft is not None and event is not None:
        draft.give_back()


def _check(new: NewTurn) -> None:
    if new.role not in ROLES:
        raise Invalid(f"role must be one of {', '.join(ROLES)}", param="role")
    check_text(new.content, "content")
    for value, param in ((new.event_id, "event_id"), (new.name or None, "name")):
        if value is not None:
            check_id(value, param)
    if new.session_id:
        check_session(new.session_id, "session_id")


def _turn(subject: Subject, new: NewTurn) -> Turn:
    event_id = new.event_id or uuid7()
    return Turn(
        id=derived_uuid(subject.tenant_id, subject.id, event_id),
        event_id=event_id,
        session_id=new.session_id,
        role=new.role,
        name=new.name,
        content=new.content,
        timestamp=new.timestamp or utc_now(),
    )
