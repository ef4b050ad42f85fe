from __future__ import annotations

import asyncio

from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.scope import Partition
from tests.stores.redis_fixtures import Connect, until


async def test_claim_when_free_then_given_and_renewed_with_the_same_token(store: RedisStore) -> None:
    first = await store.queue.claim(7, 60)
    assert first is not None
    assert first.partition == 7
    assert await store.queue.claim(7, 60) == first
    other = await store.queue.claim(8, 60)
    assert other is not None
    assert other.partition == 8


async def test_claim_when_another_has_it_then_refused_until_given_back(store: RedisStore, connect: Connect) -> None:
    async with connect() as other:
        lease = await store.queue.claim(7, 60)
        assert lease is not None
        assert await other.queue.claim(7, 60) is None
        await store.queue.release(lease)
        await store.queue.release(lease)
        taken = await other.queue.claim(7, 60)
        assert taken is not None
        assert taken.token > lease.token
        # What was given back cannot be given back once more by its former holder.
        await store.queue.release(lease)
        assert await store.queue.claim(7, 60) is None
        assert await other.queue.claim(7, 60) == taken


async def test_claim_when_the_lease_ended_then_the_next_has_a_higher_token(store: RedisStore, connect: Connect) -> None:
    async with connect() as other:
        old = await store.queue.claim(7, 0.05)
        assert old is not None
        await until(lambda: other.queue.claim(7, 60))
        assert await store.queue.claim(7, 60) is None
        taken = await other.queue.claim(7, 60)
        assert taken is not None
        assert taken.token > old.token


async def test_claim_when_the_lease_ended_and_nobody_came_then_its_holder_goes_on(store: RedisStore) -> None:
    lease = await store.queue.claim(7, 0.01)
    await asyncio.sleep(0.02)
    assert await store.queue.claim(7, 60) == lease


async def test_claim_when_many_race_then_exactly_one_gets_it(connect: Connect) -> None:
    async with connect() as one, connect() as two, connect() as three:
        answers = await asyncio.gather(*(store.queue.claim(7, 60) for store in (one, two, three) for _ in range(10)))
        given = [lease for lease in answers if lease is not None]
        assert len(given) == 10
        assert len(set(given)) == 1


async def test_claim_when_the_store_has_lost_the_one_before_then_its_token_is_not_given_again(
    store: RedisStore, connect: Connect
) -> None:
    async with connect() as other:
        lost = await store.queue.claim(7, 60)
        assert lost is not None
        await store.client.run("DEL", Partition(7).lease)  # as a fail-over loses what no replica has heard of
        await asyncio.sleep(0.002)
        taken = await other.queue.claim(7, 60)
        assert taken is not None
        assert taken.token > lost.token
        await store.queue.release(lost)
        assert await other.queue.claim(7, 60) == taken


async def test_claim_when_a_process_that_is_alone_comes_back_then_it_has_its_partitions_at_once(
    connect: Connect,
) -> None:
    async with connect(holder="embedded") as store:
        lease = await store.queue.claim(7, 60)
    async with connect(holder="embedded") as again, connect() as stranger:
        assert await stranger.queue.claim(7, 60) is None
        assert await again.queue.claim(7, 60) == lease
