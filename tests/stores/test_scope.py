from __future__ import annotations

import os
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from redis import Redis
from redis.crc import key_slot

from memoryos_server.domain.core.audit import AuditEvent
from memoryos_server.domain.core.caller import Budget
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey, Change, HeatState, Subject, defense
from memoryos_server.domain.ports.consents import Consent
from memoryos_server.domain.ports.receipts import Receipt
from memoryos_server.domain.ports.usage import Spent, Usage
from memoryos_server.stores import (
    redis_audit,
    redis_budgets,
    redis_chain,
    redis_consents,
    redis_defense,
    redis_erasures,
    redis_heat,
    redis_keys,
    redis_queue,
    redis_receipts,
    redis_subjects,
    redis_turns,
    redis_usage,
    redis_user_data,
    rotation,
)
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_user_data import Work
from memoryos_server.stores.scope import (
    API_KEY_IDS,
    API_KEY_USES,
    API_KEYS,
    DEFENSE_BANS,
    DEFENSE_COUNTS,
    DEFENSE_WHITELIST,
    MANIFEST,
    STORE_KEYRING,
    Partition,
    Scope,
    defense_writer,
    is_subject_id,
    partition_of,
    usage_tenants,
)
from memoryos_server.stores.sealing import Sealer
from tests.stores.chain_support import Audited
from tests.stores.redis_fixtures import EXPECTED, Valkey, erase, lease_of, said, settle_all, until

SCRIPTS = [
    script
    for module in (
        redis_audit,
        redis_budgets,
        redis_chain,
        redis_consents,
        redis_defense,
        redis_erasures,
        redis_heat,
        redis_keys,
        redis_queue,
        redis_receipts,
        redis_subjects,
        redis_turns,
        redis_usage,
        redis_user_data,
        rotation,
    )
    for script in module.SCRIPTS
]
TODAY = utc_now().date()
DEFENSE = {DEFENSE_BANS, DEFENSE_WHITELIST, DEFENSE_COUNTS, defense_writer("w")}
GLOBAL = {
    MANIFEST,
    STORE_KEYRING,
    API_KEYS,
    API_KEY_IDS,
    API_KEY_USES,
    usage_tenants((TODAY - date(1970, 1, 1)).days),
} | DEFENSE


def scope(subject_id: str = "07" + "ab" * 15) -> Scope:
    subject = Subject(subject_id, "acme", "ann", 1)
    return Scope(subject, Sealer(os.urandom(32), "acme", subject_id))


def test_scope_when_asked_for_keys_then_all_lie_in_the_partition_s_slot() -> None:
    mine = scope()
    partition = mine.partition
    keys = [mine.record, *mine.keys(20_000), partition.lookup, partition.keyring, partition.queue]
    keys += [
        partition.audit,
        partition.audit_refused,
        partition.audit_batch("00"),
        partition.done("00"),
        partition.lease,
        partition.due,
    ]
    keys += [partition.chains, partition.chain("ab" * 20), partition.chain_head("ab" * 20)]
    keys += [partition.attempts, partition.changes, partition.dead, partition.dead_marks]
    assert len(set(keys)) == len(keys)
    assert {key_slot(key.encode()) for key in keys} == {key_slot(b"{p007}")}


def test_scope_when_partitions_differ_then_so_do_their_keys() -> None:
    assert len({Partition(number).queue for number in range(256)}) == 256


@pytest.mark.parametrize(
    "bad", ["", "07", "07" + "AB" * 15, "07" + "ab" * 16, "07}:x{p008" + "a" * 22, "08" + "ab" * 15]
)
def test_partition_when_the_id_is_no_id_of_it_then_makes_no_key(bad: str) -> None:
    with pytest.raises(ValueError, match="not a subject id"):
        Partition(7).subject(bad)


def test_is_subject_id_when_it_ends_in_a_newline_then_no() -> None:
    assert is_subject_id("ab" * 16)
    assert not is_subject_id("ab" * 16 + "\n")


def test_scope_when_filters_are_made_then_hold_no_name() -> None:
    mine, other = scope(), scope("07" + "cd" * 15)
    assert mine.filter() == {"s": mine.subject.id}
    assert mine.filter(session_id="") == {"s": mine.subject.id, "n": ""}
    assert "trip" not in str(mine.filter(session_id="trip to oslo"))
    assert mine.session("trip") != other.session("trip")
    assert mine.mark("e1") != other.mark("e1") != mine.mark("e2")
    assert len(mine.mark("e1")) == 16


async def test_everything_when_the_store_is_a_cluster_then_no_script_reaches_over_two_slots(
    cluster: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The node refuses a script whose declared keys lie in two slots, or that touches a key outside of their slot.
    bare = Client(cluster.url)
    await bare.run("CLUSTER ADDSLOTSRANGE", 0, 16383)
    await until(lambda: _formed(bare))
    await bare.aclose()
    declared: list[list[str]] = []
    used: set[str] = set()
    plain = Client.script

    async def watched(self: Client, script: Script, keys: list[str], args: list[str | bytes | int]) -> object:
        if script.name != "lengths":  # refused here once, and then asked stream by stream
            declared.append(list(keys))
        used.add(script.name)
        return await plain(self, script, keys, args)

    monkeypatch.setattr(Client, "script", watched)
    async with RedisStore.connect(cluster.url, MasterKeys("", tmp_path / "keys"), EXPECTED) as store:
        for user in ("ann", "bob", "cat", "dan"):
            await _use(store, user)
        assert (await rotation.rotate_master(store.client, store.manifest.master)).rewrapped == 4
        assert await store.queue.depth() == 8
        assert await store.queue.open_by_tenant() == {"acme": 8}
        for user in ("ann", "bob", "cat", "dan"):
            await _end(store, user)
        assert await store.queue.depth() == 4
        assert len([one async for one in store.audit.tail(None, 100)]) == 12
        audited = Audited(store, tmp_path)
        await audited.sequencer.now()
        assert (await audited.intact())["events"] == 12
        assert await audited.retention.move(0) == 12
        await store.client.run("XADD", Partition(9).audit, "*", "e", "put in", "w", "by nobody")
        await audited.sequencer.now()
        erased = await store.subjects.open("acme", "eve")
        await store.turns.accept(erased, [said(erased, "e1")])
        await settle_all(store, erased)
        await erase(store, erased)
        store.subjects.forget(erased.id)
        assert erased not in await store.queue.due(erased.partition, utc_now() + timedelta(days=1))
        dan = await store.erasures.begin("acme", "dan", "key_1", utc_now())
        assert await Work(store.client, store.queue).erase(dan.whose)
        assert await store.erasures.keep(dan, ended=True)
        keys = {key.decode() for key in await store.client.run("KEYS", "*")}
    assert all(len({key_slot(key.encode()) for key in one}) == 1 for one in declared)
    assert used >= {script.name for script in SCRIPTS}
    assert {key.split(":")[0] for key in keys - GLOBAL} <= {Partition(number).tag for number in range(256)}


async def test_keys_when_everything_was_used_then_all_carry_the_partition_or_are_global(
    store: RedisStore, admins: list[Redis]
) -> None:
    ann = await _use(store, "ann {p001}:queue")
    await _end(store, "ann {p001}:queue")
    seen = {key.decode() for admin in admins for key in admin.scan_iter(count=100)}
    assert seen >= GLOBAL
    mine = await store.subjects.scope(ann)
    owned = {mine.record, *mine.keys(int(utc_now().timestamp() // 86_400))}
    assert {key for key in seen if ann.id in key} <= owned
    whose = (("audit", "acme"), ("usage", "acme"), ("budget", f"key_{ann.id[:16]}"))
    hashes = [store.manifest.secrets.hash(kind, name) for kind, name in whose]
    rest = {Partition(ann.partition).tag, *(partition_of(hashed).tag for hashed in hashes)}
    assert {key.split(":")[0] for key in seen - GLOBAL} == rest


async def _use(store: RedisStore, user: str) -> Subject:
    subject = await store.subjects.open("acme", user)
    event = AuditEvent(
        f"v-{user}", utc_now(), "memory.add", "acme", user, "memory/1", "AddMemory", "ok", "key_1", "::1"
    )
    await store.turns.accept(subject, [said(subject, "e1"), said(subject, "e2", "b")], event)
    await store.turns.recent(subject, 20)
    await store.consents.record(subject, Consent(uuid7(), "data_processing", True, utc_now(), "key_1"), None)
    anonymous = AuditEvent(f"w-{user}", utc_now(), "denied", "acme", "", "", "AddMemory", "denied", "anonymous")
    await store.audit.append(
        [anonymous, AuditEvent(f"x-{user}", utc_now(), "read", "acme", user, "", "R", "ok", "key_1")]
    )
    key = ApiKey(f"key_{subject.id[:16]}", user, "acme", frozenset({"chat"}), "", utc_now(), None)
    await store.keys.create(f"secret-key-of-{user}", key)
    await store.keys.find(f"secret-key-of-{user}")
    await store.keys.look(key.id)
    await store.keys.rotate(key, None, f"next-key-of-{user}", replace(key, id=f"key_n{subject.id[:15]}"))
    await store.keys.find(f"next-key-of-{user}")
    await store.keys.create("passing-key", ApiKey("key_p", user, "acme", frozenset({"chat"}), "", utc_now(), None))
    await store.keys.revoke("key_p")
    await store.keys.list()
    await store.receipts.keep(subject, [Receipt(uuid7(), "m", "upstream", "p", "", 1, 1, False, ())])
    await store.budgets.admit(key.id, Budget(1, 1), 0)
    await store.budgets.spend("w", 1, key.id, TODAY, 1)
    await store.usage.add("w", int(utc_now().timestamp()), [Usage(TODAY, "acme", key.id, "m", Spent(1))])
    await store.defense.put(defense.Change("ban", "192.0.2.7", defense.Ban("192.0.2.7", "flood", 1, 1.0, 2.0)))
    await store.defense.put(defense.Change("list", "10.0.0.0/8", defense.Listed("10.0.0.0/8", "", 1.0, "operator")))
    await store.defense.count("w", int(utc_now().timestamp()), defense.Counts(1, 1))
    return subject


async def _end(store: RedisStore, user: str) -> None:
    """Every way in which work ends, and what is left to read: two entries become one."""
    subject = await store.subjects.open("acme", user)
    first, second = said(subject, "e1"), said(subject, "e2", "b")
    lease = await lease_of(store, subject)
    mine = [one async for one in store.queue.open_entries(subject.partition) if one.subject == subject]
    entry = mine[0]
    await store.queue.started(lease, [entry])
    await store.queue.failed(lease, entry, "timeout", give_up=False)
    await store.queue.failed(lease, entry, "poison", give_up=True)
    letters = [one async for one in store.queue.dead_letters("acme") if one.subject == subject]
    assert await store.queue.requeue(letters[0].id, "acme")
    await settle_all(store, subject)
    assert await store.queue.fresh(subject) == [second.id, first.id]
    await store.queue.consolidated(lease, subject, [first.id], None)
    await store.heat.put(subject, {second.id: HeatState(1, 1, utc_now())})
    assert await store.turns.state(subject, "e1")
    assert len((await store.turns.sessions(subject, "", 10))[0]) == 1
    change = Change(remove=(first.id,), events={first.id: ("e1", "s-1")})
    await store.queue.submit(subject, change, None, revision=0)
    await store.queue.release(lease)


async def _formed(client: Client) -> bool:
    return bool((await client.run("CLUSTER INFO"))["cluster_state"] == "ok")
