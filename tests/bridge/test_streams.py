from __future__ import annotations

import asyncio
import gc
import json

import httpx
import pytest

from memoryos_bridge.exchange import Exchange
from tests.bridge.conftest import System, until


async def test_export_when_complete_then_one_document(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/scratch/export", json={"count": 500})
    body = answer.json()
    assert list(body) == ["status", "format", "data"]
    assert (body["status"], body["format"]) == ("ok", "json")
    assert list(body["data"]) == ["owner", "thing_count", "things"]
    assert [thing["id"] for thing in body["data"]["things"]] == [f"thing-{n}" for n in range(1, 501)]


async def test_export_when_empty_then_an_empty_array(http: httpx.AsyncClient) -> None:
    body = (await http.post("/v1/scratch/export", json={})).json()
    assert body == {"status": "ok", "format": "json", "data": {"owner": "nobody", "thing_count": 0, "things": []}}


async def test_export_when_the_first_message_has_the_text_then_its_pieces_are_one_string(
    http: httpx.AsyncClient,
) -> None:
    body = (await http.post("/v1/scratch/export", json={"count": 3, "note": "text"})).json()
    text = "".join(f'"thing" {n}\n\u2603' for n in (1, 2, 3))
    assert body == {"status": "ok", "format": "text", "content": text}
    body = (await http.post("/v1/scratch/export", json={"note": "text"})).json()
    assert body == {"status": "ok", "format": "text", "content": ""}
    for count in (0, 1, 3):
        body = (await http.post("/v1/scratch/export", json={"count": count, "note": "value"})).json()
        assert body == {
            "status": "ok",
            "format": "value",
            "value": {"things": list(range(1, count + 1)), "name": "\u2603"},
        }


async def test_export_when_refused_before_the_first_message_then_a_normal_error(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/scratch/export", json={"count": 3, "note": "deny"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    answer = await http.post("/v1/scratch/export", json={"count": 3, "fail_at": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")


async def test_export_when_it_fails_midway_then_the_connection_breaks(system: System) -> None:
    received = bytearray()

    async def read() -> None:
        async with system.http.stream("POST", "/v1/scratch/export", json={"count": 3, "fail_at": 3}) as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_bytes():
                received.extend(chunk)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert b"thing-2" in received
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(received)
    (line,) = system.bridge.lines()
    assert (line["complete"], line["code"]) == (False, "upstream_failed")
    assert (await system.http.get("/health")).status_code == 200


async def test_export_when_pieces_are_held_back_then_the_earlier_ones_are_out(system: System) -> None:
    first_at = last_at = 0.0
    loop = asyncio.get_running_loop()
    async with system.http.stream("POST", "/v1/scratch/export", json={"count": 8, "note": "slow"}) as answer:
        async for chunk in answer.aiter_raw():
            if chunk and not first_at:
                first_at = loop.time()
                assert b"thing-1" in chunk
                assert b"thing-3" not in chunk
            last_at = loop.time()
    assert last_at - first_at > 0.25


async def test_client_when_it_leaves_a_stream_then_the_rpc_ends_within_100_ms(system: System) -> None:
    servicer = system.scratch.servicer
    async with system.http.stream("POST", "/v1/scratch/export", json={"count": 500, "note": "slow"}) as answer:
        async for _ in answer.aiter_raw():
            break
        assert servicer.running == 1
    assert await until(lambda: servicer.running == 0) < 0.5
    await until(lambda: system.bridge.lines())
    assert system.bridge.lines()[0]["status"] == 499


async def test_request_when_it_is_over_then_nothing_of_it_waits_for_the_garbage_collector(
    http: httpx.AsyncClient,
) -> None:
    def exchanges() -> list[Exchange]:
        return [one for one in gc.get_objects() if isinstance(one, Exchange)]

    gc.collect()
    before = exchanges()
    gc.disable()
    try:
        for note in ("", "deny"):
            await http.post("/v1/scratch/export", json={"count": 3, "note": note})
        await until(lambda: len(exchanges()) == len(before))
    finally:
        gc.enable()
