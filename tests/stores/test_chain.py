"""The chains: every event is in its tenant's once, whoever dies or races, and reads back in pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports.audit import Wanted
from memoryos_server.stores import sequencer
from memoryos_server.stores.chain import Link, Taken, beginning, linked
from memoryos_server.stores.heads import Signed
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.portable_keys import key_names, read_keys, write_pieces
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_chain import Batch, ChainBlockedError, Head
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.scope import PARTITIONS, Partition
from tests.stores.chain_support import Audited, event
from tests.stores.redis_fixtures import EXPECTED, Connect, Valkey, until


@pytest.fixture
def audited(store: RedisStore, tmp_path: Path) -> Audited:
    return Audited(store, tmp_path)


async def put(store: RedisStore, partition: Partition, one: AuditEvent) -> None:
    """Writes an event into the outbox of a partition, as a change in it would."""
    record, who = store.audit.stored(one)
    behind = store.audit._mac(partition.number, record, who) + who
    await store.client.run("XADD", partition.audit, "*", "e", record, "w", behind)


async def outbox(store: RedisStore) -> int:
    return sum(await store.client.batch([("XLEN", Partition(number).audit) for number in range(PARTITIONS)]))


async def test_sequencer_when_events_lie_in_many_outboxes_then_each_is_in_its_tenants_chain_once(
    audited: Audited, store: RedisStore
) -> None:
    for number in range(20):
        await store.subjects.open("acme", f"user{number}")
    events = [event(n, ("acme", "north", "_system")[n % 3], f"user{n % 25}") for n in range(300)]
    await store.audit.append(events)
    await audited.sequencer.now()
    assert await outbox(store) == 0
    assert await store.chain.tenants() == ["_system", "acme", "north"]
    for tenant in await store.chain.tenants():
        links = [link async for link in store.chain.forth(tenant)]
        assert [link.number for link in links] == list(range(1, 101))
        before = beginning(tenant)
        for link in links:
            assert link.follows(before)
            before = link.hash
        assert (await store.chain.head(tenant)).hash == before
    found, following = await audited.trail.page(Wanted("acme"), 1000, None)
    assert following is None
    assert sorted(one.id for one in found) == sorted(one.id for one in events if one.tenant_id == "acme")
    assert await store.audit.total("acme") == 100
    assert await store.audit.total() == 300
    summary = await audited.intact()
    assert (summary["tenants"], summary["events"], summary["waiting"], summary["unsigned"]) == (3, 300, 0, [])


async def test_sequencer_when_running_then_an_event_is_chained_and_signed_within_a_second(audited: Audited) -> None:
    async with audited.sequencer:
        await asyncio.sleep(0.5)  # the first look through all outboxes is over
        for number in range(3):
            await audited.store.audit.append([event(number)])
            began = time.monotonic()
            await until(lambda n=number: _signed(audited, n + 1))
            assert time.monotonic() - began < 1.0


async def _signed(audited: Audited, count: int, tenant: str = "acme") -> bool:
    signed = audited.heads.read(tenant)
    return signed is not None and signed.count == count


async def test_sequencer_when_heads_cannot_be_kept_then_it_chains_says_so_once_and_keeps_them_once_it_can(
    audited: Audited, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = audited.heads.write

    def full(signed: Signed) -> None:
        if signed.tenant_id == "acme":
            raise OSError("no space left")
        write(signed)

    monkeypatch.setattr(audited.heads, "write", full)
    for number in range(3):
        await audited.store.audit.append([event(number, tenant) for tenant in ("acme", "north")])
        await audited.sequencer.now()
    assert await outbox(audited.store) == 0
    assert len([line for line in caplog.messages if "signed heads" in line]) == 1
    assert await _signed(audited, 3, "north")
    monkeypatch.undo()
    await audited.sequencer.now()  # with nothing to chain
    assert await _signed(audited, 3)


def test_heads_when_servers_share_a_directory_then_the_longest_chain_is_kept_and_nothing_else_is_left(
    audited: Audited,
) -> None:
    chains = [(tenant, count) for count in range(1, 9) for tenant in ("acme", "north")]
    with ThreadPoolExecutor(8) as servers:
        for done in [servers.submit(audited.heads.write, Signed(t, n, b"%d" % n, "now")) for t, n in chains]:
            done.result()
    for tenant in ("acme", "north"):
        audited.heads.write(Signed(tenant, 9, b"9", "now"))
        audited.heads.write(Signed(tenant, 3, b"3", "now"))
        assert audited.heads.read(tenant) == Signed(tenant, 9, b"9", "now")
    assert {path.suffix for path in audited.heads.directory.iterdir()} == {".head"}


async def test_sequencer_when_left_then_what_was_written_last_is_chained(audited: Audited) -> None:
    async with audited.sequencer:
        await audited.store.audit.append([event(1)])
    assert await outbox(audited.store) == 0
    assert (await audited.intact())["events"] == 1


async def test_sequencer_when_another_server_died_with_a_full_outbox_then_its_events_are_chained(
    audited: Audited, connect: Connect
) -> None:
    async with connect() as other:
        await other.audit.append([event(number) for number in range(5)])  # and nobody here is told of it
    async with audited.another(sweep_seconds=0.1):
        await until(lambda: _signed(audited, 5))


async def test_sequencer_when_it_died_after_chaining_then_nothing_is_chained_twice(
    audited: Audited, store: RedisStore
) -> None:
    await store.subjects.open("acme", "ann")
    await store.audit.append([event(number) for number in range(30)] + [event(0, "north")])
    kept = {}
    for number in range(PARTITIONS):
        if page := await store.client.run("XRANGE", Partition(number).audit, "-", "+"):
            kept[number] = page
    await audited.sequencer.now()
    # As if the entries had not been removed. (A stream that was emptied takes no smaller ids: it is made anew.)
    for number, page in kept.items():
        await store.client.run("DEL", Partition(number).audit)
        for entry, fields in page:
            pairs = (part for pair in fields.items() for part in pair)
            await store.client.run("XADD", Partition(number).audit, entry, *pairs)
    assert await store.audit.total("acme") == 30
    assert (await audited.intact())["waiting"] == 0
    await audited.another().now()
    assert await outbox(store) == 0
    assert (await audited.intact())["events"] == 31


async def test_add_when_sent_again_then_adds_once_and_of_two_that_race_one_is_told(audited: Audited) -> None:
    chain = audited.store.chain
    head = await chain.head("acme")
    mine = linked(0, head.hash, [Taken(3, "5-0", b"{}", b""), Taken(3, "5-1", b"{}", b"")])
    theirs = linked(0, head.hash, [Taken(4, "7-0", b"{}", b"")])
    added = await chain.add(head, mine)
    assert added == await chain.add(head, mine) == await chain.head("acme")
    assert await chain.add(head, theirs) is None
    assert [link.number for link in await chain.back("acme")] == [2, 1]
    assert added is not None
    assert (added.count, added.places) == (2, {3: (5, 1)})


@pytest.mark.timeout(120)
async def test_sequencers_when_four_race_for_the_same_events_then_each_is_chained_once(
    audited: Audited, connect: Connect
) -> None:
    async with connect() as one, connect() as two, connect() as three:
        several = [audited, *(Audited(store, audited.home) for store in (one, two, three))]
        for number in range(8):
            await audited.store.subjects.open("acme", f"user{number}")
        events = []
        for turn in range(10):
            some = [event(turn * 40 + n, "acme", f"user{n % 8}") for n in range(40)]
            events += some
            await audited.store.audit.append(some)
            await asyncio.gather(*(each.sequencer.now() for each in several))
    found, _ = await audited.trail.page(Wanted("acme"), 1000, None)
    assert sorted(one.id for one in found) == sorted(one.id for one in events)
    assert (await audited.intact())["events"] == 400


async def test_sequencer_when_a_link_stands_behind_the_head_then_events_stay_in_the_outbox_and_others_go_on(
    audited: Audited,
) -> None:
    store = audited.store
    await store.audit.append([event(1), event(1, "north")])
    await audited.sequencer.now()
    await store.client.run("XADD", store.chain.key("acme"), "77-0", "e", "forged")
    await store.audit.append([event(2), event(2, "north")])
    head = await store.chain.head("acme")
    with pytest.raises(ChainBlockedError):
        await store.chain.add(head, linked(head.count, head.hash, [Taken(1, "1-0", b"", b"")]))
    await audited.sequencer.now()
    assert [await store.audit.total(tenant) for tenant in ("acme", "north")] == [2, 2]
    assert await outbox(store) == 1
    problems, _ = await audited.verify()
    assert [(one["tenant_id"], one["number"]) for one in problems] == [("acme", 77)]


@pytest.mark.parametrize("which", [0, 1])
async def test_sequencer_when_a_chain_or_its_head_is_something_else_then_its_events_stay_and_others_go_on(
    audited: Audited, which: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = audited.store
    await store.client.run("SET", keys_of(audited, "acme")[which], "no chain")
    await store.audit.append([event(number, tenant) for number in range(3) for tenant in ("acme", "north")])
    for _ in range(3):
        await audited.sequencer.now()
    assert await outbox(store) == 3
    found, _ = await audited.trail.page(Wanted("north"), 10, None)
    assert len(found) == 3
    assert len([line for line in caplog.messages if "events of acme stay in the outbox" in line]) == 1
    await store.client.run("DEL", keys_of(audited, "acme")[which])
    await audited.sequencer.now()
    assert (await audited.intact())["events"] == 6


async def test_sequencer_when_more_than_a_page_of_events_is_stuck_then_those_behind_them_are_chained(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "PAGE", 4)
    store = audited.store
    key = keys_of(audited, "acme")[0]
    await store.client.run("SET", key, "no chain")
    # One person's outbox, in which everybody's events may lie.
    partition = Partition((await store.subjects.open("acme", "ann")).partition)
    for number in range(30):
        await put(store, partition, event(number, "acme" if number < 20 or number % 2 else "north"))
    await audited.sequencer.now()
    assert await outbox(store) == 25
    assert (await store.chain.head("north")).count == 5
    await store.client.run("DEL", key)
    await audited.sequencer.now()
    assert await outbox(store) == 0
    numbers = [int(orjson.loads(link.event)["details"]) async for link in store.chain.forth("acme")]
    assert numbers == [*range(20), *range(21, 30, 2)]
    assert (await audited.intact())["events"] == 30


async def test_sequencer_when_a_chain_is_writable_again_meanwhile_then_nothing_is_passed_over(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "PAGE", 4)
    store = audited.store
    add, failures = store.chain.add, iter([True])

    async def once_blocked(head: Head, links: Sequence[Link], batch: Batch | None = None) -> Head | None:
        if next(failures, False):
            raise ChainBlockedError("just now")
        return await add(head, links, batch)

    monkeypatch.setattr(store.chain, "add", once_blocked)
    await store.audit.append([event(number) for number in range(10)])
    await audited.sequencer.now()
    assert await outbox(store) == 10
    await audited.sequencer.now()
    assert (await audited.intact())["events"] == 10


async def test_sequencer_when_a_head_says_that_all_was_taken_then_it_takes_no_event_away(audited: Audited) -> None:
    store = audited.store
    await store.audit.append([event(1)])
    await audited.sequencer.now()
    (link,) = await store.chain.back("acme")
    head_key = store.chain.home("acme").chain_head(store.manifest.secrets.hash("audit", "acme"))
    await store.client.run("HSET", head_key, int(link.source[:3]), "99999999999999-0")
    await store.audit.append([event(2)])
    await audited.another().now()
    assert await outbox(store) == 1
    assert [one["tenant_id"] for one in (await audited.verify())[0]] == ["acme"]


async def test_sequencer_when_a_chain_is_an_older_state_then_the_signed_head_is_kept_and_tells(
    audited: Audited,
) -> None:
    store = audited.store
    await store.audit.append([event(number) for number in range(5)])
    await audited.sequencer.now()
    older = await store.client.batch([("DUMP", key) for key in keys_of(audited, "acme")])
    await store.audit.append([event(number) for number in range(5, 9)])
    await audited.sequencer.now()
    for key, raw in zip(keys_of(audited, "acme"), older, strict=True):
        await store.client.run("RESTORE", key, 0, raw, "REPLACE")
    await store.audit.append([event(number) for number in range(9, 20)])
    await audited.another().now()  # grows beyond what was signed
    signed = audited.heads.read("acme")
    assert signed is not None
    assert signed.count == 9
    problems, summary = await audited.verify()
    assert summary["events"] == 16
    assert [(one["tenant_id"], one["number"]) for one in problems] == [("acme", 9)]
    assert "not the chain" in problems[0]["problem"]


def keys_of(audited: Audited, tenant: str) -> list[str]:
    hashed = audited.store.manifest.secrets.hash("audit", tenant)
    home = audited.store.chain.home(tenant)
    return [home.chain(hashed), home.chain_head(hashed)]


async def test_sequencer_when_the_store_is_away_then_events_are_chained_once_it_is_back(
    audited: Audited, valkey: object
) -> None:
    async with audited.sequencer:
        await audited.store.audit.append([event(1)])
        valkey.kill()  # type: ignore[attr-defined]
        await asyncio.sleep(0.5)
        valkey.start()  # type: ignore[attr-defined]
        await until(lambda: _signed(audited, 1), 10)


async def test_sequencer_when_thousands_of_events_come_a_second_then_it_keeps_up(audited: Audited) -> None:
    for number in range(64):
        await audited.store.subjects.open("acme", f"user{number}")
    for start in range(0, 10_000, 500):
        await audited.store.audit.append([event(n, "acme", f"user{n % 64}") for n in range(start, start + 500)])
    began = time.monotonic()
    await audited.sequencer.now()
    rate = 10_000 / (time.monotonic() - began)
    print(f"{rate:,.0f} events a second chained")
    assert (await audited.intact())["events"] == 10_000
    assert rate > 1_000  # some 20 times that on an idle machine


async def test_erasure_when_a_key_is_destroyed_then_the_chain_verifies_and_names_nobody(audited: Audited) -> None:
    store = audited.store
    await store.subjects.open("acme", "ann")
    await store.subjects.open("acme", "bob")
    await store.audit.append([event(1), event(2, user="bob"), event(3)])
    await audited.sequencer.now()
    await audited.retention.move(0)
    await store.audit.append([event(4)])
    await audited.sequencer.now()
    assert [one.user_id for one in (await audited.trail.page(Wanted("acme", "ann"), 9, None))[0]] == ["ann"] * 3
    await store.erasures.begin("acme", "ann", "key_1", utc_now())
    assert (await audited.intact())["events"] == 4
    found, _ = await audited.trail.page(Wanted("acme"), 9, None)
    assert [(one.user_id, one.address, one.details) for one in found] == [
        ("", "", "4"),
        ("", "", "3"),
        ("bob", "192.0.2.7", "2"),
        ("", "", "1"),
    ]
    assert (await audited.trail.page(Wanted("acme", "ann"), 9, None))[0] == []
    assert await audited.trail.total("acme") == 4  # how many there were is still known


async def test_page_when_the_user_was_erased_then_only_who_has_the_name_now_and_the_erasure_itself_are_found_by_it(
    audited: Audited, store: RedisStore, connect: Connect
) -> None:
    async def details(at: Audited) -> list[str]:
        return [one.details for one in (await at.trail.page(Wanted("acme", "ann"), 9, None))[0]][::-1]

    await store.audit.append([event(0)])  # of somebody who is not known yet
    await store.subjects.open("acme", "ann")
    await audited.log.append([event(1)])
    await store.audit.append([event(2), event(3, outlives=True)])
    await audited.sequencer.now()
    await audited.retention.move(0)
    await store.audit.append([event(4)])
    assert await details(audited) == ["0", "1", "2", "3", "4"]
    async with connect() as other:
        beside = Audited(other, audited.home)
        assert await details(beside) == ["0", "1", "2", "3", "4"]
        await store.erasures.begin("acme", "ann", "key_1", utc_now())
        await store.audit.append([event(5, outlives=True)])
        assert await details(audited) == await details(beside) == ["0", "3", "5"]
        (kept,) = [one for one in (await audited.trail.page(Wanted("acme"), 9, None))[0] if one.details == "3"]
        assert (kept.user_id, kept.address, kept.resource) == ("", "", "memory/3")
        await store.subjects.open("acme", "ann")
        await audited.log.append([event(6), event(7, outlives=True)])
        assert await details(audited) == await details(beside) == ["0", "3", "5", "6", "7"]


async def test_chain_when_its_store_is_moved_then_it_verifies_there_and_goes_on(
    audited: Audited, store: RedisStore, master_keys: MasterKeys, tmp_path: Path
) -> None:
    await store.audit.append([event(number) for number in range(20)])
    await audited.retention.move(0)
    await store.audit.append([event(number) for number in range(20, 30)])
    await audited.sequencer.now()
    (tmp_path / "moved").mkdir()
    target = Valkey(tmp_path / "moved")
    target.start()
    try:
        client = Client(target.url)
        for names in (await key_names(store.client)).values():
            await write_pieces(client, [piece async for piece in read_keys(store.client, names)])
        await client.aclose()
        async with RedisStore.connect(target.url, master_keys, EXPECTED) as moved:
            there = Audited(moved, tmp_path)  # with the archive and the signed heads
            assert (await there.intact())["events"] == 30
            await moved.audit.append([event(30)])
            await there.sequencer.now()
            assert (await there.intact())["events"] == 31
    finally:
        target.remove()


async def test_page_when_read_to_the_end_then_each_event_comes_once_over_chain_and_archive_while_more_are_written(
    audited: Audited, store: RedisStore
) -> None:
    for user in ("ann", "bob"):
        await store.subjects.open("acme", user)
    first = [event(n, user=("ann", "bob")[n % 2], kind=("memory.add", "memory.read")[n % 3 == 0]) for n in range(60)]
    for start in range(0, 60, 10):
        await store.audit.append(first[start : start + 10])
        await audited.sequencer.now()
        if start == 30:
            assert await audited.retention.move(0) == 40
    for wanted, expected in (
        (Wanted("acme"), first),
        (Wanted("acme", "bob"), first[1::2]),
        (Wanted("acme", "ann", "memory.read"), first[::6]),
        (Wanted("acme", event_type="memory.add"), [one for one in first if one.event_type == "memory.add"]),
        (Wanted("acme", "nobody"), []),
        (Wanted("north"), []),
    ):
        seen, below = [], None
        while True:
            page, below = await audited.trail.page(replace(wanted, before=first[-1].timestamp + timedelta(1)), 7, below)
            assert page == sorted(page, key=lambda one: (one.timestamp, one.id), reverse=True)
            seen += page
            await store.audit.append([event(1000, user="carl", kind="other.type")])  # moves no page
            if below is None:
                break
            assert len(page) == 7
        mine = [one for one in seen if one.event_type != "other.type"]
        assert sorted(one.id for one in mine) == sorted(one.id for one in expected)
        assert len({one.id for one in seen}) == len(seen)
    middle = first[20].timestamp
    later, _ = await audited.trail.page(Wanted("acme", after=middle, before=first[50].timestamp), 1000, None)
    assert {one.id for one in later} == {one.id for one in first[21:50] if one.timestamp > middle}


async def test_page_when_an_event_is_not_chained_yet_then_it_is_seen(audited: Audited) -> None:
    await audited.store.audit.append([event(1)])
    assert [one.details for one in (await audited.trail.page(Wanted("acme"), 5, None))[0]] == ["1"]
    assert utc_now() > (await audited.trail.page(Wanted("acme"), 5, None))[0][0].timestamp


async def test_page_when_the_archive_is_damaged_then_says_that_it_cannot_be_read(audited: Audited) -> None:
    await audited.store.audit.append([event(1)])
    await audited.retention.move(0)
    path = next(audited.retention.directory.iterdir())
    path.write_bytes(b"?" + path.read_bytes()[1:])
    fresh = Audited(audited.store, audited.home)
    with pytest.raises(BackendDown, match="archive"):
        await fresh.trail.page(Wanted("acme"), 5, None)


@pytest.mark.parametrize(
    "damage",
    [
        {"ts": "yesterday"},
        {"ts": 2**62},
        {"ts": -1},
        {"ts": True},
        {"id": 7},
        {"details": None},
        {"action": ["a"]},
        {"count": "two"},
        {"count": 2**40},
        {"subject": {}},
    ],
)
async def test_page_when_a_record_has_fields_of_other_kinds_then_the_others_are_shown_and_verify_names_it(
    audited: Audited, damage: dict[str, Any]
) -> None:
    store = audited.store
    record, who = store.audit.stored(event(1))
    bad = orjson.dumps({**orjson.loads(record), **damage})
    await store.audit.append([event(0)])
    await audited.sequencer.now()
    head = await store.chain.head("acme")
    assert await store.chain.add(head, linked(head.count, head.hash, [Taken(200, "9-0", bad, who)]))  # chained
    await store.client.run(
        "XADD", Partition(3).audit, "*", "e", bad, "w", who
    )  # and not yet, by somebody without a key
    await store.audit.append([event(2)])
    assert [one.details async for one in store.audit.tail("acme", 10)] == ["0", "2"]
    await audited.another().now()
    for tenant, details in (("acme", ["2", "0"]), ("_system", [])):
        found, following = await audited.trail.page(Wanted(tenant), 10, None)
        assert ([one.details for one in found], following) == (details, None)
    problems, _ = await audited.verify()
    assert [one["number"] for one in problems] == [0, 2]
    assert await audited.retention.move(0) == 3
    assert len(await audited.retention.newest(None, 10)) == 2
