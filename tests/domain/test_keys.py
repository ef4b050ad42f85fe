"""API keys as use cases, on a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from memoryos_server.domain.admin.keys import Keeper, KeyService, NewKey
from memoryos_server.domain.core.faults import Invalid, NotFound, Stale
from memoryos_server.domain.core.time import utc_now
from memoryos_server.domain.ports import ApiKey
from memoryos_server.stores.keyring import MasterKeys
from memoryos_server.stores.redis import RedisStore
from tests.stores.redis_fixtures import EXPECTED, Valkey

OPERATOR = Keeper("operator", every=True)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RedisStore]:
    directory = tmp_path / "valkey"
    directory.mkdir()
    valkey = Valkey(directory)
    valkey.start()
    try:
        async with RedisStore.connect(valkey.url, MasterKeys("", tmp_path / "keys"), EXPECTED) as opened:
            yield opened
    finally:
        valkey.stop()
        valkey.remove()


async def recorded(store: RedisStore) -> list[tuple[str, str]]:
    return [(event.event_type, event.outcome) async for event in store.audit.tail(None, 20)]


@pytest.mark.parametrize("by_id", [True, False])
async def test_revoke_when_done_then_intent_and_outcome_are_recorded(store: RedisStore, by_id: bool) -> None:
    keys = KeyService(store.keys, store.audit)
    key, record = await keys.create(NewKey("ann", "acme", ["chat"]), OPERATOR)
    assert (await keys.revoke(record.id if by_id else key, OPERATOR)).id == record.id
    assert await store.keys.find(key) is None
    assert await recorded(store) == [
        ("key.create", "intent"),
        ("key.create", "ok"),
        ("key.revoke", "intent"),
        ("key.revoke", "ok"),
    ]
    with pytest.raises(NotFound):
        await keys.revoke(record.id if by_id else key, OPERATOR)


@pytest.mark.parametrize("tenant", ["_system", ".", "..", "a b", "a" * 65])
async def test_create_when_the_tenant_is_reserved_or_malformed_then_refused(store: RedisStore, tenant: str) -> None:
    keys = KeyService(store.keys, store.audit)
    with pytest.raises(Invalid) as raised:
        await keys.create(NewKey("ann", tenant, ["chat"]), OPERATOR)
    assert raised.value.param == "tenant_id"
    assert await keys.listed(OPERATOR, "*") == []


async def test_admin_when_the_only_key_has_expired_then_there_is_none(store: RedisStore) -> None:
    keys = KeyService(store.keys, store.audit)
    now = utc_now()
    old = ApiKey("key_0", "ann", "*", frozenset({"admin"}), "", now, now - timedelta(seconds=1))
    await store.keys.create("x" * 20, old)
    assert not await keys.has_admin()
    await keys.create(NewKey("ann", "*", ["admin"], expires_at=now + timedelta(hours=1)), OPERATOR)
    assert await keys.has_admin()


async def test_last_admin_when_others_are_of_other_tenants_only_then_it_stays_and_gets_no_end(
    store: RedisStore,
) -> None:
    keys = KeyService(store.keys, store.audit)
    _, chief = await keys.create(NewKey("chief", "*", ["admin"]), OPERATOR)
    _, acme = await keys.create(NewKey("ann", "acme", ["admin"]), OPERATOR)
    await keys.create(NewKey("bob", "other", ["admin"]), OPERATOR)
    soon = utc_now() + timedelta(hours=1)
    for refused in (keys.revoke(chief.id, OPERATOR), keys.rotate(chief.id, OPERATOR, 0, soon)):
        with pytest.raises(Stale) as raised:
            await refused
        assert raised.value.reason == "last_admin_key"
    _, chief, _ = await keys.rotate(chief.id, OPERATOR, 0)
    await keys.revoke(acme.id, OPERATOR)  # the key of all tenants reaches hers
    _, ending, _ = await keys.rotate(chief.id, OPERATOR, 0, soon, keep_admin=False)
    _, later, _ = await keys.rotate(ending.id, OPERATOR, 0, soon)
    await keys.revoke(later.id, OPERATOR, keep_admin=False)
    _, acme = await keys.create(NewKey("ann", "acme", ["admin"]), OPERATOR)
    with pytest.raises(Stale):
        await keys.revoke(acme.id, OPERATOR)
