"""Consent in real stores: durable, sealed, with history, gone with its person, and checked by the writes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.consent import PROCESSING
from memoryos_server.domain.core.faults import BackendDown, Forbidden, Stale
from memoryos_server.domain.core.ids import derived_uuid, uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Change, Record, Subject
from memoryos_server.domain.ports.consents import Consent
from memoryos_server.domain.security.consents import ConsentedSubjects
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import Partition
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, erase, losing_answers, said, until


def decided(granted: bool, purpose: str = PROCESSING) -> Consent:
    return Consent(uuid7(), purpose, granted, utc_now(), "key_1")


def event(name: str = "x") -> AuditEvent:
    return AuditEvent(name, utc_now(), "consent.record", "acme", "ann", "consent/p", "RecordConsent", "ok", "key_1")


def memory(subject: Subject) -> Record:
    now = utc_now()
    return Record(derived_uuid(subject.id, "m"), "memory", 1, "Ann keeps bees.", "fact", now, now, now)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """The commands that go to the store."""
    sent: list[tuple[Any, ...]] = []
    run, batch = Client.run, Client.batch

    async def counting_run(self: Client, *command: Any) -> Any:
        sent.append(command)
        return await run(self, *command)

    async def counting_batch(self: Client, commands: Any, *, atomic: bool = False) -> list[Any]:
        if not atomic:  # an atomic one is a script, which is counted
            sent.extend(commands)
        return await batch(self, commands, atomic=atomic)

    with monkeypatch.context() as patch:
        patch.setattr(Client, "run", counting_run)
        patch.setattr(Client, "batch", counting_batch)
        yield sent


async def test_consents_when_recorded_then_the_last_counts_and_the_history_is_kept(
    store: RedisStore, connect: Connect
) -> None:
    ann, ben = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "ben")
    assert await store.consents.last(ann, PROCESSING) is None
    assert await store.consents.processing(ann) is None
    first, other, second = decided(True), decided(True, "analytics"), decided(False)
    for n, one in enumerate((first, other, second, second)):  # the last was sent again
        await store.consents.record(ann, one, event(f"x{n}"))
    async with connect() as replica:
        same = await replica.subjects.find("acme", "ann")
        assert same == ann
        assert await replica.consents.last(ann, PROCESSING) == second
        assert await replica.consents.last(ann, "analytics") == other
        assert await replica.consents.last(ann, "marketing") is None
        assert await replica.consents.history(ann) == [first, other, second]
        assert await replica.consents.processing(ann) is False
        assert await replica.consents.history(ben) == []
        assert await replica.consents.processing(ben) is None
    assert [one.id async for one in store.audit.tail("acme", 10)] == ["x0", "x1", "x2"]


async def test_consents_when_an_answer_is_lost_then_the_decision_is_kept_once(
    store: RedisStore, valkey: Valkey, master_keys: MasterKeys
) -> None:
    ann = await store.subjects.open("acme", "ann")
    one = decided(False)
    async with losing_answers(valkey) as (url, lose), RedisStore.connect(url, master_keys, EXPECTED) as shaky:
        await shaky.subjects.find("acme", "ann")
        lose(1)
        await shaky.consents.record(ann, one, event())
    assert await store.consents.history(ann) == [one]
    assert await store.audit.total("acme") == 1


async def test_withdrawal_when_a_replica_has_an_older_answer_cached_then_its_writes_are_refused_all_the_same(
    store: RedisStore, connect: Connect
) -> None:
    async with connect() as replica:
        ann = await replica.subjects.open("acme", "ann")
        assert await replica.consents.processing(ann) is None
        await store.consents.record(ann, decided(False), None)
        before = await store.client.run("HGETALL", Partition(ann.partition).subject(ann.id))
        replica.subjects.heard = lambda subject_id: None  # type: ignore[method-assign]  # it hears of nothing
        with pytest.raises(Forbidden) as refused:
            await replica.turns.accept(ann, [said(ann, "e1")], event("a"))
        assert refused.value.reason == "consent_withdrawn"
        with pytest.raises(Forbidden):
            await replica.queue.submit(ann, Change(put=(memory(ann),)), event("b"), revision=None)
        assert await store.queue.depth() == 0
        assert await store.client.run("HGETALL", Partition(ann.partition).subject(ann.id)) == before
        # What takes away goes on.
        await replica.queue.submit(ann, Change(remove=(memory(ann).id,)), event("c"), revision=None)
        await store.consents.record(ann, decided(True), None)
        await replica.turns.accept(ann, [said(ann, "e1")], None)
        await replica.queue.submit(ann, Change(put=(memory(ann),)), None, revision=None)


async def test_withdrawal_when_recorded_then_other_replicas_hear_of_it(store: RedisStore, connect: Connect) -> None:
    async with connect() as replica:
        ann = await store.subjects.open("acme", "ann")
        assert (await replica.subjects.find("acme", "ann")) == ann
        assert await replica.consents.processing(ann) is None
        await store.consents.record(ann, decided(False), None)
        await _until_false(replica, ann)


async def _until_false(replica: RedisStore, subject: Subject) -> None:

    async def heard() -> bool:
        return await replica.consents.processing(subject) is False

    await until(heard)


async def test_consent_when_it_is_required_then_only_who_granted_it_is_kept(
    store: RedisStore, connect: Connect
) -> None:
    async with connect(consent_required=True) as strict:
        ann = await strict.subjects.open("acme", "ann")
        with pytest.raises(Forbidden):
            await strict.turns.accept(ann, [said(ann, "e1")], None)
        with pytest.raises(Forbidden):
            await strict.queue.submit(ann, Change(put=(memory(ann),)), None, revision=None)
        await store.consents.record(ann, decided(True, "analytics"), None)
        with pytest.raises(Forbidden):
            await strict.turns.accept(ann, [said(ann, "e1")], None)
        await store.consents.record(ann, decided(True), None)
        await strict.turns.accept(ann, [said(ann, "e1")], None)
        consented = ConsentedSubjects(strict.subjects, strict.consents, required=True)
        assert await consented.open("acme", "ann") == ann
        with pytest.raises(Forbidden):
            await consented.open("acme", "ben")
        assert await strict.subjects.find("acme", "ben") is None  # none was made


async def test_consents_when_their_person_is_erased_then_they_count_no_more(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.consents.record(ann, decided(False), None)
    scope = await store.subjects.scope(ann)
    assert scope.consents in scope.keys(20_000)
    await erase(store, ann)
    await store.client.run("DEL", *scope.keys(20_000))
    store.subjects.forget(ann.id)
    with pytest.raises(Stale):
        await store.consents.record(ann, decided(False), None)
    again = await store.subjects.open("acme", "ann")
    assert again.epoch == 2
    assert await store.consents.history(again) == []
    assert await store.consents.processing(again) is None
    await store.turns.accept(again, [said(again, "e1")], None)


async def test_consents_when_kept_then_nothing_of_them_is_readable_but_the_decision_on_processing(
    store: RedisStore, valkey: Valkey
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.consents.record(ann, decided(True, "purpose-of-a-canary"), None)
    assert b"purpose-of-a-canary" not in valkey.raw()
    assert b"key_1" not in valkey.raw()


async def test_asking_when_the_subject_is_known_then_it_costs_no_command_and_an_acceptance_costs_as_many_as_before(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    consented = ConsentedSubjects(store.subjects, store.consents)
    ann = await store.subjects.open("acme", "ann")
    await store.turns.accept(ann, [said(ann, "e0")], None)
    store.subjects.heard(ann.id)
    assert await consented.allowed("acme", "ann")  # now her node knows the scripts
    with counted(monkeypatch) as sent:
        for _ in range(10):
            assert await consented.allowed("acme", "ann")
            await consented.open("acme", "ann")
        assert sent == []
        await store.turns.accept(ann, [said(ann, "e1")], None)
        assert [command[0] for command in sent] == ["EVALSHA"]
        sent.clear()
        assert await consented.allowed("acme", "ben")
        assert [command[0] for command in sent] == ["HGET"]  # whether he is known, as ever
        sent.clear()
        store.subjects.heard(ann.id)
        assert await consented.allowed("acme", "ann")
        assert [command[0] for command in sent] == [
            "HGET",
            "EVALSHA",
        ]  # who she is now, and what was loaded of her anyway


async def test_asking_when_the_store_is_down_then_who_is_cached_is_known_and_others_are_not(
    store: RedisStore, valkey: Valkey, connect: Connect
) -> None:
    ann, ben = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "ben")
    await store.consents.record(ben, decided(False), None)
    async with connect() as replica:  # it has nothing more to hear of
        consented = ConsentedSubjects(replica.subjects, replica.consents)
        assert [await consented.allowed("acme", user) for user in ("ann", "ben")] == [True, False]
        valkey.kill()
        assert [await consented.allows(one) for one in (ann, ben)] == [True, False]
        with pytest.raises(BackendDown):
            await consented.allowed("acme", "cat")
        with pytest.raises(Forbidden):
            await consented.open("acme", "ben")
