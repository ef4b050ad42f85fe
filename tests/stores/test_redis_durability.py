from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, open_entries, said, until


async def test_accept_when_the_store_is_killed_after_500_answers_then_all_are_there_and_none_twice(
    connect: Connect, valkey: Valkey
) -> None:
    acknowledged: dict[str, str] = {}
    killed = asyncio.Event()

    async with connect() as store:
        subjects = [await store.subjects.open("acme", f"user-{number}") for number in range(8)]

        async def write(worker: int) -> None:
            subject = subjects[worker]
            for number in range(10_000):
                turn = said(subject, f"{worker}-{number}", f"content {worker} {number}")
                try:
                    accepted = (await store.turns.accept(subject, [turn]))[0]
                except BackendDown:
                    return
                assert not accepted.duplicate
                acknowledged[turn.id] = accepted.entry
                if len(acknowledged) >= 500 and not killed.is_set():
                    killed.set()
                    valkey.kill()

        await asyncio.gather(*(write(worker) for worker in range(8)))
    assert killed.is_set()
    assert len(acknowledged) >= 500

    valkey.start()
    async with connect() as store:
        entries = await open_entries(store)
        found = {entry.turn.id: entry.id for entry in entries}
        assert len(found) == len(entries)
        assert acknowledged.items() <= found.items()
        assert len(found) - len(acknowledged) <= 8  # at most one a worker was written but not answered
        for entry in entries:
            again = (await store.turns.accept(entry.subject, [entry.turn]))[0]
            assert again.duplicate
        assert await store.queue.depth() == len(entries)


@pytest.mark.parametrize("sealing", [True, False], ids=["sealed", "open"])
async def test_raw_files_when_sealed_hold_nothing_of_a_person_and_when_not_they_do(
    connect: Connect, valkey: Valkey, sealing: bool
) -> None:
    # Random and without a common beginning, so that no compression can hide one behind another.
    content, user, session, event_id, name, address, resource, key, label = (os.urandom(12).hex() for _ in range(9))
    async with connect(replace(EXPECTED, sealing=sealing)) as store:
        subject = await store.subjects.open("acme", user)
        recorded = AuditEvent(
            "v1", utc_now(), "memory.add", "acme", user, f"session/{resource}", "AddMemory", "ok", "key_1", address
        )
        turn = said(subject, event_id, f"I said {content} 中文", session_id=session, name=name)
        await store.turns.accept(subject, [turn], recorded)
        await store.audit.append([recorded._replace(id="v2")])
        await store.keys.create(key, ApiKey("key_1", user, "acme", frozenset({"chat"}), label, utc_now(), None))
        await store.keys.find(key)
        assert await store.turns.recent(subject, 20) == [replace(turn, seq=1)]
        assert [one async for one in store.audit.tail("acme", 10)] == [recorded, recorded._replace(id="v2")]
        # The rewritten base file is another form of the same data.
        incremental = valkey.raw()
        await store.client.run("BGREWRITEAOF")
        await until(lambda: _rewritten(store))
        raw = incremental + valkey.raw()
        master = store.manifest.master.present.key
    private = {
        "content": content, "user": user, "session": session, "event": event_id,
        "name": name, "address": address, "resource": resource, "label": label,
    }  # fmt: skip
    held = {what for what, value in private.items() if value.encode() in raw}
    assert held == (set() if sealing else set(private))
    for secret in (key.encode(), master, master.hex().encode()):
        assert secret not in raw
    assert subject.id.encode() in raw  # the files are the right ones


async def test_raw_files_when_a_stranger_is_denied_then_hold_neither_name_nor_address(
    store: RedisStore, valkey: Valkey
) -> None:
    user, address = os.urandom(12).hex(), os.urandom(12).hex()
    denied = AuditEvent("v1", utc_now(), "auth", "_system", user, "", "AddMemory", "denied", "anonymous", address)
    await store.audit.append([denied])
    raw = valkey.raw()
    assert user.encode() not in raw
    assert address.encode() not in raw
    assert b"_system" in raw


async def _rewritten(store: RedisStore) -> bool:
    return not (await store.client.run("INFO", "persistence"))["aof_rewrite_in_progress"]
