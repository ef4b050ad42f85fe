"""Erasures as they are asked for: what the answer says, and what of it is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from memoryos_server.domain.admin.keys import Keeper, KeyService
from memoryos_server.domain.core import audit
from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.ports import ApiKey, Subject
from memoryos_server.domain.ports.privacy import ERASED, PARTIAL, Erasure, UserData, Whose
from memoryos_server.domain.privacy.data import Keys
from memoryos_server.domain.privacy.erasing import Eraser
from memoryos_server.domain.privacy.service import PrivacyService
from tests.domain.pipeline_support import until

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CALLER = Caller("acme", "boss", frozenset({"admin"}), "key_boss")


def lookup(tenant_id: str, user_id: str) -> str:
    return f"{tenant_id}/{user_id}"


class ListErasures:
    """Records of erasures in memory; who is known is erased by the first."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)
        self.kept: dict[str, Erasure] = {}
        self.ended: set[str] = set()
        self.ids = 0

    def lookup(self, tenant_id: str, user_id: str) -> str:
        return lookup(tenant_id, user_id)

    def fresh_id(self, tenant_id: str, user_id: str) -> str:
        self.ids += 1
        return f"{user_id}-{self.ids}"

    async def begin(self, tenant_id: str, user_id: str, actor: str, now: datetime, *, erasure_id: str = "") -> Erasure:
        subject_id = f"subject of {user_id}" if user_id in self.known else ""
        self.known.discard(user_id)
        made = Erasure(erasure_id, Whose(tenant_id, lookup(tenant_id, user_id), subject_id, now), actor, now)
        self.kept[made.id] = made
        return made

    async def find(self, erasure_id: str) -> Erasure | None:
        return self.kept.get(erasure_id)

    async def pending(self, lookup: str = "") -> list[Erasure]:
        return [one for one in self.waiting() if lookup in ("", one.whose.lookup)]

    def waiting(self) -> list[Erasure]:
        return [one for one in self.kept.values() if one.id not in self.ended]

    async def keep(self, erasure: Erasure, *, ended: bool = False) -> Erasure | None:
        self.kept[erasure.id] = made = replace(erasure, revision=erasure.revision + 1)
        self.ended |= {erasure.id} if ended else set()
        return made


class Away:
    """A category whose store can be away."""

    name = "episodes"

    def __init__(self) -> None:
        self.away = False
        self.erased: list[str] = []

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        nothing: tuple[Mapping[str, Any], ...] = ()
        for item in nothing:
            yield item

    async def erase(self, whose: Whose) -> int:
        if self.away and whose.subject_id:
            raise BackendDown("away")
        self.erased.append(whose.subject_id)
        return 1

    async def left(self, whose: Whose) -> int:
        return 0


class Log:
    """Events in a list, each id once."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.away = False

    async def append(self, events: Sequence[AuditEvent]) -> None:
        if self.away:
            raise BackendDown("away")
        self.events += [event for event in events if event.id not in {one.id for one in self.events}]

    def told(self) -> list[tuple[str, str, str]]:
        """What is recorded of erasures."""
        mine = [event for event in self.events if event.event_type == "gdpr.delete"]
        assert all(event.outlives for event in mine)
        return [(event.outcome, event.resource, event.user_id) for event in mine]


class NoFiles:
    async def compact(self) -> Mapping[str, str]:
        return {}


class OneKey:
    """A store with one key of ann's."""

    def __init__(self) -> None:
        self.keys = [ApiKey("key_ann", "ann", "acme", frozenset({"memory"}), "", NOW, None)]

    async def list(self) -> Sequence[ApiKey]:
        return list(self.keys)

    async def look(self, key_or_id: str) -> ApiKey | None:
        return next((key for key in self.keys if key.id == key_or_id), None)

    async def revoke(self, key_id: str, *, while_there: Sequence[str] = ()) -> ApiKey | None:
        return self.keys.pop() if self.keys else None


def eraser_of(erasures: ListErasures, log: Log, *data: UserData) -> Eraser:
    return Eraser(
        erasures,
        data,
        NoFiles(),
        log,
        forget=lambda whose: None,
        settle_seconds=0.0,
        backoff_seconds=0.01,
        now=lambda: NOW,
    )


class Nobody:
    """Subjects, of whom none is known."""

    async def find(self, tenant_id: str, user_id: str) -> Subject | None:
        return None


class Falling(Away):
    """A category that is read while the searchable side is restarted and made good again."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    async def export(self, whose: Whose, subject: Subject | None) -> AsyncIterator[Mapping[str, Any]]:
        yield {"content": "what was there before"}
        self.level.fall()
        self.level.reach()


def service(erasures: ListErasures, log: Log, *data: UserData, level: Level | None = None) -> PrivacyService:
    eraser = eraser_of(erasures, log, *data)

    async def profile(subject: Subject) -> str:
        return ""

    async def nobodys_keys(user_id: str) -> None:
        pass

    async def nothing() -> None:
        pass

    side = level or Level()
    subjects: Any = Nobody()
    return PrivacyService(subjects, data, erasures, eraser, log, profile, nobodys_keys, side, nothing, now=lambda: NOW)


async def test_export_when_something_may_be_missing_then_refused_and_nothing_is_recorded() -> None:
    level, log = Level(down=lambda: True), Log()
    privacy = service(ListErasures(), log, Away(), level=level)
    level.fall()
    with pytest.raises(BackendDown):
        await privacy.export(CALLER, "ann")
    assert log.events == []
    level.reach()
    assert '"manifest":' in "".join([piece async for piece in await privacy.export(CALLER, "ann")])


async def test_export_when_something_may_have_been_missing_midway_then_it_has_no_end() -> None:
    level = Level()
    privacy = service(ListErasures(), Log(), Falling(level), level=level)
    pieces: list[str] = []

    async def take() -> None:
        async for piece in await privacy.export(CALLER, "ann"):
            pieces.append(piece)

    with pytest.raises(BackendDown):
        await take()
    assert "manifest" not in "".join(pieces)


async def test_erase_when_an_earlier_one_is_not_done_then_it_is_tried_again_and_ok_only_once_all_is_gone() -> None:
    erasures, episodes = ListErasures("ann", "bob"), Away()
    privacy = service(erasures, Log(), episodes)
    episodes.away = True
    first = await privacy.erase(CALLER, "ann")
    theirs = await privacy.erase(CALLER, "bob")
    assert [first.state, theirs.state] == [PARTIAL, PARTIAL]
    second = await privacy.erase(CALLER, "ann")
    assert (second.id, second.state, second.attempts) == (first.id, PARTIAL, 2)
    assert second.errors == ["episodes: away"]
    episodes.away = False
    third = await privacy.erase(CALLER, "ann")
    assert third.state == ERASED
    assert erasures.kept[first.id].state == ERASED
    assert "subject of ann" in episodes.erased
    assert erasures.kept[theirs.id].state == PARTIAL, "of others nothing is tried"


async def test_erase_when_the_user_has_a_key_then_the_outcome_of_the_call_is_still_to_be_recorded() -> None:
    log, store = Log(), OneKey()
    keys = KeyService(store, log)  # type: ignore[arg-type]  # no more of it is used

    async def revoke(key_id: str) -> object:
        return await keys.revoke(key_id, Keeper("erasure", every=True))

    privacy = service(ListErasures("ann"), log, Keys(store, revoke, lookup))  # type: ignore[arg-type]  # as above
    event = AuditEvent("id", NOW, "gdpr.delete", "acme", "ann", "", "DeleteUserData", "ok", "key_boss")
    draft = audit.begin(event)
    made = await privacy.erase(CALLER, "ann")
    assert (made.state, store.keys) == (ERASED, [])
    assert [(one.event_type, one.outcome) for one in log.events] == [
        ("gdpr.delete", "intent"),
        ("key.revoke", "intent"),
        ("key.revoke", "ok"),
        ("gdpr.delete", "ok"),
    ]
    assert log.told() == [("intent", f"erasure/{made.id}", "ann"), ("ok", f"erasure/{made.id}", "ann")]
    assert draft.taken
    assert draft.event is not None
    assert (draft.event.outcome, draft.event.resource) == ("ok", f"erasure/{made.id}")


async def ended(erasures: ListErasures, log: Log, *data: UserData) -> None:
    """What another server, or the next start, does until nothing waits any more."""
    async with eraser_of(erasures, log, *data):
        await until(lambda: not erasures.waiting())


async def test_eraser_when_it_completes_what_was_left_open_then_it_records_that_once() -> None:
    erasures, log, episodes = ListErasures("ann"), Log(), Away()
    await erasures.begin("acme", "ann", "key_boss", NOW, erasure_id="left")
    await ended(erasures, log, episodes)
    assert log.told() == [("ok", "erasure/left", "")]
    assert [(one.tenant_id, one.actor) for one in log.events] == [("acme", "key_boss")]
    # Recorded, and not kept that it is: done again, and there is one event.
    erasures.kept["left"] = replace(erasures.kept["left"], told=False)
    erasures.ended.clear()
    await ended(erasures, log, episodes)
    assert log.told() == [("ok", "erasure/left", "")]
    assert erasures.kept["left"].told


async def test_erase_when_something_is_left_then_who_completes_it_records_that_all_is_gone() -> None:
    erasures, log, episodes = ListErasures("ann"), Log(), Away()
    episodes.away = True
    draft = audit.begin(AuditEvent("id", NOW, "gdpr.delete", "acme", "ann", "", "DeleteUserData", "ok", "key_boss"))
    made = await service(erasures, log, episodes).erase(CALLER, "ann")
    assert draft.event is not None
    assert (draft.taken, draft.event.outcome, draft.event.resource) == (False, "partial", f"erasure/{made.id}")
    episodes.away = False
    await ended(erasures, log, episodes)
    assert log.told() == [("intent", f"erasure/{made.id}", "ann"), ("ok", f"erasure/{made.id}", "")]


async def test_erase_when_its_end_cannot_be_recorded_then_it_is_once_that_works_and_nothing_ends_before() -> None:
    erasures, log, episodes = ListErasures("ann"), Log(), Away()
    await erasures.begin("acme", "ann", "key_boss", NOW, erasure_id="left")
    log.away = True
    async with eraser_of(erasures, log, episodes):
        await until(lambda: erasures.kept["left"].state == ERASED)
        await asyncio.sleep(0.1)
        assert erasures.waiting() == [erasures.kept["left"]]
        log.away = False
        await until(lambda: not erasures.waiting())
    assert log.told() == [("ok", "erasure/left", "")]
