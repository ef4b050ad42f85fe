"""Whoever may write to the store and has no key puts nothing into a chain, changes nothing, and keeps nothing out of one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from redis import Redis

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports.audit import Wanted
from memoryos_server.stores.chain import Taken, linked
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_chain import ChainBlockedError
from memoryos_server.stores.scope import PARTITIONS, Partition
from tests.stores.chain_support import Audited, event

FUTURE = "99999999999999-0"


@pytest.fixture
def audited(store: RedisStore, tmp_path: Path) -> Audited:
    return Audited(store, tmp_path)


async def ann(store: RedisStore) -> Partition:
    return Partition((await store.subjects.open("acme", "ann")).partition)


async def entries(store: RedisStore, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return list(await store.client.run("XRANGE", key, "-", "+"))


async def put(store: RedisStore, key: str, fields: dict[bytes, bytes], entry: str | bytes = "*") -> None:
    await store.client.run("XADD", key, entry, *(part for pair in fields.items() for part in pair))


async def chained(audited: Audited, tenant: str = "acme") -> list[str]:
    return [orjson.loads(link.event)["details"] async for link in audited.store.chain.forth(tenant)]


def forged(fields: dict[bytes, bytes], **changes: Any) -> dict[bytes, bytes]:
    return {**fields, b"e": orjson.dumps({**orjson.loads(fields[b"e"]), **changes})}


async def test_outbox_when_entries_are_changed_put_in_or_moved_then_none_is_chained_and_verify_names_them(
    audited: Audited, store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    partition = await ann(store)
    other = Partition((partition.number + 1) % PARTITIONS)
    await store.audit.append([event(1), event(2)])
    (first, its), (_, last) = await entries(store, partition.audit)
    await store.client.run("DEL", partition.audit)
    bad = [
        forged(its, outcome="denied"),  # changed
        forged(its, tenant="north"),
        {**its, b"w": its[b"w"][:-1] + bytes([its[b"w"][-1] ^ 1])},
        {b"e": its[b"e"], b"w": its[b"w"][32:]},  # as it is chained
        {b"e": b"{}", b"w": b""},
        {b"e": b"", b"w": b"", b"x": b""},
    ]
    for number, fields in enumerate(bad):
        await put(store, partition.audit, fields, first if not number else "*")
    await put(store, partition.audit, last)
    await put(store, other.audit, last)  # elsewhere
    before, summary = await audited.verify()
    assert summary["waiting"] == 1
    assert {one["place"].split()[0] for one in before} == {partition.audit, other.audit}
    assert await store.audit.total() == 1
    counted: list[int] = []
    await audited.another(refused=counted.append).now()
    assert await chained(audited) == ["2"]
    assert await store.chain.tenants() == ["acme"]
    assert sum(counted) == len(bad) + 1
    assert len([line for line in caplog.messages if partition.audit in line]) == 1
    after, summary = await audited.verify()
    assert len(before) == len(after) == len(bad) + 1
    assert {one["place"].split()[0] for one in after} == {partition.audit_refused, other.audit_refused}
    assert f"entry {first.decode()} of the outbox" in after[0]["problem"] + after[1]["problem"]
    assert [one.details async for one in store.audit.tail("acme", 10)] == ["2"]


@pytest.mark.timeout(120)
async def test_outbox_when_it_is_flooded_then_what_stands_behind_is_chained_and_little_is_kept(
    audited: Audited, store: RedisStore
) -> None:
    partition = await ann(store)
    await store.client.batch([("XADD", partition.audit, "*", "e", "x" * 5000, "w", "") for _ in range(3000)])
    await store.audit.append([event(1)])
    await audited.sequencer.now()
    assert await chained(audited) == ["1"]
    assert await store.client.run("XLEN", partition.audit) == 0
    assert 1000 <= await store.client.run("XLEN", partition.audit_refused) < 1200
    assert 89 * 86_400 < await store.client.run("TTL", partition.audit_refused) <= 90 * 86_400
    problems, _ = await audited.verify()
    assert 0 < len(problems) <= 200


@pytest.mark.parametrize("kind", ["string", "full"])
async def test_outbox_when_nothing_can_be_taken_aside_then_what_no_server_wrote_leaves_it_all_the_same(
    audited: Audited, store: RedisStore, kind: str
) -> None:
    partition = await ann(store)
    if kind == "string":
        await store.client.run("SET", partition.audit_refused, "no stream")
    else:
        await put(store, partition.audit_refused, {b"i": b""}, f"{2**64 - 1}-{2**64 - 1}")
    await put(store, partition.audit, {b"e": b"{}", b"w": b""})
    await store.audit.append([event(1)])
    await audited.sequencer.now()
    assert await chained(audited) == ["1"]
    assert await store.client.run("XLEN", partition.audit_refused) == 1


async def test_outbox_when_the_store_is_full_then_what_was_taken_aside_stays_and_the_rest_follows_once_it_is_not(
    audited: Audited, store: RedisStore, admins: list[Redis]
) -> None:
    partition = await ann(store)
    for number in range(3):
        await put(store, partition.audit, {b"e": b"%d" % number, b"w": b""})
    await audited.sequencer.now()
    await put(store, partition.audit, {b"e": b"3", b"w": b""})
    for admin in admins:
        admin.config_set("maxmemory", 1)
    with pytest.raises(BackendDown):
        await audited.sequencer.now()
    for admin in admins:
        admin.config_set("maxmemory", 0)
    await store.ping()
    await audited.sequencer.now()
    assert [fields[b"e"] for _, fields in await entries(store, partition.audit_refused)] == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("copied", [False, True])
async def test_outbox_when_ids_of_the_far_future_were_given_then_what_comes_after_is_chained_and_archived(
    audited: Audited, store: RedisStore, copied: bool
) -> None:
    partition = await ann(store)
    await store.audit.append([event(1)])
    ((_, fields),) = await entries(store, partition.audit)
    await put(store, partition.audit, fields if copied else {b"e": b"{}", b"w": b""}, FUTURE)
    await store.audit.append([event(2)])  # behind it
    await audited.sequencer.now()
    await store.client.run("DEL", partition.audit)
    for number in range(3, 6):
        await store.audit.append([event(number)])
        await (audited.sequencer if number == 3 else audited.another()).now()
    assert await chained(audited) == ["1", *(["1"] if copied else []), "2", "3", "4", "5"]
    problems, _ = await audited.verify()
    assert [one["number"] for one in problems] == ([2] if copied else [0])
    assert await audited.retention.move(0) == 5 + copied


async def test_outbox_when_an_event_is_put_in_once_more_then_verify_names_the_copy_and_the_event(
    audited: Audited, store: RedisStore
) -> None:
    partition = await ann(store)
    await store.audit.append([event(1)])
    ((_, fields),) = await entries(store, partition.audit)
    await audited.sequencer.now()
    await audited.retention.move(0)
    await audited.log.append([event(number) for number in range(2, 6)])
    await put(store, partition.audit, fields)
    await audited.sequencer.now()
    problems, _ = await audited.verify()
    assert [(one["tenant_id"], one["number"], one["problem"]) for one in problems] == [
        ("acme", 6, "event 6 is event 1 once more: it was put in again")
    ]


def head_key(audited: Audited) -> str:
    store = audited.store
    return store.chain.home("acme").chain_head(store.manifest.secrets.hash("audit", "acme"))


async def test_head_when_somebody_raises_what_is_archived_then_nothing_is_added_or_archived_and_verify_tells(
    audited: Audited, store: RedisStore
) -> None:
    await audited.log.append([event(number) for number in range(5)])
    await store.client.run("HSET", head_key(audited), "archived", 5)
    assert not (await store.chain.head("acme")).intact
    with pytest.raises(ChainBlockedError):
        await store.chain.archived("acme", 5)
    assert await audited.retention.move(0) == 0
    await audited.logging().append([event(5)])
    assert await chained(audited) == ["0", "1", "2", "3", "4"]
    assert {one["tenant_id"] for one in (await audited.verify())[0]} == {"acme"}
    await store.client.run("HDEL", head_key(audited), "archived")
    await audited.another().now()
    assert (await audited.intact())["events"] == 6


async def test_head_when_an_older_state_says_that_more_is_archived_then_its_signed_head_is_never_replaced(
    audited: Audited, store: RedisStore
) -> None:
    await audited.log.append([event(number) for number in range(3)])
    keys = [store.chain.key("acme"), head_key(audited)]
    older = await store.client.batch([("DUMP", key) for key in keys])
    await audited.log.append([event(number) for number in range(3, 6)])
    await audited.log._adder.sign()
    signed = audited.heads.read("acme")
    for key, raw in zip(keys, older, strict=True):
        await store.client.run("RESTORE", key, 0, raw, "REPLACE")
    running = audited.logging()
    await running.append([event(number) for number in range(6, 12)])  # grows beyond what was signed
    await store.client.run("HSET", head_key(audited), "archived", 8)
    started = audited.logging()
    await started.append([event(12)])
    for log in (running, started):
        await log._adder.sign()
    assert audited.heads.read("acme") == signed
    assert {one["tenant_id"] for one in (await audited.verify())[0]} == {"acme"}


async def test_archived_when_events_are_added_meanwhile_then_both_hold(audited: Audited, store: RedisStore) -> None:
    await audited.log.append([event(number) for number in range(4)])
    head = await store.chain.head("acme")
    await audited.retention.move(0)
    late = Taken(None, f"{int(time.time() * 1000)}-0", b"{}", b"")
    assert await store.chain.add(head, linked(head.count, head.hash, [late])) is None
    await audited.log.append([event(4)])  # whose head was another
    await store.chain.archived("acme", 4)  # again
    await store.chain.archived("acme", 2)  # and what was archived before
    head = await store.chain.head("acme")
    assert (head.count, head.archived, head.intact) == (5, 4, True)
    assert (await audited.intact())["events"] == 5


async def test_total_when_copies_wait_then_pages_and_numbers_stay_those_of_events(
    audited: Audited, store: RedisStore
) -> None:
    partition = await ann(store)
    await put(store, partition.audit, {b"e": b"{}", b"w": b""})
    await store.audit.append([event(1)])
    assert await store.audit.total("acme") == 1
    found: list[AuditEvent] = (await audited.trail.page(Wanted("acme"), 10, None))[0]
    assert [one.details for one in found] == ["1"]
