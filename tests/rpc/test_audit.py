from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scratch.v1 import scratch_service_pb2 as pb

from memoryos.schema import Recorded
from memoryos_server.domain.core.audit import AuditEvent, draft
from memoryos_server.domain.core.faults import BackendDown, Forbidden, Invalid
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.audit import Audit, AuditWriter
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.refusals import Refusals
from memoryos_server.rpc.wrap import Call
from memoryos_server.stores.redis import RedisStore
from tests.rpc.conftest import bearer, client, failure
from tests.rpc.test_calls import eventually
from tests.scratch.serve import MemoryAudit, Scratch, run_scratch
from tests.stores.redis_fixtures import Valkey


def event(number: int) -> AuditEvent:
    return AuditEvent(str(number), datetime.now(UTC), "test", "default", "", "", "Test", "ok", "anonymous")


async def test_change_when_answered_then_it_is_recorded_already(running: Scratch, stub: Any) -> None:
    metadata = [("x-tenant-id", "acme"), ("x-user-id", "bob"), ("x-request-id", "r-1")]
    await stub.CreateThing(pb.CreateThingRequest(name="blue"), metadata=metadata)
    (seen,) = running.audit_log.events
    assert (seen.event_type, seen.tenant_id, seen.user_id, seen.resource) == (
        "scratch.create",
        "acme",
        "bob",
        "thing/blue",
    )
    assert (seen.action, seen.outcome, seen.actor) == ("CreateThing", "ok", "anonymous")
    assert (seen.address, seen.request_id) == ("127.0.0.1", "r-1")


async def test_change_when_the_use_case_took_the_draft_then_it_is_not_written_again() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log) as running, client(running.address) as stub:
        await stub.CreateThing(pb.CreateThingRequest(name="taken"))
    assert log.events == []


async def test_change_when_it_changed_nothing_then_it_is_not_waited_for_and_recorded_within_a_second() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log) as running, client(running.address) as stub:
        await stub.CreateThing(pb.CreateThingRequest(name="idle"))
        assert log.events == []
        await eventually(lambda: [e.resource for e in log.events] == ["thing/idle"], 1.0)


async def test_call_when_its_policy_names_no_event_then_success_is_not_recorded() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log) as running, client(running.address) as stub:
        await stub.GetSavedThings(pb.GetSavedThingsRequest())
        await failure(stub.FailThing(pb.FailThingRequest(fault="NotFound")))
    assert log.events == []


async def test_change_when_it_fails_then_it_is_recorded_as_failed_with_its_reason() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log) as running, client(running.address) as stub:
        call = stub.CreateThing(pb.CreateThingRequest(name="a", owner="x"), metadata=[("x-user-id", "y")])
        await failure(call)
    assert [(e.outcome, e.details, e.user_id) for e in log.events] == [("failed", "invalid_argument", "y")]


async def test_denial_when_a_key_is_unknown_then_the_system_chain_has_it() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log, auth_enabled=True, admin_key="a") as running, client(running.address) as stub:
        await failure(stub.GetSavedThings(pb.GetSavedThingsRequest(), metadata=[("authorization", "Bearer wrong")]))
    (seen,) = log.events
    assert (seen.event_type, seen.tenant_id, seen.outcome, seen.details) == (
        "auth.failed",
        "_system",
        "denied",
        "unauthenticated",
    )
    assert (seen.actor, seen.action, seen.address) == ("anonymous", "GetSavedThings", "127.0.0.1")
    assert "wrong" not in repr(seen)


async def test_denial_when_a_key_lacks_the_permission_then_its_tenants_chain_has_it(store: RedisStore) -> None:
    log = MemoryAudit()
    async with (
        run_scratch(audit_log=log, auth_enabled=True, keys=store.keys) as running,
        client(running.address) as stub,
    ):
        metadata = bearer("chatty")
        await failure(stub.GetSavedThings(pb.GetSavedThingsRequest(), metadata=metadata))
        await failure(stub.CreateThing(pb.CreateThingRequest(name="a"), metadata=metadata))
    assert [(e.event_type, e.tenant_id, e.user_id, e.actor, e.outcome, e.details) for e in log.events] == [
        ("call.denied", "acme", "user-chatty", "key_chatty", "denied", "permission_denied"),
        ("scratch.create", "acme", "user-chatty", "key_chatty", "denied", "permission_denied"),
    ]


async def test_denial_when_the_use_case_refuses_then_it_is_recorded_with_whose_data_was_meant(
    store: RedisStore,
) -> None:
    log = MemoryAudit()
    async with (
        run_scratch(audit_log=log, auth_enabled=True, keys=store.keys) as running,
        client(running.address) as stub,
    ):
        metadata = bearer("memory", x_user_id="carol")
        await failure(stub.CreateThing(pb.CreateThingRequest(name="a"), metadata=metadata))
        await failure(stub.ExportThings(pb.ExportThingsRequest(note="deny"), metadata=metadata[:1]))
    assert [(e.event_type, e.user_id, e.outcome) for e in log.events] == [
        ("scratch.create", "carol", "denied"),
        ("call.denied", "user-memory", "denied"),
    ]


async def test_denial_when_recorded_then_it_is_there_within_a_second() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log, auth_enabled=True, admin_key="a") as running, client(running.address) as stub:
        await failure(stub.GetSavedThings(pb.GetSavedThingsRequest()))
        assert log.events == []
        await eventually(lambda: len(log.events) == 1, 1.0)


async def test_change_when_the_store_is_down_then_it_is_answered_and_recorded_once_it_is_back() -> None:
    log = MemoryAudit()
    async with run_scratch(audit_log=log) as running, client(running.address) as stub:
        log.down = True
        async with asyncio.timeout(0.9):
            await stub.CreateThing(pb.CreateThingRequest(name="blue"))
        assert log.events == []
        log.down = False
        await eventually(lambda: [e.resource for e in log.events] == ["thing/blue"])


async def newest(store: RedisStore, limit: int) -> list[AuditEvent]:
    return [each async for each in store.audit.tail(None, limit)]


async def test_real_log_when_calls_end_then_changes_are_there_at_once_and_denials_in_a_second(
    store: RedisStore,
) -> None:
    await store.subjects.open("acme", "user-memory")
    async with (
        run_scratch(auth_enabled=True, keys=store.keys, audit_log=store.audit) as running,
        client(running.address) as stub,
    ):
        await stub.CreateThing(pb.CreateThingRequest(name="blue"), metadata=bearer("memory"))
        (change,) = await newest(store, 1)
        assert (change.event_type, change.tenant_id, change.user_id) == ("scratch.create", "acme", "user-memory")
        assert (change.resource, change.outcome, change.actor) == ("thing/blue", "ok", "key_memory")
        await failure(stub.AdminThing(pb.AdminThingRequest(), metadata=bearer("chatty")))
        await failure(stub.AdminThing(pb.AdminThingRequest()))
        await asyncio.sleep(0.9)
        denied, unknown = await newest(store, 2)
        assert (denied.event_type, denied.tenant_id, denied.actor) == ("call.denied", "acme", "key_chatty")
        assert (unknown.event_type, unknown.tenant_id, unknown.actor) == ("auth.failed", "_system", "anonymous")


async def test_real_log_when_the_store_was_killed_then_what_happened_meanwhile_is_recorded_once_it_is_back(
    store: RedisStore, valkey: Valkey
) -> None:
    async with run_scratch(audit_log=store.audit) as running, client(running.address) as stub:
        valkey.kill()
        await stub.CreateThing(pb.CreateThingRequest(name="meanwhile"))
        valkey.start()
        async with asyncio.timeout(5):
            while (await newest(store, 1))[-1].resource != "thing/meanwhile":  # noqa: ASYNC110  # a store signals nothing
                await asyncio.sleep(0.1)


def writer(log: MemoryAudit, metrics: Metrics, **more: Any) -> AuditWriter:
    return AuditWriter(log, metrics=metrics, logger=rpc_logging.configure("info", "json", io.BytesIO()), **more)


async def test_writer_when_equal_refusals_come_then_the_first_is_written_and_the_others_are_counted() -> None:
    log = MemoryAudit()
    first = event(0)._replace(address="192.0.2.1", timestamp=datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC))
    async with writer(log, Metrics()) as writing:
        for number in range(500):
            writing.refused(first._replace(id=f"a{number}", request_id=f"r{number}"))
            writing.refused(first._replace(id=f"b{number}", address="192.0.2.2"))
        writing.refused(first._replace(id="c", details="expired"))
        await eventually(lambda: len(log.events) == 3)
        assert [(e.id, e.count) for e in log.events] == [("a0", 1), ("b0", 1), ("c", 1)]
        writing.refused(first._replace(id="d", timestamp=first.timestamp + timedelta(minutes=1)))
        await eventually(lambda: len(log.events) == 6)
    assert [(e.id, e.count) for e in log.events[3:]] == [("a1", 499), ("b1", 499), ("d", 1)]


async def test_refusals_when_equal_ones_go_on_then_their_number_is_passed_on_within_some_seconds() -> None:
    passed: list[AuditEvent] = []
    refusals = Refusals(passed.append, held_seconds=0.05, most=2)
    at = datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC)
    for number in range(7):
        refusals.add(event(number)._replace(timestamp=at))
    await eventually(lambda: [(e.id, e.count) for e in passed] == [("0", 1), ("1", 6)])
    for kind in ("b", "c", "c", "c"):  # more kinds than are told apart: none is lost
        refusals.add(event(9)._replace(timestamp=at, details=kind))
    refusals.flush()
    assert sum(e.count for e in passed if e.details == "c") == 3


async def test_writer_when_left_then_everything_is_written_in_order() -> None:
    log = MemoryAudit()
    async with writer(log, Metrics()) as writing:
        for number in range(1200):
            writing.put(event(number))
    assert [e.id for e in log.events] == [str(n) for n in range(1200)]
    assert log.appends == 3


async def test_writer_when_many_changes_wait_then_they_share_writes() -> None:
    log = MemoryAudit()
    async with writer(log, Metrics()) as writing:
        assert all(await asyncio.gather(*(writing.write(event(n)) for n in range(100))))
        assert len(log.events) == 100
    assert log.appends <= 2


async def test_writer_when_the_store_stays_down_then_losses_are_counted_and_the_newest_kept() -> None:
    log, metrics = MemoryAudit(), Metrics()
    log.down = True
    async with writer(log, metrics, most=10, retry=0.01, drain=0.1) as writing:
        for number in range(15):
            writing.put(event(number))
        await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("memoryos_audit_dropped_total") == 5
    assert metrics.registry.get_sample_value("memoryos_audit_dropped_total") == 15


def a_call(deadline: float = 60, clients: float | None = None) -> Call:
    method = SimpleNamespace(recorded=Recorded("", "", False), deadline=deadline)
    context = SimpleNamespace(time_remaining=lambda: clients)
    return cast(Call, SimpleNamespace(method=method, context=context, degraded=False))


class SlowAudit(MemoryAudit):
    """Takes a while for each batch."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        await asyncio.sleep(0.02)
        await super().append(events)


async def test_calls_when_their_events_cannot_be_written_fast_enough_then_they_wait_and_none_is_lost() -> None:
    log, metrics = SlowAudit(), Metrics()
    call = a_call()
    async with writer(log, metrics, most=20, delay=0) as writing:
        audit = Audit(writing)

        async def calls(start: int) -> None:
            for number in range(start, start + 50):
                async with audit.record(call):
                    present = draft()
                    assert present is not None
                    present.event = event(number)

        await asyncio.gather(*(asyncio.create_task(calls(50 * n)) for n in range(4)))
        assert metrics.registry.get_sample_value("memoryos_audit_dropped_total") == 0
    assert sorted(int(e.id) for e in log.events) == list(range(200))


@pytest.mark.parametrize("fails", [False, True])
async def test_record_when_a_write_outlasts_its_call_then_its_event_is_written_once_by_whoever_comes_to_it(
    fails: bool,
) -> None:
    log = MemoryAudit()
    async with writer(log, Metrics(), delay=0) as writing:
        audit, drafts = Audit(writing), []
        for number in range(4):
            with suppress(Invalid):
                async with audit.record(a_call()):
                    present = draft()
                    assert present is not None
                    present.event = event(number)._replace(resource=str(number))
                    drafts.append(present)
                    if number < 3:
                        assert present.take() is present.event
                        assert present.take() is None
                    if number == 2:
                        present.give_back()  # the first try failed, and a second one begins when the call has ended
                    if fails:
                        raise Invalid("no", reason="nonsense")
        # The first is written with its change; of the second nothing comes, and it is written when that is known.
        await eventually(lambda: sorted(one.resource for one in log.events) == ["2", "3"], 1.0)
        for late in drafts[2:]:
            assert late.take() is None
            late.give_back()
        for _ in range(2):
            drafts[1].give_back()
        assert drafts[1].take() is None
    assert sorted(one.resource for one in log.events) == ["1", "2", "3"]
    # With the change it may have been written after all, by a store that answered too late: then this is no copy of it.
    assert {one.id for one in log.events} & {"1", "2"} == set()
    assert {(one.outcome, one.details) for one in log.events} == {("failed", "nonsense") if fails else ("ok", "")}


async def test_calls_when_the_store_is_down_then_they_do_not_wait_for_their_events() -> None:
    log, metrics = MemoryAudit(), Metrics()
    log.down = True
    async with writer(log, metrics, most=20, delay=0, drain=0.1) as writing:
        writing.put(event(0))
        await asyncio.sleep(0.05)  # it was tried
        for number in range(19):
            writing.put(event(number))
        async with asyncio.timeout(0.2):
            await writing.room()


class Forgetful(MemoryAudit):
    """Writes what comes while it is down all the same, but the answer is lost; knows the last batch again."""

    last: tuple[str, ...] = ()

    async def append(self, events: Sequence[AuditEvent]) -> None:
        names = tuple(one.id for one in events)
        if names != self.last:
            self.events += events
        self.last = names
        if self.down:
            raise BackendDown("The answer is lost")


async def test_writer_when_an_answer_is_lost_and_then_too_many_events_come_then_none_is_written_twice() -> None:
    log, metrics = Forgetful(), Metrics()
    log.down = True
    async with writer(log, metrics, most=20, delay=0, retry=0.05) as writing:
        for number in range(5):
            writing.put(event(number))
        await eventually(lambda: len(log.events) == 5)
        for number in range(5, 50):
            writing.put(event(number))
        log.down = False
        await eventually(lambda: log.events[-1].id == "49")
    assert [int(e.id) for e in log.events] == [*range(5), *range(35, 50)]
    assert metrics.registry.get_sample_value("memoryos_audit_dropped_total") == 30


async def test_calls_when_their_refusals_cannot_be_written_fast_enough_then_they_wait_and_none_is_lost() -> None:
    log, metrics = SlowAudit(), Metrics()
    call = a_call()
    async with writer(log, metrics, most=20, delay=0) as writing:
        audit = Audit(writing)

        async def calls(start: int) -> None:
            for number in range(start, start + 50):
                with suppress(Forbidden):
                    async with audit.record(call):
                        present = draft()
                        assert present is not None
                        present.event = event(number)._replace(user_id=f"user{number}")
                        raise Forbidden("not yours")

        await asyncio.gather(*(asyncio.create_task(calls(50 * n)) for n in range(4)))
        assert metrics.registry.get_sample_value("memoryos_audit_dropped_total") == 0
    assert sorted(int(e.id) for e in log.events) == list(range(200))


class StuckAudit(MemoryAudit):
    """Takes for ever."""

    async def append(self, events: Sequence[AuditEvent]) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(("deadline", "clients"), [(0.4, None), (60, 0.4), (0.1, None), (60, -1)])
@pytest.mark.parametrize("error", [None, Invalid("no"), Forbidden("no")])
async def test_call_when_there_is_no_room_until_its_deadline_then_it_ends_as_it_did_before_that(
    deadline: float, clients: float | None, error: Exception | None
) -> None:
    async with writer(StuckAudit(), Metrics(), most=20, delay=0, drain=0) as writing:
        for number in range(20):
            writing.put(event(number))
        with suppress(Invalid, Forbidden):
            async with asyncio.timeout(0.39), Audit(writing).record(a_call(deadline, clients)):
                present = draft()
                assert present is not None
                present.event = event(20)
                if error is not None:
                    raise error


async def test_flush_when_events_wait_then_it_returns_once_those_of_before_are_written_or_its_time_is_over() -> None:
    log = SlowAudit()
    async with writer(log, Metrics(), delay=60, retry=0.01, drain=0.1) as writing:
        await writing.flush()
        for number in range(2):
            writing.put(event(number))
        async with asyncio.timeout(5):
            await writing.flush(30)
            assert [one.id for one in log.events] == ["0", "1"]
            log.down = True
            writing.put(event(2))
            await writing.flush(0.1)
            assert len(log.events) == 2
            log.down = False
            await writing.flush(30)
        assert [one.id for one in log.events] == ["0", "1", "2"]
