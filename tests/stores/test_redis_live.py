"""The live kinds of store: credentials, TLS, sentinels, a cluster that loses a primary, and what doctor says of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports import Subject
from memoryos_server.stores import redis_doctor
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client
from memoryos_server.stores.redis_doctor import Found, examine
from memoryos_server.stores.redis_url import Endpoint, parse
from memoryos_server.stores.scope import CHANGES, Partition
from tests.stores.redis_fixtures import EXPECTED, said, until
from tests.valkeys import HOST, MASTER_KEY, Authority, TcpValkey, ValkeyCluster, ValkeySentinels, tls_proxy

KEYS = MasterKeys(MASTER_KEY, None)
RIGHTS = (
    "~{memoryos}:*", "~{p*}:*", "&{memoryos}:*", "+@all", "-@admin", "-@dangerous", "+info", "+cluster|slots", "+cluster|shards",
    "+cluster|info", "+cluster|nodes",
)  # fmt: skip


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[TcpValkey]:
    server = TcpValkey(tmp_path / "plain", "--enable-debug-command", "local").start()
    yield server
    server.remove()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def opened(where: str | Endpoint) -> AsyncIterator[RedisStore]:
    async with RedisStore.connect(where, KEYS, EXPECTED) as store:
        yield store


async def journey(store: RedisStore, user: str = "ann") -> None:
    """One turn accepted and read again, an API key looked for, a change heard of."""
    ann = await store.subjects.open("acme", user)
    assert not (await store.turns.accept(ann, [said(ann, "e1")]))[0].duplicate
    assert [turn.content for turn in await store.turns.recent(ann, 20)] == ["I live in Oslo"]
    assert await store.queue.depth() >= 1
    assert await store.keys.find("an-unknown-key-of-nobody") is None
    await store.ping()
    assert store.changes.live


async def found(where: str | Endpoint, master_key: str = "") -> dict[str, Found]:
    """The findings by name; of several of one name the worst."""
    order = {"ok": 0, "warning": 1, "broken": 2}
    listed = await examine(parse(where) if isinstance(where, str) else where, master_key)
    return {one[0]: one for one in sorted(listed, key=lambda one: order[one[1]])}


async def test_connect_when_an_acl_user_has_the_documented_rights_then_everything_works(plain: TcpValkey) -> None:
    plain.admin.execute_command("ACL SETUSER", "memory", "on", ">p@ss:/word", *RIGHTS)
    plain.admin.execute_command("ACL SETUSER", "default", "off")
    url = f"redis://memory:p%40ss%3A%2Fword@{plain.address}"
    async with opened(url) as store:
        await journey(store)
    assert (await found(url))["redis"][1] == "ok"
    assert "redis rights" not in await found(url)


@pytest.mark.parametrize("who", ["", "default:wrong@", "nobody:secret@"])
async def test_connect_when_the_credentials_are_wrong_then_is_refused_and_doctor_names_them(
    tmp_path: Path, who: str
) -> None:
    server = TcpValkey(tmp_path / "v", password="secret").start()
    try:
        url = f"redis://{who}{server.address}"
        with pytest.raises(BackendDown, match="does not let this server in"):
            async with opened(url):
                pass
        name, state, text, hint = (await found(url))["redis"]
        assert (name, state) == ("redis", "broken")
        assert "refuses the user or the password" in text
        assert "redis.password" in hint
        assert "wrong" not in text
    finally:
        server.remove()


def test_docs_when_they_show_the_rights_of_a_user_then_they_are_those_tested() -> None:
    shown = (Path(__file__).parents[2] / "docs" / "live-stores.md").read_text()
    assert f"ACL SETUSER memory on >PASSWORD {' '.join(RIGHTS)}\n" in shown
    assert " ".join(RIGHTS) == redis_doctor.RIGHTS


async def test_connect_when_the_user_lacks_rights_then_is_down_and_doctor_says_which(plain: TcpValkey) -> None:
    plain.admin.execute_command("ACL SETUSER", "memory", "on", ">pw", "~*", "&*", "+@read", "+info", "+acl|whoami")
    url = f"redis://memory:pw@{plain.address}"
    with pytest.raises(BackendDown, match="does not let this server in"):
        async with opened(url):
            pass
    assert (await found(url))["redis rights"][1] == "broken"


async def test_connect_when_tls_is_in_front_then_works_and_a_stranger_s_certificate_is_refused(
    plain: TcpValkey, authority: Authority, tmp_path: Path
) -> None:
    with tls_proxy(plain.port, authority) as port:
        trusted = Endpoint(hosts=((HOST, port),), tls=True, ca_file=str(authority.ca_file))
        async with opened(trusted) as store:
            await journey(store)
        assert (await found(trusted))["redis"][1] == "ok"
        strange = replace(trusted, ca_file=str(Authority(tmp_path / "other").ca_file))
        for wrong, says in (
            (strange, "certificate is not trusted"),
            (replace(trusted, ca_file=""), "certificate is not trusted"),
            (replace(trusted, tls=False, ca_file=""), "may want TLS"),
        ):
            with pytest.raises(BackendDown):
                async with opened(wrong):
                    pass
            assert says in (await found(wrong))["redis"][2]
    speaks_none = Endpoint(hosts=((HOST, plain.port),), tls=True, ca_file=str(authority.ca_file))
    assert "does not speak TLS" in (await found(speaks_none))["redis"][2]


async def test_doctor_when_nobody_listens_then_says_so_in_time() -> None:
    began = time.monotonic()
    assert "cannot be reached" in (await found("redis://127.0.0.1:1"))["redis"][2]
    assert time.monotonic() - began < 5


async def test_doctor_when_the_store_forgets_or_evicts_then_warns_of_each(plain: TcpValkey) -> None:
    fine = await found(plain.url)
    assert {one[1] for one in fine.values()} == {"ok"} | ({"warning"} if "redis eviction" in fine else set())
    assert "redis eviction" not in fine
    plain.admin.config_set("appendonly", "no")
    plain.admin.config_set("maxmemory-policy", "allkeys-lru")
    bad = await found(plain.url)
    assert "keeps nothing over a restart" in bad["redis durability"][2]
    assert "allkeys-lru" in bad["redis eviction"][2]
    plain.admin.config_set("save", "60 1")
    assert "only snapshots" in (await found(plain.url))["redis durability"][2]


async def test_doctor_when_the_store_is_full_or_a_replica_then_is_broken(plain: TcpValkey, tmp_path: Path) -> None:
    plain.admin.config_set("maxmemory", 1000)
    assert (await found(plain.url))["redis memory"][1] == "broken"
    plain.admin.config_set("maxmemory", 0)
    replica = TcpValkey(tmp_path / "replica", "--replicaof", f"{HOST} {plain.port}").start()
    try:
        await until(lambda: asyncio.sleep(0, replica.admin.info("replication")["master_link_status"] == "up"))
        assert any("is a replica" in one[2] for one in (await found(replica.url)).values())
        with pytest.raises(BackendDown, match="replica"):
            async with opened(replica.url):
                pass
    finally:
        replica.remove()


async def test_doctor_when_the_master_key_is_another_one_then_names_both(plain: TcpValkey) -> None:
    async with opened(plain.url):
        pass
    assert (await found(plain.url, MASTER_KEY))["master key"][1] == "ok"
    assert "security.master_key is" in (await found(plain.url, "ab" * 32))["master key"][2]


async def test_doctor_when_a_cluster_lacks_slots_then_says_how_many(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path / "c", "--cluster-require-full-coverage", "no").start()
    try:
        assert "all 16384 slots are served by 3 primaries" in (await found(cluster.url))["redis cluster"][2]
        assert "node of a cluster" in (await found(cluster.nodes[0].url))["redis"][2]
        for node in cluster.nodes:
            node.admin.execute_command("CLUSTER DELSLOTSRANGE", 0, 99)
        assert "100 of the cluster's 16384 slots belong to no node" in (await found(cluster.url))["redis cluster"][2]
    finally:
        cluster.remove()


async def test_doctor_when_a_lone_server_is_called_a_cluster_then_says_so(plain: TcpValkey) -> None:
    assert "is not a cluster" in (await found(f"redis+cluster://{plain.address}"))["redis"][2]


async def test_accept_when_the_disk_cannot_be_written_then_is_down_and_nothing_is_half_written(
    plain: TcpValkey,
) -> None:
    async with opened(plain.url) as store:
        ann = await store.subjects.open("acme", "ann")
        plain.admin.config_set("appendonly", "no")
        # A snapshot that fails makes the store refuse writes, as a full disk does.
        plain.admin.config_set("save", "3600 1")
        (plain.directory / "dump.rdb").mkdir()
        plain.admin.bgsave()
        await until(lambda: asyncio.sleep(0, plain.admin.info("persistence")["rdb_last_bgsave_status"] == "err"))
        for refused in (store.turns.accept(ann, [said(ann, "e1")]), store.ping()):
            with pytest.raises(BackendDown, match="disk"):
                await refused
        assert (await found(plain.url))["redis disk"][1] == "broken"
        assert await store.turns.recent(ann, 20) == []
        assert await store.turns.state(ann, "e1") is None
        assert await store.queue.depth() == 0
        plain.admin.config_set("stop-writes-on-bgsave-error", "no")
        await store.ping()
        assert not (await store.turns.accept(ann, [said(ann, "e1")]))[0].duplicate


async def test_run_when_the_store_is_loading_then_is_down_and_says_so(plain: TcpValkey) -> None:
    admin = plain.admin
    with admin.pipeline(transaction=False) as pipe:
        for number in range(60_000):
            pipe.set(f"fill:{number}", "x" * 100)
        pipe.execute()
    admin.config_set("key-load-delay", 100)
    admin.config_set("loading-process-events-interval-bytes", 1024)
    client = Client(plain.url)
    loading = asyncio.create_task(asyncio.to_thread(_reload, plain))
    said_so = False
    try:
        while not loading.done():
            try:
                await client.probe()
            except BackendDown as fault:
                if not said_so and "loading" in fault.message:
                    said_so = True
                    admin.config_set("key-load-delay", 0)  # seen: the rest may be read at once
            await asyncio.sleep(0.02)
        await loading
        await client.probe()
    finally:
        await client.aclose()
    assert said_so


def _reload(server: TcpValkey) -> None:
    # Over a connection that waits as long as the loading takes.
    with redis.Redis(HOST, server.port, protocol=2) as admin:
        admin.execute_command("DEBUG", "RELOAD")


async def test_sentinel_when_the_master_dies_then_the_new_one_is_followed(tmp_path: Path) -> None:
    sentinels = ValkeySentinels(tmp_path / "s", password="secret").start()
    try:
        async with opened(sentinels.url) as store:
            await journey(store)
            ann = await store.subjects.open("acme", "ann")
            # What is acknowledged and has reached the replica is there after the fail-over.
            assert await asyncio.to_thread(sentinels.primary.admin.wait, 1, 2000) == 1
            sentinels.primary.kill()
            with pytest.raises(BackendDown):
                await store.turns.accept(ann, [said(ann, "e2")])
            await until(lambda: _accepts(store, ann, "e2"), 20)
            assert [turn.event_id for turn in await store.turns.recent(ann, 20)] == ["e1", "e2"]
            await until(lambda: asyncio.sleep(0, store.changes.live), 10)
            other_says = await found(sentinels.url)
            assert other_says["redis"][1] == "ok"
            # The old master comes back as a replica: nobody writes to it. The sentinels take their time to tell it.
            sentinels.primary.start()
            await until(lambda: asyncio.sleep(0, sentinels.primary.admin.info("replication")["role"] == "slave"), 60)
            assert await _accepts(store, ann, "e3")
    finally:
        sentinels.remove()


async def test_sentinel_when_the_master_hangs_then_the_new_one_is_followed(tmp_path: Path) -> None:
    sentinels = ValkeySentinels(tmp_path / "s").start()
    try:
        async with opened(replace(parse(sentinels.url), timeout=1.0)) as store:
            ann = await store.subjects.open("acme", "ann")
            # Many connections, all of them to what will hang.
            await asyncio.gather(*(store.turns.accept(ann, [said(ann, f"e{number}")]) for number in range(40)))
            assert await asyncio.to_thread(sentinels.primary.admin.wait, 1, 2000) == 1
            sentinels.primary.pause()
            try:
                await until(lambda: _accepts(store, ann, "after"), 20)
                assert len(await store.turns.recent(ann, 100)) == 20
                assert await store.queue.depth() == 41
            finally:
                sentinels.primary.resume()
    finally:
        sentinels.remove()


async def test_sentinel_when_no_sentinel_knows_the_service_then_doctor_says_so(tmp_path: Path) -> None:
    sentinels = ValkeySentinels(tmp_path / "s", sentinels=1).start()
    try:
        wrong = sentinels.url.replace(f"/{sentinels.SERVICE}", "/other")
        assert "where the master of other is" in (await found(wrong))["redis"][2]
        with pytest.raises(BackendDown):
            async with opened(wrong):
                pass
    finally:
        sentinels.remove()


async def test_cluster_when_a_primary_is_killed_then_writes_resume_and_nothing_that_was_replicated_is_lost(
    tmp_path: Path,
) -> None:
    cluster = ValkeyCluster(tmp_path / "c", replicas=1, primaries=3).start()
    try:
        async with opened(cluster.url) as store:
            people = [await store.subjects.open("acme", f"user-{number}") for number in range(30)]
            for who in people:
                await store.turns.accept(who, [said(who, "before")])
            ann = people[0]
            victim = cluster.primary_of(Partition(ann.partition).lease)
            assert await asyncio.to_thread(victim.admin.wait, 1, 2000) == 1
            victim.kill()
            began = time.monotonic()
            with pytest.raises(BackendDown):
                await store.turns.accept(ann, [said(ann, "after")])
            await until(lambda: _accepts(store, ann, "after"), 30)
            assert time.monotonic() - began < 20
            for who in people:
                await until(lambda who=who: _accepts(store, who, "after"), 10)
                assert [turn.event_id for turn in await store.turns.recent(who, 20)] == ["before", "after"]
            await until(lambda: asyncio.sleep(0, store.changes.live), 15)
            await store.ping()
            assert await store.queue.depth() == 60
    finally:
        cluster.remove()


async def test_cluster_when_a_primary_hangs_then_its_people_wait_once_and_the_others_not_at_all(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path / "c", "--cluster-require-full-coverage", "no").start()
    try:
        async with opened(replace(parse(cluster.url), timeout=1.0)) as store:
            people = [await store.subjects.open("acme", f"user-{number}") for number in range(12)]
            victim = cluster.primary_of(Partition(people[0].partition).lease)
            hanging = [who for who in people if cluster.primary_of(Partition(who.partition).lease) is victim]
            well = [who for who in people if who not in hanging]
            assert well
            victim.pause()
            try:
                began = time.monotonic()
                with pytest.raises(BackendDown):
                    await store.turns.accept(hanging[0], [said(hanging[0], "e1")])
                assert time.monotonic() - began < 3
                for who in well:
                    await until(lambda who=who: _accepts(store, who, "e1"), 5)
            finally:
                victim.resume()
            for who in people:
                await until(lambda who=who: _accepts(store, who, "e1"), 10)
                assert len(await store.turns.recent(who, 20)) == 1
    finally:
        cluster.remove()


async def test_cluster_when_the_node_of_the_channel_dies_then_changes_are_heard_again(tmp_path: Path) -> None:
    cluster = ValkeyCluster(tmp_path / "c", replicas=1, primaries=3).start()
    try:
        async with opened(cluster.url) as one, opened(cluster.url) as two:
            heard: list[str] = []
            two.changes.listen("test", heard.append)
            one.changes.tell("test", "first")
            await until(lambda: asyncio.sleep(0, heard == ["first"]), 5)
            cluster.primary_of(CHANGES).kill()
            await until(lambda: asyncio.sleep(0, not two.changes.live), 10)
            await until(lambda: asyncio.sleep(0, two.changes.live), 20)
            await until(lambda: _told(one, heard), 10)
    finally:
        cluster.remove()


async def _told(store: RedisStore, heard: list[str]) -> bool:
    store.changes.tell("test", "again")
    await asyncio.sleep(0.05)
    return "again" in heard


async def _accepts(store: RedisStore, who: Subject, event_id: str) -> bool:
    try:
        await store.turns.accept(who, [said(who, event_id)])
    except BackendDown:
        await asyncio.sleep(0.1)
        return False
    return True
