"""Keys, audit, consent and privacy by both clients, against a real server that asks for keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from memoryos import AsyncClient, Client, errors
from memoryos.auditing import AuditEvent
from tests.system import System, until

ADMIN = "the-admin-key-of-this-test-1"
ENV = {
    "MEMORYOS_EMBEDDING__MODEL": "none",
    "MEMORYOS_AUTH__ENABLED": "true",
    "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("rights"), ENV)
    try:
        yield made.start(bridge=False)
        made.stop()
    finally:
        made.kill(group=True)


@pytest.fixture
def admin(system: System) -> Iterator[Client]:
    with Client(system.grpc, api_key=ADMIN, tenant_id="acme") as client:
        yield client


def test_keys_when_made_listed_rotated_and_deleted_then_as_over_rest(admin: Client, system: System) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    made = admin.keys.create("ann", ["memory"], description="hers", expires_at=ends, tokens_per_day=10**12)
    assert made.api_key.startswith("mos-")
    assert made.api_key not in repr(made)
    key = made.key
    assert (key.user_id, key.tenant_id, key.permissions, key.description) == ("ann", "acme", ("memory",), "hers")
    assert (key.expires_at, key.last_used_at, key.tokens_per_day, key.requests_per_minute) == (ends, None, 10**12, 0)
    with Client(system.grpc, api_key=made.api_key) as hers:
        hers.add("I live in Porto.")
        with pytest.raises(errors.PermissionDenied):
            hers.keys.list()
    with pytest.raises(ValueError, match="zone"):
        admin.keys.create("ann", ["memory"], expires_at=datetime(2030, 1, 1))  # noqa: DTZ001  # the point
    other = admin.keys.create("bob", ["chat"], api_key="a-key-that-bob-has-chosen")
    assert other.api_key == "a-key-that-bob-has-chosen"
    first = admin.keys.list(page_size=1)
    second = admin.keys.list(page_size=1, page_token=first.next_page_token)
    assert [one.id for one in (*first.keys, *second.keys)] == [key.id, other.key.id]
    assert [one.id for one in admin.keys.list(of_user="bob").keys] == [other.key.id]
    new = admin.keys.rotate(key.id, overlap_seconds=60)
    assert (new.old_id, new.key.permissions, new.key.expires_at) == (key.id, ("memory",), ends)
    assert new.old_expires_at < ends
    assert new.api_key not in repr(new)
    users = {one.user_id: one for one in admin.keys.users().users}
    assert (users["ann"].key_count, users["ann"].has_memory) == (2, True)
    assert (users["bob"].has_memory, users["bob"].last_used_at) == (False, None)
    assert admin.keys.delete(other.api_key) == other.key.id
    with pytest.raises(errors.NotFound):
        admin.keys.delete(other.key.id)


def test_audit_when_asked_then_what_was_done_newest_first(admin: Client) -> None:
    admin.add("I like tea.", user_id="eve")
    admin.retrieve("tea?", user_id="eve")

    def events(event_type: str = "") -> list[AuditEvent]:
        return list(admin.audit.list(user_id="eve", event_type=event_type).events)

    until(lambda: {"memory.retrieve", "memory.add"} <= {one.event_type for one in events()})
    (event,) = events("memory.add")
    assert (event.user_id, event.outcome, event.action, event.count) == ("eve", "ok", "AddMemory", 1)
    assert event.timestamp.tzinfo is not None
    first = admin.audit.list(user_id="eve", limit=1)
    second = admin.audit.list(user_id="eve", limit=1, page_token=first.next_page_token)
    assert first.events[0].id != second.events[0].id
    assert first.events[0].timestamp >= second.events[0].timestamp
    assert admin.audit.list(user_id="eve", before=event.timestamp).events == ()
    assert admin.audit.total() >= 2


def test_consent_when_withdrawn_and_given_then_it_says_so(admin: Client) -> None:
    assert not admin.consent.check("analytics", user_id="fay")
    admin.consent.record("analytics", granted=True, user_id="fay")
    assert admin.consent.check("analytics", user_id="fay")
    admin.consent.record("data_processing", granted=False, user_id="fay")
    with pytest.raises(errors.PermissionDenied):
        admin.add("I like tea.", user_id="fay")
    admin.consent.record("data_processing", granted=True, user_id="fay")
    admin.add("I like tea.", user_id="fay")


def test_privacy_when_exported_and_deleted_then_whole_and_gone(admin: Client) -> None:
    admin.add("I live in Porto. " + "é" * 90_000, user_id="guy")
    export = admin.privacy.export(user_id="guy")
    assert (export["user_id"], export["tenant_id"]) == ("guy", "acme")
    assert export["manifest"]["counts"]["episodes"] == len(export["episodes"]) == 1
    text = "".join(admin.privacy.export_text(user_id="guy"))
    assert json.loads(text)["episodes"] == export["episodes"]
    erased = admin.privacy.delete(user_id="guy")
    assert (erased.status, erased.errors) == ("ok", ())
    certificate = admin.privacy.certificate(erased.certificate_id)
    assert (certificate.id, certificate.status, certificate.tenant_id) == (erased.certificate_id, "ok", "acme")
    parts = {one.category: one for one in certificate.categories}
    assert (parts["episodes"].removed, parts["episodes"].left, parts["episodes"].error) == (1, 0, "")
    assert certificate.verified_at is not None
    assert admin.privacy.export(user_id="guy")["episodes"] == []
    with pytest.raises(errors.NotFound):
        admin.privacy.certificate("0" * 32)


async def test_async_client_when_it_asks_the_same_then_it_gets_the_same(system: System) -> None:
    async with AsyncClient(system.grpc, api_key=ADMIN, tenant_id="north") as client:
        made = await client.keys.create("ann", ["memory"])
        assert [one.id for one in (await client.keys.list()).keys] == [made.key.id]
        new = await client.keys.rotate(made.key.id, overlap_seconds=0)
        assert (new.old_id, new.key.user_id) == (made.key.id, "ann")
        assert [one.key_count for one in (await client.keys.users()).users] == [1]
        assert await client.keys.delete(new.key.id) == new.key.id
        await client.consent.record("analytics", granted=True, user_id="ann")
        assert await client.consent.check("analytics", user_id="ann")
        await client.add("I live in Porto.", user_id="ann")
        assert len((await client.privacy.export(user_id="ann"))["episodes"]) == 1
        erased = await client.privacy.delete(user_id="ann")
        assert (await client.privacy.certificate(erased.certificate_id)).status == "ok"
        for _ in range(100):
            types = [one.event_type for one in (await client.audit.list()).events]
            if types.count("gdpr.delete") == 2:
                break
            await asyncio.sleep(0.1)
        assert {"key.create", "key.rotate", "key.revoke", "consent.record", "gdpr.export", "gdpr.delete"} <= {*types}
        assert await client.audit.total() >= len(types)
