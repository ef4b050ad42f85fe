"""What a withdrawal of consent does to accepted work, and to a chat."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from memoryos.settings import MemorySettings
from memoryos_server.domain.chat.model import ChatRequest, MemoryMode
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.consent import PROCESSING
from memoryos_server.domain.core.faults import BackendDown, Forbidden, Invalid
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.consents import Consent
from memoryos_server.domain.security.consents import ConsentService
from tests.domain.chat_support import ANYONE, ListMemory
from tests.domain.pipeline_support import Opened, WordIndexer, opened_at, until


class Decisions:
    """Who may be remembered: all but those in `no`."""

    def __init__(self) -> None:
        self.no: set[str] = set()

    async def allows(self, subject: Subject | None) -> bool:
        return subject is None or subject.user_id not in self.no


async def _drained(opened: Opened) -> bool:
    return not await opened.redis.queue.depth()


async def test_turns_when_consent_is_withdrawn_while_they_wait_then_they_end_as_rejected_and_are_not_indexed(
    tmp_path: Path,
) -> None:
    decisions, indexer = Decisions(), WordIndexer()
    async with opened_at(tmp_path, mode="async", indexer=indexer, consents=decisions) as opened:
        indexer.gate = asyncio.Event()  # nothing is indexed before it opens
        await opened.say("the first waits")
        await opened.say("heron", "grebe")
        await opened.say("bittern", user="ben")
        decisions.no.add("ann")
        indexer.gate.set()
        await until(lambda: _drained(opened))
        for name in ("heron", "grebe"):
            state = await opened.state(name)
            assert (state.state, state.reason) == ("rejected", "consent_withdrawn")
        assert (await opened.state("bittern", "ben")).state == "stored"
        ann = await opened.subject()
        found = {turn.content for turn in await opened.vectors.said(ann, "s", 0, 100)}
        assert not found & {"heron", "grebe"}
        assert not {"heron", "grebe"} & set(opened.digest.of("ann"))
        # Decided otherwise again, new ones are kept; what was rejected stays so.
        decisions.no.clear()
        await opened.say("avocet")
        await until(lambda: _drained(opened))
        assert (await opened.state("avocet")).state == "stored"
        assert (await opened.state("heron")).state == "rejected"


async def test_turns_when_consent_is_withdrawn_before_a_restart_then_what_was_open_is_not_indexed(
    tmp_path: Path,
) -> None:
    indexer = WordIndexer(refuses={"heron": BackendDown("not now")})
    async with opened_at(tmp_path, mode="async", indexer=indexer, backoff=3600.0) as opened:
        await opened.say("heron")
    decisions = Decisions()
    decisions.no.add("ann")
    async with opened_at(tmp_path, mode="async", consents=decisions) as opened:
        await until(lambda: _drained(opened))
        state = await opened.state("heron")
        assert (state.state, state.reason) == ("rejected", "consent_withdrawn")
        assert opened.indexer.indexed == []


async def test_segments_when_consent_is_withdrawn_then_none_are_made_until_it_is_given_again(tmp_path: Path) -> None:
    decisions = Decisions()
    async with opened_at(tmp_path, consents=decisions, short_term_turns=2) as opened:
        await opened.say("heron")
        await until(lambda: _drained(opened))
        decisions.no.add("ann")
        # Accepted before the withdrawal, as far as the ledger knows, and settled after it.
        ann = await opened.subject()
        await opened.redis.client.run("ZADD", (await opened.redis.subjects.scope(ann)).partition.due, 1, ann.id)
        opened.pipeline._worker.wake(ann)

        async def put_off() -> bool:
            due = (await opened.redis.subjects.scope(ann)).partition.due
            score = await opened.redis.client.run("ZSCORE", due, ann.id)
            return score is not None and float(score) > utc_now().timestamp() + 3000

        await until(put_off)
        assert opened.bundles.took == []
        assert len(await opened.redis.queue.fresh(ann)) == 1


@pytest.mark.parametrize("mode", [MemoryMode.ON, MemoryMode.READ, MemoryMode.WRITE])
@pytest.mark.parametrize("allowed", [True, False, None])
async def test_chat_when_consent_decides_then_memory_is_used_only_with_it(
    mode: MemoryMode, allowed: bool | None
) -> None:
    memory = ListMemory()
    memory.say("My sister Ingrid keeps bees.")

    async def may_use(tenant_id: str, user_id: str) -> bool:
        assert (tenant_id, user_id) == ("default", "default_user")
        if allowed is None:
            raise BackendDown("gone")
        return allowed

    chat = ChatService(memory, None, MemorySettings(), may_use=may_use)
    messages = [{"role": "user", "content": "Who keeps bees?"}]
    request = ChatRequest(json.dumps({"model": "memoryos/recall", "messages": messages}), memory=mode)
    if allowed is None and mode is not MemoryMode.WRITE:
        memory.failure = BackendDown("gone")
        with pytest.raises(BackendDown):
            await chat.complete(ANYONE, request)
        return
    answer = await chat.complete(ANYONE, request)
    if allowed is False:
        assert (memory.recalls, memory.entered.is_set()) == (0, False)
        assert (answer.memory.remembered, answer.memory.reason) == ("false", "consent_withdrawn")
        assert answer.memory.injected == ()
        assert b"Ingrid" not in answer.body
        assert json.loads(answer.body)["memoryos"]["reason"] == "consent_withdrawn"
    else:
        assert answer.memory.reason == ""
        assert "reason" not in json.loads(answer.body)["memoryos"]
        assert (memory.recalls > 0) == (mode is not MemoryMode.WRITE)
        assert answer.memory.remembered == ("false" if mode is MemoryMode.READ else "true")


@pytest.mark.parametrize("known", ["a-subject", ""])
async def test_chat_when_it_begins_then_it_is_noted_whose_its_turns_are(known: str) -> None:
    memory, names = ListMemory(), [known, "somebody-new"]

    async def known_as(tenant_id: str, user_id: str) -> str:
        assert (tenant_id, user_id) == ("default", "default_user")
        return names.pop(0)

    chat = ChatService(memory, None, MemorySettings(), known_as=known_as)
    messages = [{"role": "user", "content": "Who keeps bees?"}]
    answer = await chat.complete(ANYONE, ChatRequest(json.dumps({"model": "memoryos/recall", "messages": messages})))
    assert (answer.memory.remembered, memory.subjects) == ("true", [known])


async def test_chat_when_memory_is_off_then_consent_is_not_asked() -> None:
    async def may_use(tenant_id: str, user_id: str) -> bool:
        raise AssertionError("asked")

    chat = ChatService(ListMemory(), None, MemorySettings(), may_use=may_use)
    body = json.dumps({"model": "memoryos/recall", "messages": [{"role": "user", "content": "Hi"}]})
    answer = await chat.complete(ANYONE, ChatRequest(body, memory=MemoryMode.OFF))
    assert answer.memory.reason == ""


def _key(user: str, *permissions: str) -> Caller:
    return Caller("acme", user, frozenset(permissions), "key_1")


async def test_consent_service_when_asked_then_oneself_needs_security_and_others_admin(tmp_path: Path) -> None:
    async with opened_at(tmp_path) as opened:
        service = ConsentService(opened.redis.subjects, opened.redis.consents)
        ann, agent, admin = _key("ann", "security"), _key("bot", "security", "act_as"), _key("root", "admin")
        assert await service.check(ann, "", PROCESSING) == ("ann", False)
        await service.record(ann, "", PROCESSING, True)
        await service.record(admin, "ben", "analytics", True)
        assert await service.check(ann, "ann", PROCESSING) == ("ann", True)
        assert await service.check(admin, "ann", PROCESSING) == ("ann", True)
        assert await service.check(admin, "ben", PROCESSING) == ("ben", False)
        assert await service.check(admin, "ben", "analytics") == ("ben", True)
        for who in (ann, agent):
            with pytest.raises(Forbidden):
                await service.record(who, "ben", PROCESSING, False)
            with pytest.raises(Forbidden):
                await service.check(who, "ben", "analytics")
        assert await service.check(admin, "ben", "analytics") == ("ben", True)
        for bad in ("", "Data", "a b", "x" * 65, "p\n", "数据"):
            with pytest.raises(Invalid) as wrong:
                await service.record(ann, "", bad, True)
            assert wrong.value.param == "purpose"
        assert len(await opened.redis.consents.history(await opened.redis.subjects.open("acme", "ann"))) == 1


async def test_decisions_when_recorded_then_they_say_who_and_when(tmp_path: Path) -> None:
    async with opened_at(tmp_path) as opened:
        service = ConsentService(opened.redis.subjects, opened.redis.consents)
        await service.record(_key("ann", "security"), "", "analytics", False)
        (kept,) = await opened.redis.consents.history(await opened.redis.subjects.open("acme", "ann"))
        assert isinstance(kept, Consent)
        assert (kept.purpose, kept.granted, kept.actor) == ("analytics", False, "key_1")
        assert abs((utc_now() - kept.recorded_at).total_seconds()) < 60
        assert kept.id != uuid7()
