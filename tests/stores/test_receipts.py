"""Receipts of chats: sealed in real stores, gone with their user, and shown without what was deleted since."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as changed

import pytest
from redis import Redis

from memoryos_server.domain.chat.model import MemoryReport, RecalledItem
from memoryos_server.domain.chat.receipts import Receipts
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import BackendDown, Forbidden, NotFound, Stale
from memoryos_server.domain.core.ids import alias, uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Record, Subject, Turn
from memoryos_server.domain.ports.receipts import Receipt, ReceiptItem
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_receipts import RedisReceipts
from tests.stores.redis_fixtures import Connect, Valkey, erase, said, until

DAY = 86_400


def receipt(*items: ReceiptItem, made: str = "") -> Receipt:
    return Receipt(made or uuid7(), "fake-1", "upstream", "default", "e1", 120, 2000, True, items)


def item(memory_id: str = "", **how: object) -> ReceiptItem:
    return changed(ReceiptItem(memory_id or uuid7(), "episode", 0.25, 31), **how)


def made_on(days_ago: int) -> str:
    """A receipt's id of an earlier day."""
    value = uuid.UUID(uuid7()).int - (days_ago * DAY * 1000 << 80)
    return str(uuid.UUID(int=value))


async def test_receipts_when_kept_then_their_subject_finds_them_as_they_were(
    store: RedisStore, connect: Connect
) -> None:
    ann, ben = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "ben")
    items = (item(parts={"lexical": 1.5, "order": -0.25}, outdated=True), item(tier="rule", cut=True, importance=0.75))
    full, empty = receipt(*items), receipt()
    await store.receipts.keep(ann, [full, empty])
    await store.receipts.keep(ann, [full])
    async with connect() as other:
        assert await other.receipts.find(ann, full.id) == full
        assert await other.receipts.find(ann, empty.id) == empty
        assert await other.receipts.find(ben, full.id) is None


@pytest.mark.parametrize("bad", ["", "x", "0" * 32, str(uuid.uuid4()), "018f4e5c-7f00-7000-8000-00000000000Z"])
async def test_receipts_when_an_id_is_none_of_ours_then_nothing_is_found(store: RedisStore, bad: str) -> None:
    ann = await store.subjects.open("acme", "ann")
    assert await store.receipts.find(ann, bad) is None
    assert await store.receipts.find(ann, uuid7().upper()) is None


async def test_receipts_when_they_lie_in_the_store_then_they_are_sealed(valkey: Valkey, store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    one = item(tier="knowledge")
    await store.receipts.keep(ann, [receipt(one)])
    raw = valkey.raw()
    assert bytes.fromhex(one.id.replace("-", "")) not in raw
    assert b"knowledge" not in raw


async def test_receipts_when_their_days_or_their_room_are_over_then_they_go(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    brief = RedisReceipts(store.client, store.subjects, days=2, most=3)
    several = [receipt() for _ in range(5)]
    await brief.keep(ann, several)
    assert [await brief.find(ann, one.id) is not None for one in several] == [True] * 3 + [False] * 2
    (left,) = (admin.ttl(key) for admin in admins for key in admin.keys("*:receipts:*"))
    assert 2 * DAY < left <= 3 * DAY
    late = receipt(made=made_on(3))
    await brief.keep(ann, [late])
    assert await brief.find(ann, late.id) is None


async def test_receipts_when_their_user_is_erased_then_they_are_out_of_reach_and_known_by_key(
    store: RedisStore, connect: Connect, admins: list[Redis]
) -> None:
    ann = await store.subjects.open("acme", "ann")
    longest = RedisReceipts(store.client, store.subjects, days=1000)
    kept = [receipt(made=made_on(days)) for days in (0, 1, 29, 30)]
    await longest.keep(ann, kept)
    mine = (await store.subjects.scope(ann)).keys(int(utc_now().timestamp() // DAY))
    seen = {key.decode() for admin in admins for key in admin.keys("*:receipts:*")}
    assert len(seen) == 4
    assert seen <= set(mine)
    async with connect() as other:
        await erase(other, ann)
        await store.receipts.keep(ann, [receipt(made=made_on(5))])  # the epoch is over, whatever is cached
        assert len({key for admin in admins for key in admin.keys("*:receipts:*")}) == 4
        store.subjects.forget(ann.id)
        with pytest.raises(Stale):
            await store.receipts.find(ann, kept[0].id)


@dataclass
class Kept:
    """Which memories exist."""

    turns: list[Turn] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    async def get(self, subject: Subject, ids: Sequence[str]) -> list[Turn]:
        return [turn for turn in self.turns if turn.id in ids]

    async def records(self, subject: Subject, ids: Sequence[str]) -> list[Record]:
        now = utc_now()
        return [Record(one, "memory", 1, "", "fact", now, now, now) for one in ids if one in self.known]


ANN = Caller("acme", "ann", frozenset({"chat"}), "key_1")


def report(receipts: Receipts, *ids: str) -> MemoryReport:
    injected = tuple(RecalledItem(one, "episode", "user", "text", None, 0.5, tokens=9) for one in ids)
    return MemoryReport(injected, 100, receipt_id=receipts.new_id())


async def test_show_when_a_memory_was_deleted_since_then_the_receipt_does_not_name_it(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    there, fresh, noted, gone = said(ann, "e1"), said(ann, "e2"), uuid7(), uuid7()
    await store.turns.accept(ann, [fresh])  # in short-term memory only
    receipts = Receipts(store.subjects, store.receipts, Kept([there], {alias(ann.id, noted)}), store.turns)
    told = report(receipts, there.id, gone, fresh.id, noted)
    receipts.keep("acme", "ann", "fake-1", 2000, told)
    shown = await receipts.show(ANN, "", told.receipt_id)
    assert [one.id for one in shown.receipt.items] == [there.id, fresh.id, noted]
    assert (shown.removed, shown.receipt.tokens, shown.receipt.budget) == (1, 100, 2000)


async def test_show_when_it_is_somebody_else_s_then_it_is_unknown(store: RedisStore) -> None:
    receipts = Receipts(store.subjects, store.receipts, Kept(), store.turns)
    told = report(receipts)
    receipts.keep("acme", "ann", "fake-1", 2000, told)
    await store.subjects.open("acme", "ben")
    await store.subjects.open("globex", "ann")
    for who in (ANN._replace(user_id="ben"), ANN._replace(tenant_id="globex"), ANN._replace(user_id="nobody")):
        with pytest.raises(NotFound):
            await receipts.show(who, "", told.receipt_id)
    with pytest.raises(Forbidden):
        await receipts.show(ANN, "ben", told.receipt_id)
    assert (await receipts.show(ANN, "ann", told.receipt_id)).receipt.id == told.receipt_id


async def test_keep_when_the_store_is_away_then_receipts_wait_in_a_bounded_room(
    valkey: Valkey, store: RedisStore
) -> None:
    await store.subjects.open("acme", "ann")
    receipts = Receipts(store.subjects, store.receipts, Kept(), store.turns, most=2)
    valkey.kill()
    told = [report(receipts) for _ in range(2)]
    for one in told:
        receipts.keep("acme", "ann", "fake-1", 2000, one)
    assert receipts.new_id() == ""
    with pytest.raises(BackendDown):
        await receipts.write()
    valkey.start()

    async def written() -> bool:
        with suppress(BackendDown):
            await receipts.write()
            return True
        return False

    await until(written)
    assert receipts.new_id()
    assert (await receipts.show(ANN, "", told[1].receipt_id)).receipt.id == told[1].receipt_id


async def test_receipts_when_they_run_then_they_are_written_by_themselves_and_at_the_end(store: RedisStore) -> None:
    ann = await store.subjects.open("acme", "ann")
    async with Receipts(store.subjects, store.receipts, Kept(), store.turns, interval=0.02) as receipts:
        first, last = report(receipts), report(receipts)
        receipts.keep("acme", "ann", "fake-1", 2000, first)
        await until(lambda: store.receipts.find(ann, first.receipt_id))
        receipts.keep("acme", "ann", "fake-1", 2000, last)
    assert await store.receipts.find(ann, last.receipt_id)


async def test_write_when_a_receipt_cannot_be_packed_then_it_alone_is_lost(store: RedisStore) -> None:
    ann, ben = await store.subjects.open("acme", "ann"), await store.subjects.open("acme", "ben")
    async with Receipts(store.subjects, store.receipts, Kept(), store.turns, interval=60) as receipts:
        good, bad, others = report(receipts), report(receipts), report(receipts)
        receipts.keep("acme", "ann", "fake-1", 2000, good)
        receipts.keep("acme", "ann", "\ud800", 2000, bad)
        receipts.keep("acme", "ben", "fake-1", 2000, others)
        await receipts.write()
        assert await store.receipts.find(ben, others.receipt_id)
        assert await store.receipts.find(ann, good.receipt_id)
        with pytest.raises(NotFound):
            await receipts.show(ANN, "", bad.receipt_id)
        receipts.keep("acme", "ann", "\ud800", 2000, bad)  # the stop does not stumble over it


async def test_write_when_who_chatted_was_erased_meanwhile_then_who_came_back_has_no_receipt_of_it(
    store: RedisStore,
) -> None:
    ann = await store.subjects.open("acme", "ann")
    receipts = Receipts(store.subjects, store.receipts, Kept(), store.turns, interval=60)
    before, after = report(receipts), report(receipts)
    await store.erasures.begin("acme", "ann", "key_1", utc_now())
    receipts.keep("acme", "ann", "fake-1", 2000, before, ann.id)
    await receipts.write()
    assert await store.subjects.find("acme", "ann") is None
    new = await store.subjects.open("acme", "ann")
    receipts.keep("acme", "ann", "fake-1", 2000, before, ann.id)
    receipts.keep("acme", "ann", "fake-1", 2000, after)
    await receipts.write()
    assert await store.receipts.find(new, before.receipt_id) is None
    assert await store.receipts.find(new, after.receipt_id) is not None
