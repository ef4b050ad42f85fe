"""The provider's adapter, over real TCP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from memoryos_server.domain.core.faults import DeadlineExceeded, Fault, Upstream, UpstreamRejected
from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm import gateway as gateways
from memoryos_server.tools.llm.gateway import Gateway
from tests import upstream as fake
from tests.providers import gateway
from tests.upstream import Die, Gate, Reply, Sleep, completion, delta, error_reply, json_reply, sse, stream_reply

BODY = '{"model":"fake-1","messages":[{"role":"user","content":"hé"}], "seed":1.0}'


@pytest.fixture
async def upstream() -> AsyncIterator[fake.Upstream]:
    async with fake.Upstream() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "BACKOFF_SECONDS", 0.01)


def provider(upstream: fake.Upstream, **more: Any) -> Gateway:
    return gateway(upstream.base_url + "/", **more)


async def read(llm: Gateway) -> bytes:
    async with aclosing(llm.stream(Asked("fake-1", BODY), lambda served: None)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_complete_when_answered_then_bytes_are_equal_both_ways(upstream: fake.Upstream) -> None:
    upstream.will(json_reply("hi"))
    async with provider(upstream) as llm:
        answer = await llm.complete(Asked("fake-1", BODY))
    assert answer.body == completion("hi")
    (request,) = upstream.received
    assert (request.method, request.path, request.body) == ("POST", "/v1/chat/completions", BODY.encode())
    assert request.headers["authorization"] == "Bearer provider-key"
    assert request.headers["accept-encoding"] == "identity"


async def test_complete_when_body_is_large_then_it_goes_out(upstream: fake.Upstream) -> None:
    big = json.dumps({"messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    async with provider(upstream) as llm:
        await llm.complete(Asked("fake-1", big.decode()))
    assert upstream.received[0].body == big


async def test_stream_when_answered_then_bytes_are_equal_and_connection_is_reused(upstream: fake.Upstream) -> None:
    frames = b"".join(sse(delta("a"), delta("b", "stop")))
    upstream.will(
        stream_reply("x"), Reply(body=[frames[i : i + 1] for i in range(len(frames))], content_type="text/event-stream")
    )
    async with provider(upstream) as llm:
        await read(llm)
        assert await read(llm) == frames
    assert upstream.connections == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
@pytest.mark.parametrize("streamed", [True, False])
async def test_call_when_request_is_refused_then_upstream_rejected_at_once(
    upstream: fake.Upstream, status: int, streamed: bool
) -> None:
    upstream.will(
        error_reply(status, {"error": {"message": "bad key provider-key", "type": "t", "code": "c", "param": "p"}})
    )
    async with provider(upstream) as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await (read(llm) if streamed else llm.complete(Asked("fake-1", BODY)))
    fault = caught.value
    assert (fault.status, fault.message, fault.code, fault.param) == (status, "bad key ***", "c", "p")
    assert fault.metadata["upstream_type"] == "t"
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ([{"error": {"message": "array", "code": 400}}], "array"),
        ({"error": "text"}, "text"),
        ({"detail": "fastapi"}, "fastapi"),
        ({"message": "flat"}, "flat"),
        (5, "The provider refused the request"),
    ],
)
async def test_refusal_when_body_is_odd_then_message_is_found(
    upstream: fake.Upstream, error: object, message: str
) -> None:
    upstream.will(error_reply(400, error))
    async with provider(upstream) as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await llm.complete(Asked("fake-1", BODY))
    assert caught.value.message == message


async def test_call_when_rate_limited_for_long_then_not_retried_and_says_how_long(upstream: fake.Upstream) -> None:
    upstream.will(error_reply(429, Retry_After="30"))
    async with provider(upstream) as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await llm.complete(Asked("fake-1", BODY))
    assert caught.value.retry_after == 30
    assert len(upstream.received) == 1


@pytest.mark.parametrize(
    ("header", "value", "seconds"),
    [
        ("retry-after-ms", "inf", None),
        ("retry-after-ms", "nan", None),
        ("retry-after-ms", "1e300", 86_400.0),
        ("Retry-After", "9" * 40, 86_400.0),
        ("Retry-After", "soon", None),
    ],
)
async def test_call_when_the_wait_asked_for_is_absurd_then_it_is_bounded(
    upstream: fake.Upstream, header: str, value: str, seconds: float | None
) -> None:
    limited = error_reply(429, **{header.replace("-", "_"): value})
    upstream.will(limited, limited, limited)
    async with provider(upstream) as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await llm.complete(Asked("fake-1", BODY))
    assert caught.value.retry_after == seconds


async def test_call_when_rate_limited_shortly_then_waits_as_told(upstream: fake.Upstream) -> None:
    upstream.will(error_reply(429, retry_after_ms="300"), json_reply("ok"))
    async with provider(upstream) as llm:
        assert (await llm.complete(Asked("fake-1", BODY))).body == completion("ok")
    assert upstream.received[1].at - upstream.received[0].at >= 0.29


@pytest.mark.parametrize(
    "bad",
    [
        error_reply(500),
        error_reply(503),
        error_reply(408),
        Reply(before=[Die()]),
        Reply(body=[Die()], content_type="text/plain"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_call_when_it_fails_before_the_first_byte_then_retried(
    upstream: fake.Upstream, bad: Reply, streamed: bool
) -> None:
    good = stream_reply("ok") if streamed else json_reply("ok")
    upstream.will(bad, bad, good)
    async with provider(upstream) as llm:
        assert b"ok" in (await read(llm) if streamed else (await llm.complete(Asked("fake-1", BODY))).body)
    assert len(upstream.received) == 3


@pytest.mark.parametrize(
    ("bad", "kind", "tries"),
    [
        (error_reply(500), Upstream, 3),
        (error_reply(408), DeadlineExceeded, 3),
        (error_reply(429), UpstreamRejected, 3),
        (error_reply(429, {"error": {"message": "m", "code": "insufficient_quota"}}), UpstreamRejected, 1),
        (error_reply(401), Upstream, 1),
        (error_reply(403), Upstream, 1),
        (error_reply(302, Location="http://127.0.0.1:9/"), Upstream, 1),
        (Reply(before=[Die()]), Upstream, 3),
    ],
)
async def test_call_when_it_keeps_failing_then_fault(
    upstream: fake.Upstream, bad: Reply, kind: type[Fault], tries: int
) -> None:
    upstream.will(bad, bad, bad)
    async with provider(upstream) as llm:
        with pytest.raises(kind) as caught:
            await llm.complete(Asked("fake-1", BODY))
    assert len(upstream.received) == tries
    assert "provider-key" not in caught.value.message


async def test_call_when_nobody_listens_then_upstream() -> None:
    async with fake.Upstream() as gone:
        url = gone.base_url
    async with gateway(url) as llm:
        with pytest.raises(Upstream, match="reached"):
            await llm.complete(Asked("fake-1", BODY))


async def test_call_when_first_byte_is_late_then_deadline_after_retries(upstream: fake.Upstream) -> None:
    upstream.will(Reply(before=[Sleep(5)]), Reply(body=[Sleep(5)]), Reply(before=[Sleep(5)]))
    async with provider(upstream, first_byte_timeout_seconds=0.1) as llm:
        with pytest.raises(DeadlineExceeded):
            await llm.complete(Asked("fake-1", BODY))
    assert len(upstream.received) == 3


async def test_stream_when_it_breaks_after_the_first_byte_then_not_retried(upstream: fake.Upstream) -> None:
    upstream.will(Reply(body=[b"data: 1\n\n", Sleep(0.05), Die()], content_type="text/event-stream"))
    async with provider(upstream) as llm:
        with pytest.raises(Upstream, match="broke off"):
            await read(llm)
    assert len(upstream.received) == 1


async def test_complete_when_shorter_than_announced_then_upstream(upstream: fake.Upstream) -> None:
    upstream.will(Reply(body=[b'{"a":'], length=100))
    async with provider(upstream) as llm:
        with pytest.raises(Upstream, match="broke off"):
            await llm.complete(Asked("fake-1", BODY))
    assert len(upstream.received) == 1


@pytest.mark.parametrize(("keepalive", "dies"), [(b": ping\n\n", True), (b"\n", True), (b"data: 1\n\n", False)])
async def test_stream_when_only_comments_come_then_idle_timeout(
    upstream: fake.Upstream, keepalive: bytes, dies: bool
) -> None:
    steps: Sequence[Any] = [b"data: 0\n\n", *(step for _ in range(8) for step in (Sleep(0.1), keepalive))]
    upstream.will(Reply(body=steps, content_type="text/event-stream"))
    async with provider(upstream, idle_timeout_seconds=0.4) as llm:
        if dies:
            with pytest.raises(DeadlineExceeded):
                await read(llm)
        else:
            assert (await read(llm)).count(b"data") == 9


async def test_stream_when_reader_is_slow_then_no_idle_timeout(upstream: fake.Upstream) -> None:
    upstream.will(
        Reply(
            body=[b"data: 0\n\n", Sleep(0.1), b"data: 1\n\n", Sleep(0.1), b"data: 2\n\n"],
            content_type="text/event-stream",
        )
    )
    async with (
        provider(upstream, idle_timeout_seconds=0.2) as llm,
        aclosing(llm.stream(Asked("fake-1", BODY), lambda served: None)) as chunks,
    ):
        seen = b""
        async for chunk in chunks:
            seen += chunk
            await asyncio.sleep(0.3)
    assert seen.count(b"data") == 3


@pytest.mark.parametrize("streamed", [True, False])
async def test_call_when_cancelled_then_connection_is_closed_within_100_ms(
    upstream: fake.Upstream, streamed: bool
) -> None:
    gate = Gate()
    upstream.will(
        Reply(body=[b"data: 0\n\n", gate], content_type="text/event-stream") if streamed else Reply(before=[gate])
    )
    async with provider(upstream) as llm:
        task = asyncio.create_task(read(llm) if streamed else llm.complete(Asked("fake-1", BODY)))  # type: ignore[arg-type]
        await asyncio.wait_for(gate.reached.wait(), 5)
        left = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(upstream.received[0].closed.wait(), 1)
    closed = upstream.received[0].closed_at
    assert closed is not None
    assert closed - left < 0.5


async def test_call_when_proxy_is_in_the_environment_then_it_is_not_used(
    upstream: fake.Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with provider(upstream) as llm:
        assert (await llm.complete(Asked("fake-1", BODY))).body


async def test_models_when_asked_often_then_listed_once(upstream: fake.Upstream) -> None:
    async with provider(upstream) as llm:
        both = await asyncio.gather(llm.models(), llm.models())
        assert [m["id"] for m in both[0]] == list(fake.MODELS)
    assert upstream.lists == 1


async def test_models_when_there_is_no_list_then_empty() -> None:
    async with fake.Upstream(models=None) as upstream, provider(upstream) as llm:
        assert await llm.models() == []
        assert await llm.models() == []
    assert upstream.lists == 1


async def test_stream_when_provider_answers_json_then_upstream(upstream: fake.Upstream) -> None:
    upstream.will(json_reply("not streamed"))
    async with provider(upstream) as llm:
        with pytest.raises(Upstream, match="does not stream"):
            await read(llm)
