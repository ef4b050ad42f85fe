"""The defense shared by servers, in real stores: bans, the whitelist and counts, over restarts and outages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import Redis

from memoryos_server.domain.defense.gcra import Rate
from memoryos_server.domain.defense.guard import Guard, Rules
from memoryos_server.domain.defense.sharing import Defense
from memoryos_server.domain.ports.defense import PERMANENT, Ban, Change, Counts
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import Connect, Valkey, until

RULES = Rules(True, Rate(5, 50), Rate(0, 0), Rate(0, 0), 3, 100, 30, 300, (600, 3600), 10**6)
BAD = "203.0.113.9"


def made(store: RedisStore) -> Defense:
    guard = Guard(RULES, imposed=lambda ban: defense.imposed(ban))
    defense = Defense(guard, store.defense, interval=0.02)
    return defense


@asynccontextmanager
async def server(connect: Connect) -> AsyncIterator[Defense]:
    async with connect() as store, made(store) as defense:
        yield defense


def attack(defense: Defense, address: str = BAD) -> None:
    for _ in range(RULES.auth_failures):
        defense.guard.refused(address, wrong_key=True)


def is_banned(defense: Defense, address: str = BAD) -> bool:
    return defense.guard.banned(address) is not None


async def test_ban_when_one_server_imposes_it_then_all_hold_it_and_when_one_lifts_it_then_none_does(
    connect: Connect,
) -> None:
    async with server(connect) as one, server(connect) as other:
        attack(one)
        assert is_banned(one)
        await until(lambda: _true(is_banned(other)))
        assert other.guard.bans() == one.guard.bans()
        await other.unban(BAD)
        assert not is_banned(other)
        await until(lambda: _true(not is_banned(one)))


async def test_whitelist_when_one_server_adds_to_it_then_all_spare_the_network_and_its_bans_end(
    connect: Connect,
) -> None:
    async with server(connect) as one, server(connect) as other:
        attack(one)
        await until(lambda: _true(is_banned(other)))
        assert await other.allow("203.0.113.0/24", "ours", "key_1") == "203.0.113.0/24"
        await until(lambda: _true(not is_banned(one) and bool(one.guard.whitelist())))
        attack(one)
        assert not is_banned(one)
        assert one.guard.whitelist() == other.guard.whitelist()
        await one.disallow("203.0.113.0/24")
        await until(lambda: _true(not other.guard.whitelist()))
        attack(other)
        assert is_banned(other)


async def test_defense_when_a_server_starts_later_then_it_knows_what_was_and_counts_go_on(connect: Connect) -> None:
    async with server(connect) as one:
        attack(one)
        await one.allow("2001:db8::/32", "ours", "key_1")
        one.guard.enter(BAD)
        one.guard.enter("198.51.100.7")
        assert await one.counts() == Counts(2, 1)
        one.guard.enter(BAD)  # written when it stops
        bans, listed = one.guard.bans(), one.guard.whitelist()
    async with server(connect) as again:
        assert is_banned(again)
        assert (again.guard.bans(), again.guard.whitelist()) == (bans, listed)
        again.guard.enter("198.51.100.7")
        assert await again.counts() == Counts(4, 2)


async def test_offences_when_the_server_is_restarted_then_the_next_ban_is_longer(connect: Connect) -> None:
    async with server(connect) as one:
        now = time.time()
        ended = Ban(BAD, "flood", 1, now - 700, now - 100)
        one.guard.apply(Change("ban", BAD, ended))
        one.imposed(ended)
    async with server(connect) as again:
        assert not is_banned(again)
        attack(again)
        (ban,) = again.guard.bans()
        assert (ban.offence, round(ban.until - ban.banned_at)) == (2, 3600)
        assert again.guard.bans()[0].until != PERMANENT


async def test_defense_when_the_store_is_down_then_it_goes_on_in_memory_and_is_written_when_it_is_back(
    connect: Connect, valkey: Valkey
) -> None:
    async with server(connect) as one:
        attack(one, "203.0.113.1")
        await until(lambda: _true(not one._pending))
        valkey.stop()
        attack(one)
        assert is_banned(one)
        await one.unban("203.0.113.1")
        assert not is_banned(one, "203.0.113.1")
        one.guard.enter(BAD)
        assert (await one.counts()).blocked == 1
        valkey.start()
        await until(lambda: _true(not one._pending))
        assert is_banned(one)
    async with server(connect) as again:
        assert [ban.place for ban in again.guard.bans()] == [BAD]
        assert (await again.counts()).blocked == 1


async def test_defense_when_the_store_is_down_at_the_start_then_bans_come_with_it(
    connect: Connect, valkey: Valkey
) -> None:
    async with server(connect) as one:
        attack(one)
    async with connect() as store:
        valkey.stop()
        async with made(store) as defense:
            assert not is_banned(defense)
            valkey.start()
            await until(lambda: _true(is_banned(defense)))


async def test_count_when_a_batch_is_given_again_then_it_counts_once(store: RedisStore) -> None:
    for batch in (1, 1, 2):
        await store.defense.count("w", batch, Counts(10, 3))
    assert await store.defense.counts() == Counts(20, 6)


async def test_store_when_an_address_is_banned_then_it_stands_nowhere_in_clear(
    connect: Connect, valkey: Valkey
) -> None:
    async with server(connect) as one:
        attack(one)
        await one.allow("192.0.2.77", "the office", "key_1")
    raw = valkey.raw()
    assert b"defense:bans" in raw
    for secret in (BAD, "192.0.2.77", "the office"):
        assert secret.encode() not in raw


async def test_store_when_an_entry_cannot_be_read_then_the_others_are(
    connect: Connect, store: RedisStore, admins: list[Redis]
) -> None:
    async with server(connect) as one:
        attack(one)
    await store.client.run("HSET", "{memoryos}:defense:bans", "broken", b"x")
    assert [ban.place for ban in (await store.defense.load())[0]] == [BAD]


async def _true(value: bool) -> bool:
    return value
