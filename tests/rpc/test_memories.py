"""MemoriesService over a real channel, through the real interceptors, on the real embedded stores."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from memoryos import schema
from memoryos.aio import AsyncClient
from memoryos.settings import ServerSettings
from memoryos.v1 import memories_service_pb2 as pb
from memoryos.v1 import memories_service_pb2_grpc, types_pb2
from memoryos_server.domain.memory.extraction import extract_memories
from memoryos_server.health import Health
from memoryos_server.rpc import logging as rpc_logging
from memoryos_server.rpc.audit import Audit, AuditWriter
from memoryos_server.rpc.auth import Auth
from memoryos_server.rpc.grpc_health import HealthBoard
from memoryos_server.rpc.interceptors import standard
from memoryos_server.rpc.memories_servicer import MemoriesServicer
from memoryos_server.rpc.metrics import Metrics
from memoryos_server.rpc.server import RpcServer
from tests.domain.memories_support import Opened, open_memories
from tests.rpc.conftest import ADMIN, KEYS, bearer, failure
from tests.scratch.serve import Backend

RULE = "使用者偏好繁體中文回覆,技術術語保留英文"


@dataclass
class Served:
    stub: Any
    opened: Opened
    address: str


@asynccontextmanager
async def serve(home: Path, *, auth: bool = False) -> AsyncIterator[Served]:
    methods = schema.load([pb.DESCRIPTOR])
    logger = rpc_logging.configure("info", "json", io.BytesIO())
    metrics, backend = Metrics(), Backend()
    board = HealthBoard(dict.fromkeys(m.service for m in methods))
    settings = ServerSettings(listen="127.0.0.1:0", metrics_listen="", grace_seconds=2.0)
    async with (
        open_memories(home) as opened,
        Health(
            redis=backend.probe,
            vectors=backend.probe,
            board=board,
            metrics=metrics,
            logger=logger,
            ready_when_noop=False,
        ) as health,
        AuditWriter(opened.redis.audit, metrics=metrics, logger=logger) as writer,
    ):
        for key, record in KEYS.items() if auth else ():
            await opened.redis.keys.create(key, record)
        extracting = opened.extracting(
            lambda messages, said_at: extract_memories(messages, said_at=said_at, fold=opened.words.fold)
        )
        around = standard(
            methods,
            metrics=metrics,
            logger=logger,
            serving=health,
            auth=Auth(enabled=auth, admin_key=ADMIN, keys=opened.redis.keys, bridge_secret=""),
            audit=Audit(writer),
        )
        async with RpcServer(
            settings,
            auth_enabled=auth,
            insecure=False,
            methods=methods,
            servicers={"memoryos.v1.MemoriesService": MemoriesServicer(opened.memories, extracting)},
            around=around,
            serving=health,
            board=board,
            logger=logger,
        ) as server:
            health.serve()
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield Served(memories_service_pb2_grpc.MemoriesServiceStub(channel), opened, server.address)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as running:
        yield running


def new(content: str, kind: Any = pb.MEMORY_TYPE_FACT, **more: Any) -> pb.CreateTypedMemoryRequest:
    return pb.CreateTypedMemoryRequest(content=content, memory_type=kind, **more)


async def test_documented_examples_when_sent_then_answered_as_documented(served: Served) -> None:
    stub = served.stub
    made = (await stub.CreateTypedMemory(new(RULE, pb.MEMORY_TYPE_RULE, importance=0.9))).memory
    assert (made.content, made.memory_type, made.importance, made.version) == (RULE, pb.MEMORY_TYPE_RULE, 0.9, 1)
    assert made.created_at == made.updated_at
    assert (await stub.GetTypedMemory(pb.GetTypedMemoryRequest(id=made.id))).memory == made
    listed = await stub.ListTypedMemories(pb.ListTypedMemoriesRequest(memory_type=pb.MEMORY_TYPE_RULE))
    assert (list(listed.memories), listed.total, listed.page, listed.page_size) == ([made], 1, 1, 20)
    changed = (await stub.UpdateTypedMemory(pb.UpdateTypedMemoryRequest(id=made.id, importance=0.7))).memory
    assert (changed.content, changed.importance, changed.version) == (RULE, 0.7, 2)
    search = pb.SearchTypedMemoriesRequest(
        query="使用者語言偏好", top_k=5, min_similarity=0.3, memory_type=pb.MEMORY_TYPE_RULE
    )
    (hit,) = (await stub.SearchTypedMemories(search)).results
    assert (hit.id, hit.content, hit.memory_type, hit.importance) == (made.id, RULE, pb.MEMORY_TYPE_RULE, 0.7)
    assert 0.3 <= hit.score <= 1
    gone = await stub.DeleteTypedMemory(pb.DeleteTypedMemoryRequest(id=made.id))
    assert (gone.id, gone.deleted) == (made.id, True)
    await stub.CreateTypedMemory(new("x", pb.MEMORY_TYPE_CONTEXT))
    deleted = await stub.DeleteTypedMemories(pb.DeleteTypedMemoriesRequest(memory_type=pb.MEMORY_TYPE_CONTEXT))
    assert deleted.deleted == 1


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            pb.ExtractTypedMemoriesRequest(
                messages=[
                    pb.ExtractionMessage(role=types_pb2.ROLE_USER, content="我用 React 19 + TypeScript,後端是 Go"),
                    pb.ExtractionMessage(role=types_pb2.ROLE_ASSISTANT, content="了解,之後範例會用這個 stack"),
                ],
                deduplicate=True,
            ),
            ("React 19", "TypeScript", "Go"),
        ),
        (
            pb.ExtractTypedMemoriesRequest(text="使用者使用 Python 3.12,偏好 async 模式", deduplicate=True),
            ("Python 3.12", "async"),
        ),
    ],
    ids=["messages", "text"],
)
async def test_extract_when_the_documented_examples_are_sent_then_what_they_say_is_kept_once(
    served: Served, request_: Any, said: tuple[str, ...]
) -> None:
    first = await served.stub.ExtractTypedMemories(request_)
    text = " ".join(memory.content for memory in first.memories)
    assert [word for word in said if word not in text] == []
    assert "stack" not in text
    assert first.skipped == 0
    listed = await served.stub.ListTypedMemories(pb.ListTypedMemoriesRequest())
    assert {m.id for m in listed.memories} == {m.id for m in first.memories}
    again = await served.stub.ExtractTypedMemories(request_)
    assert (len(again.memories), again.skipped) == (0, len(first.memories))


E = pb.ExtractionMessage


BAD: list[tuple[str, Any, str]] = [
    ("CreateTypedMemory", pb.CreateTypedMemoryRequest(memory_type=1), "content"),
    ("CreateTypedMemory", new(" \n"), "content"),
    ("CreateTypedMemory", new("x" * 100_001), "content"),
    ("CreateTypedMemory", pb.CreateTypedMemoryRequest(content="x"), "memory_type"),
    ("CreateTypedMemory", new("x", 99), "memory_type"),
    ("CreateTypedMemory", new("x", importance=1.1), "importance"),
    ("CreateTypedMemory", new("x", importance=-0.1), "importance"),
    ("CreateTypedMemory", new("x", importance=float("nan")), "importance"),
    ("CreateTypedMemory", new("x", event_id=""), "event_id"),
    ("CreateTypedMemory", new("x", event_id="e" * 257), "event_id"),
    ("ListTypedMemories", pb.ListTypedMemoriesRequest(page=0), "page"),
    ("ListTypedMemories", pb.ListTypedMemoriesRequest(page_size=0), "page_size"),
    ("ListTypedMemories", pb.ListTypedMemoriesRequest(memory_type=0), "memory_type"),
    ("ListTypedMemories", pb.ListTypedMemoriesRequest(memory_type=99), "memory_type"),
    ("GetTypedMemory", pb.GetTypedMemoryRequest(), "id"),
    ("DeleteTypedMemory", pb.DeleteTypedMemoryRequest(), "id"),
    ("UpdateTypedMemory", pb.UpdateTypedMemoryRequest(importance=1), "id"),
    ("UpdateTypedMemory", pb.UpdateTypedMemoryRequest(id="i"), "content"),
    ("UpdateTypedMemory", pb.UpdateTypedMemoryRequest(id="i", content=""), "content"),
    ("UpdateTypedMemory", pb.UpdateTypedMemoryRequest(id="i", importance=2), "importance"),
    (
        "UpdateTypedMemory",
        pb.UpdateTypedMemoryRequest(id="i", content="x", update_mask=FieldMask(paths=["memory_type"])),
        "memory_type",
    ),
    (
        "UpdateTypedMemory",
        pb.UpdateTypedMemoryRequest(id="i", content="x", update_mask=FieldMask(paths=["importance"])),
        "importance",
    ),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(), "query"),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(query="x" * 100_001), "query"),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(query="x", top_k=0), "top_k"),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(query="x", top_k=101), "top_k"),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(query="x", min_similarity=1.1), "min_similarity"),
    ("SearchTypedMemories", pb.SearchTypedMemoriesRequest(query="x", memory_type=0), "memory_type"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(), "messages"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(text=""), "text"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(text="x", messages=[E(role=1, content="x")]), "text"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(messages=[E(content="x")]), "messages[0].role"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(messages=[E(role=9, content="x")]), "messages[0].role"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(messages=[E(role=1)]), "messages[0].content"),
    ("ExtractTypedMemories", pb.ExtractTypedMemoriesRequest(messages=[E(role=1, content="x")] * 1001), "messages"),
    ("DeleteTypedMemories", pb.DeleteTypedMemoriesRequest(), "memory_type"),
    ("DeleteTypedMemories", pb.DeleteTypedMemoriesRequest(memory_type=99), "memory_type"),
]


async def test_bad_input_when_sent_then_the_field_is_named_and_nothing_written(served: Served) -> None:
    for rpc, request, param in BAD:  # one server for all, since each takes a second to start
        failed = await failure(getattr(served.stub, rpc)(request))
        seen = (failed.code, failed.reason, failed.metadata.get("param"))
        assert seen == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", param), (rpc, str(request)[:200])
    assert (await served.stub.ListTypedMemories(pb.ListTypedMemoriesRequest())).total == 0


async def test_keys_when_auth_is_on_then_each_sees_its_own_and_needs_its_permission(tmp_path: Path) -> None:
    async with serve(tmp_path, auth=True) as served:
        stub = served.stub
        made = (await stub.CreateTypedMemory(new("a heron"), metadata=bearer("memory"))).memory
        get = pb.GetTypedMemoryRequest(id=made.id)
        assert (await stub.GetTypedMemory(get, metadata=bearer("memory"))).memory == made
        acting = bearer("actas", x_user_id="user-memory")
        assert (await stub.GetTypedMemory(get, metadata=acting)).memory == made
        for who in ("reader", "actas", "boss", "anywhere"):
            assert (await failure(stub.GetTypedMemory(get, metadata=bearer(who)))).code is grpc.StatusCode.NOT_FOUND
        stranger = bearer("writer")
        for call in (
            stub.DeleteTypedMemory(pb.DeleteTypedMemoryRequest(id=made.id), metadata=stranger),
            stub.UpdateTypedMemory(pb.UpdateTypedMemoryRequest(id=made.id, importance=1), metadata=stranger),
        ):
            assert (await failure(call)).code is grpc.StatusCode.NOT_FOUND
        found = pb.SearchTypedMemoriesRequest(query="heron")
        assert not (await stub.SearchTypedMemories(found, metadata=bearer("reader"))).results
        for who, call, lacks in (
            ("reader", stub.CreateTypedMemory(new("x"), metadata=bearer("reader")), "memory.write"),
            ("writer", stub.GetTypedMemory(get, metadata=bearer("writer")), "memory.read"),
            ("writer", stub.SearchTypedMemories(found, metadata=bearer("writer")), "memory.read"),
            (
                "reader",
                stub.ExtractTypedMemories(pb.ExtractTypedMemoriesRequest(text="x"), metadata=bearer("reader")),
                "memory.write",
            ),
            ("chatty", stub.ListTypedMemories(pb.ListTypedMemoriesRequest(), metadata=bearer("chatty")), "memory.read"),
        ):
            failed = await failure(call)
            assert (failed.code, lacks in failed.message) == (grpc.StatusCode.PERMISSION_DENIED, True), who
        other = bearer("memory", x_user_id="user-reader")
        assert (await failure(stub.GetTypedMemory(get, metadata=other))).code is grpc.StatusCode.PERMISSION_DENIED


async def test_client_when_used_then_every_method_works(served: Served) -> None:
    async with AsyncClient(served.address, user_id="ann") as client:
        memories = client.memories
        made = await memories.create("The staging server is called heron", "fact", 0.8, event_id="e1")
        again = await memories.create("The staging server is called heron", "fact", event_id="e1")
        assert (made.duplicate, again) == (False, replace(made, duplicate=True))
        then = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
        known = await memories.create("The heron moved in May", "fact", created_at=then)
        assert (known.created_at, (await memories.get(known.id)).created_at) == (then, then)
        await memories.delete(known.id)
        assert await memories.get(made.id) == made
        assert (made.memory_type, made.importance, made.version) == ("fact", 0.8, 1)
        changed = await memories.update(made.id, content="The staging server is called egret")
        assert (changed.version, changed.importance) == (2, 0.8)
        (hit,) = await memories.search("egret server", top_k=1, memory_type="fact")
        assert (hit.id, hit.memory_type) == (made.id, "fact")
        page = await memories.list(page=1, page_size=1)
        assert (page.memories, page.total, page.page_size) == ((changed,), 1, 1)
        extracted = await memories.extract([{"role": "user", "content": "I live in Lisbon."}], deduplicate=True)
        assert "Lisbon" in extracted.memories[0].content
        assert (await memories.extract("I live in Lisbon.", deduplicate=True)).skipped == len(extracted.memories)
        assert (await memories.list(user_id="ben")).total == 0
        await memories.delete(made.id)
        kinds = {memory.memory_type for memory in extracted.memories}
        assert sum([await memories.delete_all(kind) for kind in kinds]) == len(extracted.memories)
        assert (await memories.list()).total == 0
        with pytest.raises(ValueError, match="rule, fact, context"):
            await memories.create("x", "all")
