"""Sessions, events, deletion and the queue by both clients, against a real server with an embedding provider that refuses."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from memoryos import (
    AsyncClient,
    Client,
    auditing,
    consents,
    errors,
    keys,
    memories,
    privacy,
    queueing,
    receipts,
    segments,
    sessions,
    usage,
)
from tests.embeddings import POISON, EmbeddingServer
from tests.system import System, until


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as server:
        yield server


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, embeddings: EmbeddingServer) -> Iterator[System]:
    made = System(tmp_path_factory.mktemp("said"), {**embeddings.env, "MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.1"})
    try:
        yield made.start(bridge=False)
        made.stop()
    finally:
        made.kill(group=True)


@pytest.mark.timeout(180)
def test_sessions_when_listed_read_and_deleted_then_pages_are_whole(system: System) -> None:
    with Client(system.grpc, user_id="ann") as client:
        for n in range(3):
            client.add(f"Heron number {n} stood on the pier.", session_id="s1", event_id=f"e{n}", name="Ann")
        client.add("The ferry leaves at nine.")
        first = client.sessions.list(page_size=1)
        second = client.sessions.list(page_size=1, page_token=first.next_page_token)
        assert [(s.id, s.turns) for s in (*first.sessions, *second.sessions)] == [("", 1), ("s1", 3)]
        assert second.next_page_token == ""
        assert second.sessions[0].first_at <= second.sessions[0].last_at

        page = client.sessions.get("s1", page_size=2)
        rest = client.sessions.get("s1", page_size=2, page_token=page.next_page_token)
        turns = (*page.turns, *rest.turns)
        assert [(t.event_id, t.role, t.name) for t in turns] == [(f"e{n}", "user", "Ann") for n in range(3)]
        assert client.sessions.get("").turns[0].content == "The ferry leaves at nine."

        client.delete(turns[0].memory_id)
        assert [t.event_id for t in client.sessions.get("s1").turns] == ["e1", "e2"]
        assert client.sessions.delete("s1") == 2
        with pytest.raises(errors.NotFound):
            client.sessions.get("s1")
        with pytest.raises(errors.NotFound):
            client.delete(turns[0].memory_id)


@pytest.mark.timeout(180)
def test_retrieve_when_a_fact_is_known_then_it_tells_where_it_comes_from(system: System) -> None:
    with Client(system.grpc, user_id="fay") as client:
        added = client.add("I live in Lisbon.", event_id="e1")
        until(lambda: client.event("e1").state == "stored")
        found = client.retrieve("Where do I live?")
        assert [fact.text for fact in found.facts] == list(found.knowledge)
        (fact,) = found.facts
        assert (fact.subject, fact.value, fact.source_ids) == ("user", "Lisbon", (added.memory_id,))
        assert fact.believed_until is None
        assert fact.believed_since.tzinfo is not None
        assert client.delete(added.memory_id) >= 1
        assert client.retrieve("Where do I live?").facts == ()


@pytest.mark.timeout(240)
def test_queue_when_a_turn_is_poison_then_it_is_seen_and_given_back_or_dropped(
    system: System, embeddings: EmbeddingServer
) -> None:
    embeddings.refuses.add(POISON)
    with Client(system.grpc, user_id="ben") as client:
        for n in range(3):
            client.add(f"An {POISON} heron, number {n}.", event_id=f"e{n}")
        until(lambda: len(client.queue.list().dead_letters) == 3)
        page = client.queue.list(page_size=2)
        (last,) = client.queue.list(page_size=2, page_token=page.next_page_token).dead_letters
        letter = page.dead_letters[0]
        assert (letter.user_id, letter.event_id, letter.kind) == ("ben", "e0", "turn")
        assert letter.attempts == client.event("e0").attempts > 0
        assert client.event("e0").state == "dead_letter"

        client.queue.discard(last.id)
        dropped = client.event(last.event_id)
        assert (dropped.state, dropped.reason) == ("rejected", "discarded")
        with pytest.raises(errors.NotFound):
            client.queue.requeue(last.id)
        embeddings.refuses.clear()
        client.queue.requeue(letter.id)
        assert client.queue.requeue_all() == 1
        until(lambda: client.event("e0").state == client.event("e1").state == "stored")


@pytest.mark.timeout(120)
async def test_async_client_when_it_asks_the_same_then_it_gets_the_same(system: System) -> None:
    with Client(system.grpc, user_id="cem") as client:
        async with AsyncClient(system.grpc, user_id="cem") as other:
            added = await other.add("A lighthouse stands at Marken.", session_id="s1", event_id="e1")
            await asyncio.to_thread(until, lambda: client.event("e1").state == "stored")
            assert await other.event("e1") == await asyncio.to_thread(client.event, "e1")
            assert await other.sessions.list() == await asyncio.to_thread(client.sessions.list)
            assert await other.sessions.get("s1") == await asyncio.to_thread(client.sessions.get, "s1")
            assert (await other.queue.list()).dead_letters == ()
            assert await other.queue.requeue_all() == 0
            with pytest.raises(errors.NotFound):
                await other.queue.discard("1-2-3")
            with pytest.raises(errors.NotFound):
                await other.queue.requeue("1-2-3")
            await other.delete(added.memory_id)
            with pytest.raises(errors.NotFound):
                await other.sessions.delete("s1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sessions.Sessions, sessions.AsyncSessions),
        (queueing.Queue, queueing.AsyncQueue),
        (receipts.Receipts, receipts.AsyncReceipts),
        (usage.Usage, usage.AsyncUsage),
        (keys.Keys, keys.AsyncKeys),
        (auditing.Audit, auditing.AsyncAudit),
        (privacy.Privacy, privacy.AsyncPrivacy),
        (consents.Consent, consents.AsyncConsent),
        (memories.Memories, memories.AsyncMemories),
        (segments.Segments, segments.AsyncSegments),
    ],
)
def test_parts_of_the_clients_when_compared_then_both_take_the_same(one: type, other: type) -> None:
    def offered(cls: type) -> dict[str, list[str]]:
        public = {n: f for n, f in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}
        return {name: [str(p) for p in inspect.signature(f).parameters.values()] for name, f in public.items()}

    assert offered(one) == offered(other)
