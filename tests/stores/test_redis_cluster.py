"""A cluster whose nodes die, hang, hand over, or give slots away: whom it concerns is told, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from redis.crc import key_slot

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import Subject
from memoryos_server.stores.chain_adding import Adder
from memoryos_server.stores.heads import SignedHeads
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.redis_cluster import slot_of
from memoryos_server.stores.redis_url import parse
from memoryos_server.stores.scope import CHANGES, Partition
from memoryos_server.stores.sequencer import Sequencer
from tests.stores.redis_fixtures import EXPECTED, said, until
from tests.valkeys import MASTER_KEY, TcpValkey, ValkeyCluster

KEYS = MasterKeys(MASTER_KEY, None)
PEOPLE = 30


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ValkeyCluster]:
    """Three primaries, with as many replicas each as the test says."""
    made = ValkeyCluster(tmp_path / "c", "--cluster-require-full-coverage", "no", replicas=getattr(request, "param", 0))
    yield made.start()
    made.remove()


class People:
    """Some people of a store, by the node that has their partition, and what became of their writes."""

    def __init__(self, store: RedisStore, cluster: ValkeyCluster, people: list[Subject]) -> None:
        self.store = store
        self.cluster = cluster
        self.all = people
        self.failed: list[tuple[Subject, BackendDown]] = []
        self.written: Counter[str] = Counter()
        self.longest: Counter[str] = Counter()

    def of(self, node: TcpValkey) -> list[Subject]:
        return [who for who in self.all if self.cluster.primary_of(Partition(who.partition).queue) is node]

    async def write(self, who: Subject) -> None:
        """One turn more."""
        number, began = self.written[who.id] + 1, monotonic()
        try:
            await self.store.turns.accept(who, [said(who, f"e{number}")])
            self.written[who.id] = number
        except BackendDown as error:
            self.failed.append((who, error))
        self.longest[who.id] = max(self.longest[who.id], monotonic() - began)

    @asynccontextmanager
    async def writing(self, pause: float = 0.02) -> AsyncIterator[None]:
        """All of them write, and others ask all partitions, which goes to all nodes."""
        going = True

        async def again(what: Callable[[], Awaitable[object]], pause: float) -> None:
            while going:
                with suppress(BackendDown):  # who asks all nodes hears of each
                    await what()
                await asyncio.sleep(pause)

        tasks = [asyncio.create_task(again(lambda who=who: self.write(who), pause)) for who in self.all]  # type: ignore[misc]  # a late default
        tasks += [asyncio.create_task(again(self.store.queue.depth, 0.1)) for _ in range(2)]
        try:
            yield
        finally:
            going = False
            await asyncio.gather(*tasks)

    def refused(self) -> set[str]:
        """Whose writes were refused."""
        return {who.id for who, _ in self.failed}


@asynccontextmanager
async def opened(cluster: ValkeyCluster, timeout: float = 3.0) -> AsyncIterator[People]:
    async with RedisStore.connect(replace(parse(cluster.url), timeout=timeout), KEYS, EXPECTED) as store:
        people = [await store.subjects.open("acme", f"user-{number}") for number in range(PEOPLE)]
        yield People(store, cluster, people)


async def test_writes_when_a_primary_without_a_replica_dies_then_only_its_people_are_refused(
    cluster: ValkeyCluster,
) -> None:
    # The one of the lowest slots comes first wherever nodes are listed.
    victim = cluster.nodes[0]
    async with opened(cluster) as people:
        its = {who.id for who in people.of(victim)}
        assert 0 < len(its) < PEOPLE
        async with people.writing():
            await asyncio.sleep(0.5)
            assert not people.failed
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(3)
        assert people.refused() == its
        well = next(who for who in people.all if who.id not in its)
        # Who comes only now finds the others, too.
        for _ in range(3):
            late = Client(cluster.url)
            assert await late.run("XLEN", Partition(well.partition).queue) >= people.written[well.id] > 0
            await late.aclose()
        # It comes back at the same place, with what it had.
        await asyncio.to_thread(victim.start)
        for who in people.of(victim):
            await until(lambda who=who: _recovered(people, who), 15)  # type: ignore[misc]  # a late default


async def _recovered(people: People, who: Subject) -> bool:
    before = people.written[who.id]
    await people.write(who)
    return people.written[who.id] > before


async def test_writes_when_a_primary_hangs_then_only_its_people_wait_however_many_they_are(
    cluster: ValkeyCluster,
) -> None:
    victim = next(node for node in cluster.nodes if node is not cluster.primary_of(CHANGES))
    async with opened(cluster, timeout=1.5) as people:
        its = people.of(victim)
        assert its
        victim.pause()
        try:
            # More than there are connections to a node.
            hanging = [asyncio.create_task(people.write(its[number % len(its)])) for number in range(150)]
            await asyncio.sleep(0.3)
            for _ in range(10):
                await asyncio.gather(*(people.write(who) for who in people.all if who not in its))
                await asyncio.sleep(0.1)
            assert people.refused() <= {who.id for who in its}
            assert max(people.longest[who.id] for who in people.all if who not in its) < 1
        finally:
            victim.resume()
        await asyncio.gather(*hanging)


@pytest.mark.parametrize("cluster", [1], indirect=True)
async def test_writes_when_a_primary_hands_over_then_nobody_of_the_others_notices_and_nothing_is_lost(
    cluster: ValkeyCluster,
) -> None:
    async with opened(cluster) as people:
        victim = cluster.nodes[0]
        its = {who.id for who in people.of(victim)}
        async with people.writing(pause=0.005):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(cluster.hand_over, victim)
            await asyncio.sleep(2)
        assert people.refused() <= its
        assert cluster.primary_of(Partition(next(w for w in people.all if w.id in its).partition).queue) is not victim
        for who in people.all:
            assert await people.store.client.run("XLEN", Partition(who.partition).queue) >= people.written[who.id] > 0


async def test_slot_when_it_moves_to_a_new_node_then_reads_go_on_and_writes_are_told_and_end_well(
    cluster: ValkeyCluster, tmp_path: Path
) -> None:
    async with opened(cluster) as people:
        ann = people.all[0]
        await people.write(ann)
        queue = Partition(ann.partition).queue
        slot, source = key_slot(queue.encode()), cluster.primary_of(queue)
        target = await asyncio.to_thread(cluster.add, tmp_path / "new")
        others = [who for who in people.all if who.partition != ann.partition]
        run = people.store.client.run
        cluster.open_slot(slot, source, target)
        for moved in (False, True):
            if moved:
                assert cluster.move_keys(slot, source, target) > 0
            for _ in range(5):
                assert await run("XLEN", queue) == 1
                assert await run("ZSCORE", Partition(ann.partition).due, "nobody") is None
                assert await people.store.client.batch([("XLEN", queue)] * 3) == [1, 1, 1]
            assert await people.store.queue.depth() >= 1
            await people.write(ann)
            await asyncio.gather(*map(people.write, others))
        # Of keys on two nodes, or on the new one before it is said to have them, no script can be run.
        assert [str(error.message) for _, error in people.failed] == ["The store is moving its data"] * 2
        assert people.refused() == {ann.id}
        with pytest.raises(BackendDown, match="moving its data"):
            await anext(people.store.client.names())
        cluster.close_slot(slot, target)
        await people.write(ann)
        assert len(people.failed) == 2
        assert await run("XLEN", queue) == 2
        names = {name async for piece in people.store.client.names() for name in piece}
        assert queue.encode() in names


async def test_names_when_slots_moved_meanwhile_then_says_so(cluster: ValkeyCluster) -> None:
    async with opened(cluster) as people:
        queue = Partition(people.all[0].partition).queue
        slot, source = key_slot(queue.encode()), cluster.primary_of(queue)
        target = next(node for node in cluster.nodes if node is not source)
        names = people.store.client.names()
        await anext(names)
        cluster.open_slot(slot, source, target)
        cluster.move_keys(slot, source, target)
        cluster.close_slot(slot, target)
        with pytest.raises(BackendDown, match="moving its data"):
            async for _ in names:
                pass


async def test_batch_when_its_slot_has_moved_then_its_commands_are_done_in_their_order(cluster: ValkeyCluster) -> None:
    client = Client(cluster.url)
    keys = [f"{Partition(7).tag}:recent:{number}" for number in range(20)]
    slot, source = key_slot(keys[0].encode()), cluster.primary_of(keys[0])
    target = next(node for node in cluster.nodes if node is not source)
    await client.batch([("RPUSH", key, "old") for key in keys])
    cluster.open_slot(slot, source, target)
    cluster.move_keys(slot, source, target)
    cluster.close_slot(slot, target)
    words = [str(number) for number in range(10)]
    await client.batch([one for key in keys for one in (("DEL", key), *(("RPUSH", key, word) for word in words))])
    found = await client.batch([("LRANGE", key, 0, -1) for key in keys])
    assert found == [[word.encode() for word in words]] * len(keys)
    await client.aclose()


async def test_audit_when_a_primary_is_away_then_the_events_of_others_are_chained(
    cluster: ValkeyCluster, tmp_path: Path
) -> None:
    async with opened(cluster) as people:
        store = people.store
        victim = next(node for node in cluster.nodes if node is not cluster.primary_of(CHANGES))
        tenants = [f"tenant-{number}" for number in range(12)]
        well = [one for one in tenants if cluster.primary_of(store.chain.home(one).audit) is not victim]
        assert 0 < len(well) < len(tenants)
        heads = SignedHeads(tmp_path / "heads", "store", store.manifest.secrets)
        async with Sequencer(store.client, store.audit, Adder(store.chain, heads), sweep_seconds=1.0):
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(1.5)  # until it has tried to look through all outboxes
            for number in range(3):
                for one in tenants:
                    with suppress(BackendDown):
                        await store.audit.append([_event(one)])
                await asyncio.sleep(1.0)
                for one in well:
                    await until(lambda one=one, number=number: _chained(store, one, number + 1), 5)  # type: ignore[misc]  # late defaults


def _event(tenant: str) -> AuditEvent:
    return AuditEvent(uuid7(), utc_now(), "test", tenant, "", "", "Test", "ok", "anonymous")


async def _chained(store: RedisStore, tenant: str, count: int) -> bool:
    return (await store.chain.head(tenant)).count == count


async def test_batch_when_a_node_hangs_then_is_not_sent_again(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path / "c", "--cluster-node-timeout", "15000").start()
    client = Client(replace(parse(cluster.url), timeout=0.5))
    try:
        key = f"{Partition(7).tag}:recent:x"
        node = cluster.primary_of(key)
        await client.run("EXISTS", key)
        node.pause()
        with pytest.raises(BackendDown):
            await client.batch([("RPUSH", key, "one"), ("RPUSH", key, "two")])
        node.resume()
        await until(lambda: _answers(client, key), 10)
        await asyncio.sleep(0.3)
        assert await client.run("LRANGE", key, 0, -1) == [b"one", b"two"]
    finally:
        await client.aclose()
        cluster.remove()


async def _answers(client: Client, key: str) -> bool:
    try:
        return await client.run("LLEN", key) is not None
    except BackendDown:
        return False


@pytest.mark.parametrize(
    "command",
    [
        ("XLEN", "{p007}:queue"),
        ("EVAL", "return 1", 2, "{p007}:queue", "{p007}:lease", "x"),
        ("EVALSHA", "digest", 1, b"{p007}:queue"),
        ("XINFO", "STREAM", "{p007}:queue"),
    ],
)
def test_slot_when_a_command_has_a_key_then_is_its_slot(command: tuple[object, ...]) -> None:
    assert slot_of(command) == key_slot(b"p007")
