from __future__ import annotations

from datetime import timedelta

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import from_unix
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.scope import PARTITIONS, Partition
from tests.stores.redis_fixtures import Connect, erase


def event(user: str = "ann", tenant: str = "acme", number: int = 0, **other: str) -> AuditEvent:
    return AuditEvent(
        id=uuid7(),
        timestamp=from_unix(1_770_000_000.000001) + timedelta(seconds=number),
        event_type="memory.read",
        tenant_id=tenant,
        user_id=user,
        resource=other.get("resource", "memory/1"),
        action="RetrieveMemory",
        outcome="ok",
        actor="key_1",
        address="192.0.2.7",
        request_id="r1",
        details=other.get("details", str(number)),
    )


async def tail(store: RedisStore, tenant: str | None, limit: int) -> list[AuditEvent]:
    return [found async for found in store.audit.tail(tenant, limit)]


async def test_append_when_the_person_is_known_then_the_event_comes_back_whole(
    store: RedisStore, connect: Connect
) -> None:
    await store.subjects.open("acme", "ann")
    events = [event(number=number) for number in range(3)]
    await store.audit.append(events)
    async with connect() as other:
        assert await tail(other, "acme", 10) == events


async def test_append_when_a_batch_is_sent_again_then_it_is_not_written_twice(store: RedisStore) -> None:
    await store.subjects.open("acme", "ann")
    events = [event(number=0), event(number=1), event("stranger", number=2)]
    await store.audit.append(events)
    await store.audit.append(events)
    assert [found.id for found in await tail(store, "acme", 10)] == [one.id for one in events]


async def test_append_when_a_key_is_damaged_then_the_event_is_written_without_its_person(
    store: RedisStore, connect: Connect
) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.client.run("HSET", Partition(ann.partition).keyring, ann.id, b"damaged")
    async with connect() as other:
        await other.audit.append([event(), event("", number=1)])
        assert [found.user_id for found in await tail(other, "acme", 10)] == ["", ""]


async def test_append_when_the_person_is_unknown_then_no_subject_is_made_and_no_name_is_kept(store: RedisStore) -> None:
    denied = event("stranger")
    await store.audit.append([denied])
    assert await store.subjects.find("acme", "stranger") is None
    assert await tail(store, "acme", 10) == [denied._replace(user_id="", address="")]


async def test_append_when_the_person_is_unknown_then_what_was_touched_stands_nowhere_readable(
    store: RedisStore,
) -> None:
    canary = "qzkvwpxjtm"
    await store.audit.append([event("stranger", resource=f"session/{canary}"), event("", resource=f"session/{canary}")])
    raw = [await store.client.run("XRANGE", Partition(number).audit, "-", "+") for number in range(PARTITIONS)]
    assert canary not in repr(raw)
    assert "stranger" not in repr(raw)
    assert [found.resource for found in await tail(store, "acme", 10)] == [f"session/{canary}"] * 2


async def test_tail_when_the_person_is_erased_then_the_event_stays_without_who(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    kept = event()
    await store.audit.append([kept])
    await erase(store, ann)
    store.subjects.forget(ann.id)
    bare = kept._replace(user_id="", address="", resource="")
    assert await tail(store, "acme", 10) == [bare]
    await store.subjects.open("acme", "ann")  # comes again, with another key
    assert await tail(store, "acme", 10) == [bare]


async def test_tail_when_tenants_are_mixed_then_gives_only_its_own_newest_oldest_first(store: RedisStore) -> None:
    users = [f"user-{number}" for number in range(8)]
    for user in users:
        await store.subjects.open("acme", user)
    wrote = []
    for number in range(40):
        mine = event(users[number % 8], number=number)
        wrote.append(mine)
        await store.audit.append([mine, event("", "other", number), event("", "_system", number)])
    assert [one.details for one in await tail(store, "acme", 7)] == [str(number) for number in range(33, 40)]
    assert await tail(store, "acme", 1000) == wrote
    assert len(await tail(store, None, 1000)) == 120
    assert {one.tenant_id for one in await tail(store, "_system", 1000)} == {"_system"}
    assert await tail(store, "nobody", 10) == []
    assert await tail(store, "acme", 0) == []


async def test_tail_when_another_tenant_is_louder_in_the_same_partition_then_reads_on(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    first = event()
    await store.audit.append([first])
    louder = next(f"t{number}" for number in range(100_000) if store.chain.home(f"t{number}").number == ann.partition)
    await store.audit.append([event("", louder, number) for number in range(200)])
    assert await tail(store, "acme", 5) == [first]
    assert len(await tail(store, louder, 150)) == 150


async def test_append_when_the_same_batch_is_sent_again_then_writes_once(store: RedisStore) -> None:
    from memoryos_server.stores.redis_audit import _APPEND

    partition = Partition(5)
    for _ in range(2):
        await store.client.script(_APPEND, [partition.audit, partition.audit_batch("n")], [600, b"{}", b""])
    assert await store.client.run("XLEN", partition.audit) == 1


async def test_append_when_done_then_lies_in_the_person_s_partition_and_never_expires(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    await store.audit.append([event()])
    lengths = await store.client.batch([("XLEN", Partition(number).audit) for number in range(PARTITIONS)])
    assert [number for number, length in enumerate(lengths) if length] == [ann.partition]
    assert await store.client.run("TTL", Partition(ann.partition).audit) == -1
