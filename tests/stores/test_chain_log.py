"""What is written without a change goes into its chain at once, once, whoever races or asks again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.ports.audit import Wanted
from memoryos_server.stores.chain import Link
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.chain_log import ChainLog
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_chain import Head
from memoryos_server.stores.scope import PARTITIONS, Partition
from memoryos_server.stores.sequencer import Sequencer
from tests.stores.chain_support import Audited, event
from tests.stores.redis_fixtures import Connect, until


@pytest.fixture
def audited(store: RedisStore, tmp_path: Path) -> Audited:
    return Audited(store, tmp_path)


async def outbox(store: RedisStore) -> int:
    return sum(await store.client.batch([("XLEN", Partition(number).audit) for number in range(PARTITIONS)]))


async def shown(audited: Audited, tenant: str = "acme") -> list[AuditEvent]:
    return (await audited.trail.page(Wanted(tenant), 1000, None))[0][::-1]


async def test_append_when_done_then_events_are_in_their_chains_with_who_is_known_and_nowhere_else(
    audited: Audited, store: RedisStore
) -> None:
    await store.subjects.open("acme", "ann")
    events = [event(n, ("acme", "north")[n % 2], ("ann", "stranger", "")[n % 3]) for n in range(12)]
    await audited.log.append(events)
    assert await outbox(store) == 0
    assert [await store.audit.total(tenant) for tenant in ("acme", "north")] == [6, 6]
    assert [(one.id, one.user_id) for one in await shown(audited)] == [
        (one.id, one.user_id.replace("stranger", "")) for one in events if one.tenant_id == "acme"
    ]
    assert await store.subjects.find("acme", "stranger") is None
    assert [one.details async for one in store.audit.tail("acme", 2)] == ["8", "10"]
    assert (await audited.intact())["events"] == 12
    assert await audited.retention.move(0) == 12
    assert (await audited.intact())["archived"] == 12


async def test_append_when_a_batch_comes_again_then_nothing_is_written_twice_whatever_was_chained_since(
    audited: Audited, store: RedisStore
) -> None:
    mine = [event(n, ("acme", "north")[n % 2]) for n in range(4)]
    await audited.log.append(mine)
    await audited.log.append(mine)
    await audited.logging().append([event(10)])  # another server
    await audited.log.append(mine)
    await audited.log.append([event(20)])
    assert [one.details for one in await shown(audited)] == ["0", "2", "10", "20"]
    assert [one.details for one in await shown(audited, "north")] == ["1", "3"]
    await audited.intact()


async def test_append_when_there_are_more_than_one_write_takes_then_they_come_again_once_all_the_same(
    audited: Audited,
) -> None:
    events = [event(n) for n in range(1100)]
    for _ in range(2):
        await audited.log.append(events)
    assert (await audited.intact())["events"] == 1100


@pytest.mark.timeout(120)
async def test_append_when_servers_race_with_one_another_and_with_sequencers_then_each_event_is_chained_once(
    audited: Audited, connect: Connect
) -> None:
    async with connect() as one, connect() as two:
        several = [audited, *(Audited(store, audited.home) for store in (one, two))]
        for number in range(4):
            await audited.store.subjects.open("acme", f"user{number}")
        events = []
        for turn in range(10):
            batches = [[event(turn * 100 + n, "acme", f"user{n % 8}") for n in range(20)] for _ in range(4)]
            events += [one for batch in batches for one in batch]
            await audited.store.audit.append(batches.pop())
            await asyncio.gather(
                *(each.sequencer.now() for each in several),
                *(each.log.append(batch) for each, batch in zip(several, batches, strict=True)),
            )
    assert sorted(one.id for one in await shown(audited)) == sorted(one.id for one in events)
    assert (await audited.intact())["events"] == 800


async def test_append_when_a_chain_cannot_be_written_then_events_wait_in_the_outbox_and_other_tenants_go_on(
    audited: Audited, store: RedisStore
) -> None:
    await audited.log.append([event(1), event(1, "north")])
    link = (await audited.entries("acme"))[0]
    await store.client.run("XADD", store.chain.key("acme"), "77-0", "e", "forged")
    await audited.log.append([event(2), event(2, "north")])
    assert await outbox(store) == 1
    assert [await store.audit.total(tenant) for tenant in ("acme", "north")] == [2, 2]
    await audited.write_entries("acme", [link])
    assert [one.details for one in await shown(audited)] == ["1", "2"]
    await audited.intact()


async def test_append_when_a_server_runs_then_the_head_is_signed_within_a_second(audited: Audited) -> None:
    store = audited.store
    adder = Adder(store.chain, audited.heads)
    log = ChainLog(store.audit, adder)
    async with Sequencer(store.client, store.audit, adder):
        await asyncio.sleep(0.5)  # the first look through all outboxes is over
        for number in range(3):
            await log.append([event(number)])
            began = time.monotonic()
            await until(lambda n=number: _signed(audited, n + 1))
            assert time.monotonic() - began < 1.0
        await log.append([event(3)])
    assert await _signed(audited, 4)  # what was written last, when it is left


async def _signed(audited: Audited, count: int) -> bool:
    signed = audited.heads.read("acme")
    return signed is not None and signed.count == count


async def test_append_when_thousands_of_events_of_many_people_come_a_second_then_it_keeps_up(audited: Audited) -> None:
    for number in range(64):
        await audited.store.subjects.open("acme", f"user{number}")
    events = [event(n, "acme", f"user{n % 1000}") for n in range(5000)]
    began = time.monotonic()
    for start in range(0, 5000, 500):
        await audited.log.append(events[start : start + 500])
    rate = 5000 / (time.monotonic() - began)
    print(f"{rate:,.0f} events a second chained")
    assert (await audited.intact())["events"] == 5000
    assert rate > 2_000  # some ten times that on an idle machine


async def test_append_when_another_process_signs_between_two_looks_then_the_chain_is_still_trusted(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both keep their heads in one directory, as servers of one machine or a command beside one do."""
    store, look, others = audited.store, audited.store.chain.head, Adder(audited.store.chain, audited.heads)
    log = ChainLog(store.audit, others)
    await log.append([event(0)])
    await others.sign()

    async def late(tenant: str) -> Head:
        found = await look(tenant)
        monkeypatch.undo()
        await log.append([event(1)])
        await others.sign()
        return found

    mine = Adder(store.chain, audited.heads)
    monkeypatch.setattr(store.chain, "head", late)
    await ChainLog(store.audit, mine).append([event(2)])
    await mine.sign()
    assert await _signed(audited, 3)
    await audited.intact()


async def test_append_when_the_signed_event_is_archived_between_two_looks_then_the_chain_is_still_trusted(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, look, others = audited.store, audited.store.chain.link, Adder(audited.store.chain, audited.heads)
    log = ChainLog(store.audit, others)
    await log.append([event(0)])
    await others.sign()
    await log.append([event(1)])

    async def late(tenant: str, number: int) -> Link | None:
        monkeypatch.undo()
        assert await audited.retention.move(0) == 2
        return await look(tenant, number)

    mine = Adder(store.chain, audited.heads)
    monkeypatch.setattr(store.chain, "link", late)
    await ChainLog(store.audit, mine).append([event(2)])
    await mine.sign()
    assert await _signed(audited, 3)
    await audited.intact()


async def test_append_when_the_list_of_chains_is_something_else_then_events_wait_and_none_is_chained_twice(
    audited: Audited, store: RedisStore
) -> None:
    chains = store.chain.home("acme").chains
    await store.client.run("SET", chains, "no list")
    await audited.log.append([event(1)])
    assert await store.audit.total("acme") == 1
    await store.client.run("DEL", chains)
    await audited.log.append([event(2)])
    await audited.sequencer.now()
    assert (await audited.intact())["events"] == 2
