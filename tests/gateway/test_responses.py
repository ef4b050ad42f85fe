"""OpenAI's newer form, by OpenAI's own client and by bytes: passed through, with memory in its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError

from tests.gateway.conftest import Client
from tests.upstream import Received, Reply, Upstream, error_reply

CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "weather",
    "arguments": "{}",
    "status": "completed",
}


def message(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}


def response(*output: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": status, "error": None, "incomplete_details": None,
        "instructions": None, "metadata": {}, "model": "m", "output": list(output), "parallel_tool_calls": True,
        "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
        "usage": {
            "input_tokens": 3, "input_tokens_details": {"cached_tokens": 1}, "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5,
        },
    }  # fmt: skip


def reply(*output: dict[str, Any]) -> Reply:
    return Reply(body=[json.dumps(response(*output)).encode()])


def event(kind: str, number: int, **members: Any) -> bytes:
    value = {"type": kind, "sequence_number": number, **members}
    return f"event: {kind}\ndata: {json.dumps(value)}\n\n".encode()


def events(*words: str, end: str = "completed") -> list[bytes]:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**message(""), "content": [], "status": "in_progress"}
    last = response(message("".join(words)), status=end)
    if end == "failed":
        last |= {"error": {"code": "server_error", "message": "it broke"}}
    return [
        event("response.created", 0, response=response(status="in_progress")),
        event("response.output_item.added", 1, output_index=0, item=begun),
        event("response.content_part.added", 2, **where, part=message("")["content"][0]),
        *[event("response.output_text.delta", 3 + at, **where, delta=one, logprobs=[]) for at, one in enumerate(words)],
        event(f"response.{end}", 9, response=last),
    ]


def streamed(*steps: Any) -> Reply:
    return Reply(body=steps, content_type="text/event-stream")


async def tell(client: Client, who: str) -> None:
    turn = {"user_id": who, "role": "user", "content": "My cat is called Momo."}
    assert (await client.post("/v1/memory/add", turn)).status == 200


async def ask(client: Client, upstream: Upstream, body: dict[str, Any], who: str, given: Reply) -> Received:
    """What the provider gets of a request with all of the user's memory."""
    for _ in range(100):
        upstream.will(given)
        answer = await client.post("/v1/responses", {"model": "m", **body}, X_User_ID=who)
        assert answer.status == 200, answer.body
        if "x-memoryos-status" not in answer.headers:
            assert answer.headers["x-memoryos-memories"] != "0"
            assert answer.headers["x-memoryos-provider"] == "upstream"
            return upstream.received[-1]
    raise AssertionError("memory does not answer")


QUESTION = "What is my cat called?"


@pytest.mark.parametrize("off", [True, False])
async def test_response_when_answered_then_bytes_are_equal_but_for_what_memory_did(
    client: Client, upstream: Upstream, off: bool
) -> None:
    sent = b'{ "model":"m", "input" : "h\\u00e9", "x": 1.0, "stream":false}'
    whole = json.dumps(response(message("hi")), indent=1).encode()
    upstream.will(Reply(body=[whole]))
    headers = {"X_MemoryOS_Memory": "off"} if off else {"X_User_ID": "r-bytes"}
    answer = await client.post("/v1/responses", sent, **headers)
    assert answer.status == 200
    (request,) = upstream.received
    assert (request.path, request.body) == ("/v1/responses", sent)
    if off:
        assert answer.body == whole
    else:
        assert answer.body.startswith(whole[:-2])
        assert answer.json["memoryos"]["remembered"] in (True, False)


async def test_response_when_the_input_is_text_then_memory_is_an_item_before_it(
    client: Client, upstream: Upstream
) -> None:
    await tell(client, "r-text")
    request = await ask(
        client, upstream, {"input": QUESTION, "instructions": "Be kind."}, "r-text", reply(message("Momo"))
    )
    block, question = request.json["input"]
    assert block["role"] == "developer"
    assert "Momo" in block["content"]
    assert question == {"role": "user", "content": QUESTION}
    assert request.json["instructions"] == "Be kind."


async def test_response_when_the_input_is_items_then_memory_stands_before_the_question_and_stays_in_a_tool_loop(
    client: Client, upstream: Upstream
) -> None:
    await tell(client, "r-items")
    items = [
        {"role": "user", "content": "hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]},
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
    ]
    first = await ask(client, upstream, {"input": items}, "r-items", reply(CALL))
    assert [one for one in first.json["input"] if one.get("role") != "developer"] == items
    assert first.json["input"][2]["role"] == "developer"
    result = {"type": "function_call_output", "call_id": "c1", "output": "a cat"}
    second = await ask(client, upstream, {"input": [*items, CALL, result]}, "r-items", reply(message("Momo")))
    assert second.json["input"] == [*first.json["input"], CALL, result]
    await client.keeps("r-items", ("user", "My cat is called Momo."), ("user", QUESTION), ("assistant", "Momo"))


@pytest.mark.parametrize("instructions", [None, "Be kind."])
async def test_response_when_the_provider_keeps_the_conversation_then_memory_counts_for_one_answer(
    client: Client, upstream: Upstream, instructions: str | None
) -> None:
    await tell(client, "r-chain")
    more = {} if instructions is None else {"instructions": instructions}
    body = {"input": QUESTION, "previous_response_id": "resp_0", **more}
    request = await ask(client, upstream, body, "r-chain", reply(message("Momo")))
    assert request.json["input"] == QUESTION
    given: str = request.json["instructions"]
    assert "Momo" in given
    assert given.startswith(instructions or "")


async def test_response_when_instructions_are_odd_text_then_memory_stands_behind_them_to_the_letter(
    client: Client, upstream: Upstream
) -> None:
    await tell(client, "r-odd")
    body = {"input": QUESTION, "previous_response_id": "resp_0", "instructions": 'h\u00e9 "\ud83d" \n'}
    request = await ask(client, upstream, body, "r-odd", reply(message("Momo")))
    assert json.dumps(body["instructions"])[:-1].encode() + b"\\n\\n<memoryos-context>" in request.body


@pytest.mark.parametrize("kept", ["previous_response_id", "conversation", None])
async def test_response_when_the_same_is_said_twice_then_what_the_provider_keeps_tells_whether_it_is_the_same_turn(
    client: Client, upstream: Upstream, kept: str | None
) -> None:
    who = f"r-twice-{kept}"
    for place in ("resp_1", "resp_2"):
        upstream.will(reply(message("ok")))
        more = {} if kept is None else {kept: place if kept == "previous_response_id" else "conv_1"}
        answer = await client.post("/v1/responses", {"model": "m", "input": "Go on.", **more}, X_User_ID=who)
        assert answer.status == 200
        await client.kept(who, answer.headers["x-memoryos-event-id"])
    await client.keeps(who, *[("user", "Go on."), ("assistant", "ok")] * (1 if kept is None else 2))


async def test_response_when_it_is_asked_for_again_then_it_is_the_same_turn(client: Client, upstream: Upstream) -> None:
    events = set()
    for more in ({"previous_response_id": "resp_\ud800"}, {"conversation": {"id": "conv_1"}}):
        for _ in range(2):
            upstream.will(reply(message("ok")))
            headers = {"Idempotency_Key": "once"} if "conversation" in more else {}
            body = {"model": "m", "input": "Go on.", **more}
            answer = await client.post("/v1/responses", body, X_User_ID="r-again", X_Session_ID="s", **headers)
            assert answer.status == 200
            events.add(answer.headers["x-memoryos-event-id"])
    assert len(events) == 2


async def test_response_when_streamed_then_bytes_are_equal_and_the_turn_is_remembered(
    client: Client, upstream: Upstream
) -> None:
    frames = events("My", " pleasure")
    upstream.will(streamed(*[b"".join(frames)[at : at + 7] for at in range(0, len(b"".join(frames)), 7)]))
    body = {"model": "m", "input": "Thank you for the tea.", "stream": True}
    answer = await client.post("/v1/responses", body, X_User_ID="r-stream")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.body == b"".join(frames)
    await client.keeps("r-stream", ("user", "Thank you for the tea."), ("assistant", "My pleasure"))


@pytest.mark.parametrize("end", ["cut", "failed", "error"])
async def test_response_when_a_stream_does_not_complete_then_it_is_not_presented_as_whole_nor_remembered(
    client: Client, upstream: Upstream, end: str
) -> None:
    who = f"r-{end}"
    frames = events("a", "b", end="failed" if end == "failed" else "completed")
    if end != "failed":
        frames[-1:] = [event("error", 9, code="x", message="it broke", param=None)] if end == "error" else []
    upstream.will(streamed(*frames))
    body = {"model": "m", "input": "Is it whole?", "stream": True}
    answer = await client.post("/v1/responses", body, X_User_ID=who)
    assert b"response.completed" not in answer.body
    assert answer.body.startswith(b"".join(frames))
    assert (b'"upstream_failed"' in answer.body) == (end == "cut")
    assert await client.said(who) == []


async def test_response_when_openais_client_asks_then_it_notices_nothing(client: Client, upstream: Upstream) -> None:
    async with AsyncOpenAI(base_url=f"{client.url}/v1", api_key="k", max_retries=0) as openai:
        upstream.will(reply(message("hi")), streamed(*events("a", "b")), streamed(*events("a")[:-1]), error_reply(404))
        made = await openai.responses.create(model="m", input="x")
        assert (made.output_text, made.status) == ("hi", "completed")
        async with openai.responses.stream(model="m", input="x") as stream:
            final = await stream.get_final_response()
        assert final.output_text == "ab"
        with pytest.raises(APIError):
            async for _ in await openai.responses.create(model="m", input="x", stream=True):
                pass
        with pytest.raises(NotFoundError):  # a provider without this interface
            await openai.responses.create(model="m", input="x")
        with pytest.raises(BadRequestError, match="input must be"):
            await openai.responses.create(model="m", input=5)  # type: ignore[call-overload]


async def test_response_when_the_built_in_model_is_asked_then_openais_client_reads_it(client: Client) -> None:
    await tell(client, "r-built")
    async with AsyncOpenAI(
        base_url=f"{client.url}/v1", api_key="k", default_headers={"X-User-ID": "r-built"}
    ) as openai:
        made = await openai.responses.create(model="memoryos/recall", input=QUESTION)
        assert "Momo" in made.output_text
        assert made.usage is not None
        async with openai.responses.stream(model="memoryos/recall", input=QUESTION) as stream:
            final = await stream.get_final_response()
    assert final.output_text == made.output_text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "m\ud800", "input": "x"}, "model"),
        ({"model": "m", "input": 5}, "input"),
        ({"model": "m", "input": ["x"]}, "input[0]"),
        ({"model": "m", "input": "x", "instructions": [{"role": "user", "content": "x"}]}, "instructions"),
        ({"model": "m", "input": "x", "temperature": 3}, "temperature"),
        ({"model": "m", "input": "x", "stream": "yes"}, "stream"),
    ],
)
async def test_response_when_the_request_is_wrong_then_the_member_is_named(
    client: Client, upstream: Upstream, body: dict[str, Any], param: str
) -> None:
    answer = await client.post("/v1/responses", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert upstream.received == []


@pytest.mark.parametrize("model", ["m", "memoryos/recall"])
@pytest.mark.parametrize("stream", [True, False])
async def test_response_when_half_a_character_is_said_then_it_is_answered(
    client: Client, upstream: Upstream, model: str, stream: bool
) -> None:
    half = "\ud83d"
    items = [
        {"role": "user", "content": half},
        {"role": "assistant", "content": half},
        {"role": "user", "content": half},
    ]
    body = {"model": model, "input": items, "instructions": half, "stream": stream}
    upstream.will(streamed(*events("a")) if stream else reply(message("a")))
    answer = await client.post("/v1/responses", body, X_User_ID="r-half")
    assert answer.status == 200
    assert b'"completed"' in answer.body
    assert b'"error":{' not in answer.body
