"""Nonsense at every RPC of a real server: it refuses, and never fails, falls, or says what it should not."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from memoryos import Client, schema
from memoryos.schema import Method
from tests.hostile import METADATA, requests
from tests.system import System

OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED}
"""Codes that no request may lead to."""

TELLING = ("Traceback", 'File "', ".py", "Error(", "redis", "valkey", "/work", "/home", "/tmp")  # noqa: S108
"""What no message to a client may hold."""


@dataclass
class Report:
    """What came of the calls."""

    codes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("fuzz")
    running = System(home, {"MEMORYOS_LOG__FORMAT": "json"})
    with running:
        yield running


def planted(address: str) -> dict[str, list[str]]:
    """Something that is there, for requests that name it: field -> values."""
    with Client(address, user_id="ann") as client:
        added = [client.add(text, session_id="s1", event_id=f"planted-{text}") for text in ("I drink tea.", "I run.")]
        client.segments.import_segments(["Ann runs.", "Ann sails."])
        segments = [segment.id for segment in client.segments.export()]
        typed = [client.memories.create("Ann lives in Porto.", "fact").id for _ in range(3)]
    memories = [one.memory_id for one in added]
    return {
        "id": [*typed, *memories],
        "memory_id": [*memories, *segments, *typed],
        "event_id": [one.event_id for one in added],
        "segment_id": segments,
    }


async def fuzz(address: str, methods: tuple[Method, ...], seed: int, count: int) -> Report:
    """Sends `count` requests of each method, several at a time."""
    report = Report()
    known = planted(address)
    turn = asyncio.Semaphore(8)
    # Most calls name nobody wrong, or nothing behind the first interceptors would ever be reached.
    metadata = itertools.cycle([part for odd in METADATA for part in (odd, *[(("x-user-id", "ann"),)] * 3)])
    async with grpc.aio.insecure_channel(
        address, [("grpc.max_receive_message_length", 1 << 27), ("grpc.max_metadata_size", 1 << 16)]
    ) as channel:

        async def one(method: Method, kind: str, data: bytes, sent: tuple[tuple[str, str | bytes], ...]) -> None:
            async with turn:
                code, text = await ask(channel, method, data, sent)
            report.codes[code.name] += 1
            told = [word for word in TELLING if word in text]
            if code in OURS or told or code is grpc.StatusCode.DEADLINE_EXCEEDED:
                report.bad.append(f"{method.name} {kind} {code.name} {text[:200]!r} {sent} {data[:300]!r}")

        async with asyncio.TaskGroup() as tasks:
            for method in methods:
                # An import under the id of a typed memory is accepted, and ends as a dead letter: the log's error, not a call's.
                segments = {"id": known["segment_id"]} if method.name == "ImportSegments" else {}
                for kind, data in requests(method, seed, count, known | segments):
                    tasks.create_task(one(method, kind, data, next(metadata)))
    return report


async def ask(
    channel: grpc.aio.Channel, method: Method, data: bytes, metadata: tuple[tuple[str, str | bytes], ...]
) -> tuple[grpc.StatusCode, str]:
    """The code and the message a call ends with; of a stream only its first pieces are read."""
    try:
        if method.streams:
            call = channel.unary_stream(method.path)(data, timeout=30, metadata=metadata)
            for _ in range(20):
                if await call.read() is grpc.aio.EOF:
                    break
            else:
                call.cancel()
        else:
            await channel.unary_unary(method.path)(data, timeout=30, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def check(system: System, report: Report) -> None:
    assert report.bad == [], "\n".join(report.bad[:30])
    log = (system.home / "server.log").read_text(errors="replace")
    assert "Traceback" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line for line in lines if line.get("level") in ("error", "critical")] == []
    assert report.codes["INVALID_ARGUMENT"] > 0
    assert report.codes["OK"] > 0
    assert system.server is not None
    assert system.server.poll() is None
    with Client(system.grpc, user_id="after") as client:
        client.add("I take my coffee black.")
        assert client.retrieve("coffee").episodes[0].content == "I take my coffee black."


async def test_every_rpc_when_requests_are_nonsense_then_none_fails_inside_and_the_server_serves_on(
    system: System,
) -> None:
    check(system, await fuzz(system.grpc, schema.load(), seed=1, count=40))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 12))
async def test_every_rpc_when_requests_are_nonsense_for_long_then_none_fails_inside(system: System, seed: int) -> None:
    check(system, await fuzz(system.grpc, schema.load(), seed=seed, count=300))
