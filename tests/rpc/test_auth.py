from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from scratch.v1 import scratch_service_pb2 as pb

from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.saying import Sparing
from memoryos_server.domain.core.time import utc_now
from memoryos_server.rpc import auth as rpc_auth
from memoryos_server.rpc.auth import Auth, peer_address
from memoryos_server.stores.redis import RedisStore
from tests.rpc.conftest import ADMIN, bearer, client, failure, lines, record
from tests.scratch.serve import MemoryKeys, Scratch, run_scratch
from tests.stores.redis_fixtures import Valkey


@pytest.fixture
async def guarded(store: RedisStore) -> AsyncIterator[Scratch]:
    async with run_scratch(
        auth_enabled=True, admin_key=ADMIN, keys=store.keys, audit_log=store.audit, bridge_secret="bridge-secret"
    ) as running:
        yield running


@pytest.fixture
async def api(guarded: Scratch) -> AsyncIterator[Any]:
    async with client(guarded.address) as stub:
        yield stub


READ, WRITE, WIKI, ALL = "GetSavedThings", "CreateThing", "StartThing", "AdminThing"
REQUESTS = {
    READ: pb.GetSavedThingsRequest(),
    WRITE: pb.CreateThingRequest(name="a"),
    WIKI: pb.StartThingRequest(id="a"),
    ALL: pb.AdminThingRequest(),
}
MATRIX = {
    "reader": {READ},
    "writer": {WRITE},
    "memory": {READ, WRITE},
    "chatty": set(),
    "wikier": {WIKI},
    "fresh": {READ, WRITE},
    "boss": {READ, WRITE, WIKI, ALL},
    "anywhere": {READ, WRITE, WIKI, ALL},
}


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("name", MATRIX)
async def test_permission_when_a_key_calls_then_only_its_methods_answer(api: Any, name: str, method: str) -> None:
    call = getattr(api, method)(REQUESTS[method], metadata=bearer(name))
    if method in MATRIX[name]:
        await call
    else:
        seen = await failure(call)
        assert (seen.code, seen.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        assert seen.metadata["permission"] in seen.message


async def test_store_when_a_method_is_every_tenants_then_only_keys_of_all_tenants_may(api: Any) -> None:
    seen = await failure(api.StoreThing(pb.StoreThingRequest(), metadata=bearer("boss")))
    assert (seen.code, seen.message) == (grpc.StatusCode.PERMISSION_DENIED, "Only a key of all tenants may do this")
    for name in ("anywhere", "ADMIN"):
        await api.StoreThing(pb.StoreThingRequest(), metadata=bearer(name))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "reader-0123456789",
        "Basic reader-0123456789",
        "Bearer nobody",
        "Bearer " + "x" * 5000,
    ],
)
async def test_key_when_missing_malformed_or_unknown_then_unauthenticated(api: Any, value: str | None) -> None:
    metadata = [] if value is None else [("authorization", value)]
    seen = await failure(api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=metadata))
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def test_key_when_past_its_end_then_key_expired(api: Any) -> None:
    seen = await failure(api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("expired")))
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_EXPIRED")


async def test_key_when_the_store_is_down_and_it_is_not_cached_then_503_and_not_401(api: Any, valkey: Valkey) -> None:
    await api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("fresh"))
    valkey.stop()
    await api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("fresh"))
    seen = await failure(api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("reader")))
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert seen.headers["memoryos-status"] == "degraded"


async def test_admin_key_when_the_store_is_down_then_it_still_opens(api: Any, valkey: Valkey) -> None:
    valkey.stop()
    thing = await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("ADMIN"))
    assert (thing.name, thing.owner) == ("admin_key", "default")


async def test_admin_key_when_it_names_a_tenant_then_it_acts_there(api: Any) -> None:
    thing = await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("ADMIN", x_tenant_id="globex"))
    assert thing.owner == "globex"


async def test_admin_key_when_empty_then_no_key_is_it(store: RedisStore) -> None:
    async with (
        run_scratch(auth_enabled=True, admin_key="", keys=store.keys) as running,
        client(running.address) as stub,
    ):
        seen = await failure(stub.AdminThing(pb.AdminThingRequest(), metadata=[("authorization", "Bearer  ")]))
    assert seen.code is grpc.StatusCode.UNAUTHENTICATED


async def test_tenant_when_none_is_named_then_it_is_the_keys(api: Any) -> None:
    assert (await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("boss"))).owner == "acme"
    assert (await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("anywhere"))).owner == "default"


async def test_tenant_when_another_is_named_then_only_a_key_of_every_tenant_may(api: Any) -> None:
    own = await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("boss", x_tenant_id="acme"))
    assert own.owner == "acme"
    seen = await failure(api.AdminThing(pb.AdminThingRequest(), metadata=bearer("boss", x_tenant_id="globex")))
    assert seen.code is grpc.StatusCode.PERMISSION_DENIED
    there = await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("anywhere", x_tenant_id="globex"))
    assert there.owner == "globex"


@pytest.mark.parametrize("bad", ["", "*", "a b", "a/b", "x" * 65, "..", "_system"])
async def test_tenant_when_malformed_or_reserved_then_invalid(api: Any, bad: str) -> None:
    seen = await failure(api.AdminThing(pb.AdminThingRequest(), metadata=bearer("anywhere", x_tenant_id=bad)))
    assert (seen.code, seen.metadata["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "X-Tenant-ID")


async def test_owner_when_nobody_is_named_then_it_is_the_keys_user(api: Any) -> None:
    assert (await api.CreateThing(REQUESTS[WRITE], metadata=bearer("memory"))).owner == "user-memory"


@pytest.mark.parametrize("name", ["actas", "boss"])
async def test_owner_when_act_as_or_admin_names_another_then_it_is_him(api: Any, name: str) -> None:
    body = await api.CreateThing(pb.CreateThingRequest(name="a", owner="carol"), metadata=bearer(name))
    header = await api.CreateThing(REQUESTS[WRITE], metadata=bearer(name, x_user_id="carol"))
    assert (body.owner, header.owner) == ("carol", "carol")


async def test_owner_when_another_names_somebody_then_forbidden_naming_act_as(api: Any) -> None:
    for call in (
        api.CreateThing(pb.CreateThingRequest(name="a", owner="carol"), metadata=bearer("memory")),
        api.CreateThing(REQUESTS[WRITE], metadata=bearer("memory", x_user_id="carol")),
    ):
        seen = await failure(call)
        assert seen.code is grpc.StatusCode.PERMISSION_DENIED
        assert "act_as" in seen.message


async def test_owner_when_header_and_body_disagree_then_invalid(api: Any) -> None:
    call = api.CreateThing(pb.CreateThingRequest(name="a", owner="x"), metadata=bearer("boss", x_user_id="y"))
    assert (await failure(call)).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_user_header_when_percent_encoded_then_it_is_decoded(api: Any) -> None:
    made = await api.CreateThing(REQUESTS[WRITE], metadata=bearer("actas", x_user_id="%E5%BC%A0%E4%B8%89%20a%2Fb"))
    assert made.owner == "张三 a/b"


@pytest.mark.parametrize("bad", ["", "%20", "%00", "%FF", "x" * 257])
async def test_user_header_when_malformed_then_invalid(api: Any, bad: str) -> None:
    seen = await failure(api.CreateThing(REQUESTS[WRITE], metadata=bearer("actas", x_user_id=bad)))
    assert (seen.code, seen.metadata["param"]) == (grpc.StatusCode.INVALID_ARGUMENT, "X-User-ID")


async def test_key_when_revoked_then_the_next_call_is_refused(api: Any, store: RedisStore) -> None:
    await store.keys.create("shortlived-0123456789", record("shortlived", "memory"))
    await api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("shortlived"))
    await store.keys.revoke("key_shortlived")
    seen = await failure(api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("shortlived")))
    assert seen.code is grpc.StatusCode.UNAUTHENTICATED


async def test_key_when_it_ends_between_two_calls_then_the_second_is_refused(store: RedisStore) -> None:
    now = [utc_now()]
    await store.keys.create("ending-0123456789", record("ending", "memory", ends=timedelta(hours=1)))
    scratch = run_scratch(auth_enabled=True, keys=store.keys, audit_log=store.audit, now=lambda: now[0])
    async with scratch as running, client(running.address) as stub:
        for _ in range(2):
            await stub.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("ending"))
        now[0] += timedelta(hours=2)
        seen = await failure(stub.GetSavedThings(pb.GetSavedThingsRequest(), metadata=bearer("ending")))
    assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_EXPIRED")


def test_caller_when_made_again_for_another_call_then_what_is_the_calls_stands_last() -> None:
    assert Caller._fields[-2:] == ("address", "request_id")  # `Auth.recall` replaces those


async def test_key_when_calls_alternate_between_users_and_tenants_then_each_is_for_its_own(api: Any) -> None:
    for _ in range(2):
        for user in ("ann", "bob"):
            made = await api.CreateThing(REQUESTS[WRITE], metadata=bearer("actas", x_user_id=user))
            assert made.owner == user
        for tenant in ("acme", "globex"):
            thing = await api.AdminThing(pb.AdminThingRequest(), metadata=bearer("anywhere", x_tenant_id=tenant))
            assert thing.owner == tenant
        seen = await failure(api.AdminThing(pb.AdminThingRequest(), metadata=bearer("reader")))
        assert seen.code is grpc.StatusCode.PERMISSION_DENIED


async def test_public_when_called_with_any_key_or_header_then_it_answers_without_a_lookup(
    api: Any, valkey: Valkey
) -> None:
    valkey.stop()
    await api.ProbeThing(pb.ProbeThingRequest(), metadata=[("authorization", "Bearer nobody"), ("x-tenant-id", "a b")])
    await api.ProbeThing(pb.ProbeThingRequest())


async def test_refusal_when_the_request_is_malformed_too_then_the_key_is_what_counts(guarded: Scratch) -> None:
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        call = channel.unary_unary("/scratch.v1.ScratchService/GetThing", lambda raw: raw, lambda raw: raw)
        assert (await failure(call(b"\xff\xff"))).code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("header", [("x-tenant-id", "a b"), ("x-user-id", "%00")])
async def test_refusal_when_a_header_is_malformed_too_then_the_key_is_what_counts(
    api: Any, header: tuple[str, str]
) -> None:
    for metadata in ([], [("authorization", "Bearer nobody")], bearer("expired"), bearer("reader")):
        seen = await failure(api.GetSavedThings(pb.GetSavedThingsRequest(), metadata=[*metadata, header]))
        held = metadata == bearer("reader")
        assert seen.code is (grpc.StatusCode.INVALID_ARGUMENT if held else grpc.StatusCode.UNAUTHENTICATED)


async def test_auth_off_when_a_bearer_is_sent_then_it_is_ignored(store: RedisStore, valkey: Valkey) -> None:
    valkey.stop()  # so that a lookup would fail
    async with run_scratch(keys=store.keys) as running, client(running.address) as stub:
        thing = await stub.AdminThing(pb.AdminThingRequest(), metadata=[("authorization", "Bearer nobody")])
        assert (thing.name, thing.owner) == ("anonymous", "default")
        made = await stub.CreateThing(REQUESTS[WRITE], metadata=bearer("memory", x_tenant_id="t2"))
        assert made.owner == "default_user"
        named = await stub.CreateThing(REQUESTS[WRITE], metadata=[("x-user-id", "bob")])
        assert named.owner == "bob"


async def test_seen_when_a_key_was_used_and_holds_then_known_without_the_store_and_else_not(
    store: RedisStore, valkey: Valkey
) -> None:
    auth = Auth(enabled=True, admin_key=ADMIN, keys=store.keys, bridge_secret="")
    names = ("ADMIN", "reader", "expired", "nobody")
    assert [auth.seen(dict(bearer(name))) for name in names] == [True, False, False, False]
    assert [await auth.knows(dict(bearer(name))) for name in names] == [True, True, False, False]
    valkey.stop()
    assert [auth.seen(dict(bearer(name))) for name in names] == [True, True, False, False]
    assert not auth.seen({})
    assert not auth.seen({"authorization": "Bearer " + "x" * 5000})


FORWARDED = ("memoryos-client-address", "203.0.113.7")


@pytest.mark.parametrize(
    ("metadata", "peer"),
    [
        ([], "127.0.0.1"),
        ([FORWARDED], "127.0.0.1"),
        ([FORWARDED, ("memoryos-bridge-secret", "guessed")], "127.0.0.1"),
        ([FORWARDED, ("memoryos-bridge-secret", "")], "127.0.0.1"),
        ([FORWARDED, ("memoryos-bridge-secret", "bridge-secret")], "203.0.113.7"),
        ([("memoryos-client-address", "2001:DB8::1"), ("memoryos-bridge-secret", "bridge-secret")], "2001:db8::1"),
        ([("memoryos-client-address", "drop table"), ("memoryos-bridge-secret", "bridge-secret")], ""),
    ],
)
async def test_address_when_forwarded_then_only_a_bridge_with_the_secret_is_believed(
    guarded: Scratch, api: Any, metadata: list[tuple[str, str]], peer: str
) -> None:
    await api.ProbeThing(pb.ProbeThingRequest(), metadata=metadata)
    assert lines(guarded)[-1]["peer"] == peer


async def test_address_when_there_is_no_secret_then_nobody_is_believed() -> None:
    async with run_scratch() as running, client(running.address) as stub:
        await stub.ProbeThing(pb.ProbeThingRequest(), metadata=[FORWARDED, ("memoryos-bridge-secret", "")])
        assert lines(running)[-1]["peer"] == "127.0.0.1"


@pytest.mark.parametrize("ours", ["", "bridge-secret"])
def test_address_when_it_is_not_believed_then_said_once_without_any_secret(
    ours: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc_auth, "_log", Sparing(logging.getLogger(rpc_auth.__name__)))
    auth = Auth(enabled=True, admin_key=ADMIN, keys=MemoryKeys(), bridge_secret=ours)
    for secret in ("guessed", ""):
        named = {FORWARDED[0]: FORWARDED[1], "memoryos-bridge-secret": secret}
        assert auth.address_of(named, lambda: "ipv4:192.0.2.1:5") == "192.0.2.1"
    assert auth.address_of({}, lambda: "ipv4:192.0.2.1:5") == "192.0.2.1"
    (line,) = caplog.messages
    assert "bridge.secret" in line
    assert not any(text in line for text in ("guessed", "bridge-secret", FORWARDED[1]))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:5", "10.0.0.1"),
        ("ipv6:%5B::1%5D:5", "::1"),
        ("ipv6:[2001:db8::1]:443", "2001:db8::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5", "fe80::1"),
        ("unix:/run/x.sock", ""),
        ("unix:", ""),
    ],
)
def test_peer_when_in_grpcs_form_then_its_address_is_found(peer: str, address: str) -> None:
    assert peer_address(peer) == address
