"""What a client is told when the provider fails before it answers, and what becomes of the provider's call when it leaves."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.gateway.conftest import SILENCE_SECONDS, Answered, Client, until
from tests.system import System
from tests.upstream import Die, Gate, Reply, Sleep, Upstream, completion, delta, error_reply, json_reply, sse

WHOLE = completion("Hi")
OURS = {"error": {"message": "Incorrect API key provided: provider-key", "code": "invalid_api_key"}}
THEIRS = {
    "error": {
        "message": "Too long",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
    }
}


@dataclass(frozen=True)
class Failure:
    """What the provider does with one call, and what the client is told.

    Attributes:
        replies: One for each attempt.
        status: The status that the client gets.
        error: Members of the error.
        streams: Whether a streamed call ends in the same way.
        whole: Whether one that is not streamed does.
    """

    replies: list[Reply]
    status: int
    error: dict[str, Any] = field(default_factory=dict)
    streams: bool = True
    whole: bool = True


FAILED = {"type": "ExternalServiceError", "code": "upstream_failed", "param": None}
TIMED_OUT = {"type": "Timeout", "code": "deadline_exceeded"}
REFUSED = {"code": "context_length_exceeded", "param": "messages", "message": "Too long"}
SLOW_DOWN = error_reply(429, {"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}, Retry_After="30")

FAILURES = {
    "our_key_is_refused": Failure([error_reply(401, OURS)], 502, FAILED),
    "our_key_may_not": Failure([error_reply(403, OURS)], 502, FAILED),
    "bad_request": Failure([error_reply(400, THEIRS)], 400, REFUSED | {"type": "BadRequest"}),
    "not_found": Failure([error_reply(404, THEIRS)], 404, REFUSED | {"type": "NotFound"}),
    "too_large": Failure([error_reply(413, THEIRS)], 413, REFUSED | {"type": "PayloadTooLarge"}),
    "unprocessable": Failure([error_reply(422, THEIRS)], 422, REFUSED | {"type": "BadRequest"}),
    "rate_limited_for_long": Failure(
        [SLOW_DOWN], 429, {"type": "TooManyRequests", "code": "rate_limit_exceeded", "message": "Slow down"}
    ),
    "other_4xx": Failure([error_reply(418)], 502, FAILED),
    "redirected": Failure([Reply(status=302, headers={"Location": "http://127.0.0.1:1/"})], 502, FAILED),
    "server_errors": Failure([error_reply(500), error_reply(502), error_reply(503)], 502, FAILED),
    "reset": Failure([Reply(before=[Die()])] * 3, 502, FAILED),
    "empty": Failure([Reply(length=0)] * 3, 502, FAILED, streams=False),
    "empty_stream": Failure([Reply(length=0, content_type="text/event-stream")] * 3, 502, FAILED, whole=False),
    "html": Failure([Reply(body=[b"<html>Sign in</html>"], content_type="text/html")], 502, FAILED),
    "json_for_a_stream": Failure([json_reply("Hi")], 502, FAILED, whole=False),
    "cut_in_the_first_event": Failure(
        [Reply(body=[b'data: {"cho'], content_type="text/event-stream", end=False)], 502, FAILED, whole=False
    ),
    "cut_json": Failure([Reply(body=[WHOLE[:40]], length=len(WHOLE), end=False)], 502, FAILED, streams=False),
    "cut_json_in_chunks": Failure([Reply(body=[WHOLE[:40]], end=False)], 502, FAILED, streams=False),
    "cut_json_of_unknown_length": Failure([Reply(body=[WHOLE[:40]], chunked=False)], 502, FAILED, streams=False),
    "a_list": Failure([Reply(body=[b"[1]"])], 502, FAILED, streams=False),
}  # fmt: skip


def ask(model: str, *, stream: bool, **more: Any) -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Go"}], **more}


def check(answer: Answered, failure: Failure) -> None:
    assert answer.status == failure.status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.error.items() >= failure.error.items()
    assert b"provider-key" not in answer.body


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("name", FAILURES)
async def test_call_when_the_provider_fails_before_the_first_byte_then_a_status(
    client: Client, upstream: Upstream, name: str, stream: bool
) -> None:
    failure = FAILURES[name]
    if not (failure.streams if stream else failure.whole):
        return
    upstream.will(*failure.replies)
    answer = await client.chat(ask(name, stream=stream), user=f"failed-{name}")
    check(answer, failure)
    assert len(upstream.received) == len(failure.replies)
    if name == "rate_limited_for_long":
        assert answer.headers["retry-after"] == "30"
    await client.keeps(f"failed-{name}")


async def test_call_when_the_provider_takes_too_long_then_504(client: Client, upstream: Upstream) -> None:
    """All at once, because each takes seconds."""
    silent = {
        ("head", False): [Reply(before=[Gate()])] * 3,
        ("head", True): [Reply(before=[Gate()])] * 3,
        ("body", False): [Reply(body=[Gate()])] * 3,
        ("body", True): [Reply(body=[Gate()], content_type="text/event-stream")] * 3,
        ("amid", False): [Reply(body=[WHOLE[:40], Gate()])],
        ("amid_an_event", True): [Reply(body=[b"data: {", Gate()], content_type="text/event-stream")],
    }
    for (name, stream), replies in silent.items():
        upstream.will(*replies, model=f"{name}-{stream}")
    began = time.monotonic()
    answers = await asyncio.gather(*(client.chat(ask(f"{name}-{stream}", stream=stream)) for name, stream in silent))
    assert SILENCE_SECONDS <= time.monotonic() - began < 3 * SILENCE_SECONDS + 10
    for answer in answers:
        check(answer, Failure([], 504, TIMED_OUT))
    assert len(upstream.received) == sum(len(replies) for replies in silent.values())
    await until(lambda: upstream.open == 0)


async def test_call_when_nobody_accepts_connections_then_soon_502_or_504(client: Client, provider_port: int) -> None:
    answer = await client.chat(ask("m", stream=False))
    check(answer, Failure([], 502, FAILED))
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deaf.bind(("127.0.0.1", provider_port))
        deaf.listen(0)
        # The queue of those that were not accepted is full after one; what comes then is not answered at all.
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", provider_port))
            began = time.monotonic()
            check(await client.chat(ask("m", stream=True)), Failure([], 504, TIMED_OUT))
            assert time.monotonic() - began < 3 * SILENCE_SECONDS
        finally:
            for one in waiting:
                one.close()


def held_up(phase: str, gate: Gate) -> Reply:
    """A reply that stops somewhere."""
    sse_type = "text/event-stream"
    return {
        "stream_before_the_head": Reply(before=[gate]),
        "stream_before_the_first_byte": Reply(content_type=sse_type, body=[gate]),
        "stream_in_the_first_event": Reply(content_type=sse_type, body=[b'data: {"cho', gate]),
        "stream_amid": Reply(content_type=sse_type, body=[sse(delta("one"))[0], gate]),
        "stream_after_its_end": Reply(
            content_type=sse_type, body=[*sse(delta("one"), delta(None, "stop"), done=False), gate]
        ),
        "json_before_the_head": Reply(before=[gate]),
        "json_before_the_first_byte": Reply(body=[gate]),
        "json_amid": Reply(body=[WHOLE[:40], gate]),
    }[phase]


PHASES = [
    "stream_before_the_head", "stream_before_the_first_byte", "stream_in_the_first_event", "stream_amid",
    "stream_after_its_end", "json_before_the_head", "json_before_the_first_byte", "json_amid",
]  # fmt: skip


async def until_closed(gateway: System, upstream: Upstream, phase: str) -> float:
    """Seconds from a client's leaving to the end of the provider's connection."""
    gate = Gate()
    upstream.will(held_up(phase, gate))
    reader, writer = await asyncio.open_connection(*gateway.http.rsplit(":", 1))
    payload = json.dumps(ask("m", stream=phase.startswith("stream"))).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"X-User-ID: leaver\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
    )
    await asyncio.wait_for(gate.reached.wait(), 10)
    if phase in ("stream_amid", "stream_after_its_end"):
        await asyncio.wait_for(reader.readuntil(b'"one"'), 10)
    left = time.monotonic()
    writer.close()
    received = upstream.received[-1]
    await asyncio.wait_for(received.closed.wait(), 10)
    assert received.closed_at is not None
    return received.closed_at - left


@pytest.mark.parametrize("phase", PHASES)
async def test_client_when_gone_then_the_providers_connection_is_closed_within_a_tenth_of_a_second(
    gateway: System, upstream: Upstream, client: Client, phase: str
) -> None:
    # The best of three: a busy machine may hold up any one of them.
    took = [await until_closed(gateway, upstream, phase) for _ in range(3)]
    print(f"closed after {', '.join(f'{1000 * seconds:.0f} ms' for seconds in took)}")
    assert min(took) < 0.1
    assert len(upstream.received) == upstream.connections == 3
    await until(lambda: upstream.open == 0)
    await client.keeps("leaver")


async def test_clients_when_many_leave_at_random_moments_then_no_connection_is_left(
    gateway: System, upstream: Upstream, client: Client
) -> None:
    """Some leave before the provider was asked, some amid the answer, some after it; the last ten stay."""
    frames = [step for n in range(40) for step in (sse(delta(f"{n} "))[0], Sleep(0.01))]

    async def visit(number: int) -> None:
        upstream.will(
            Reply(content_type="text/event-stream", body=[*frames, *sse(delta(None, "stop"))]), model=f"v{number}"
        )
        try:
            async with asyncio.timeout(0.012 * number if number < 50 else None):
                await client.chat(ask(f"v{number}", stream=True))
        except TimeoutError:
            pass

    await asyncio.gather(*(visit(number) for number in range(60)))
    await until(lambda: all(r.answered or r.closed.is_set() for r in upstream.received))
    finished = sum(r.answered for r in upstream.received)
    assert 0 < finished < len(upstream.received) <= 60
    # Those left are idle ones that are kept for the next call.
    assert upstream.open <= finished
    answer = await client.chat(ask("m", stream=False))
    assert answer.status == 200
