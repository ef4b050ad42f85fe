"""Requests arrive as they were sent, but for the one message that memory adds; answers come back byte for byte."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.conftest import Client
from tests.upstream import Reply, Upstream, completion

USER = '{"role":"user","content":"Which drink do I like?"}'
PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "additionalProperties": False},
        },
    },
    {"type": "custom", "custom": {"name": "sql", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}}},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Basel"}'}}
SCHEMA = {"name": "x", "strict": True, "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}

PARAMETERS = {
    "numbers": '"seed":123456789012345678901234567890,"temperature":1.0,"top_p":1e-0,"x":[1.50,-0.0,1E400,0.1e+1]',
    "duplicates_and_order": '"zz":1,"aa":2,"zz":3,"":{"b":1,"a":{"b":1,"a":2}}',
    "spacing": '  "metadata" : { "a" :\t"b" } ,\n "store" : false ',
    "escapes": r'"stop":["\u4f60\/","\ud83d\ude00","\ud800","\u0000","\u2028"],"user":"caf\u00e9 caf' + 'é"',
    "nulls": '"temperature":null,"max_tokens":null,"n":null,"stream":null,"stream_options":null,"user":null,"tools":[]',
    "unknown": '"x_new":{"deep":[[[[{"er":[]}]]]]},"reasoning_effort":"minimal","verbosity":"low","service_tier":"flex"',
    "reasoning": '"max_completion_tokens":5,"reasoning":{"effort":"high"},"include_reasoning":true,"thinking":{"type":"on"}',
    "choices": '"n":3,"logprobs":true,"top_logprobs":5,"logit_bias":{"50256":-100},"presence_penalty":-2,"seed":7',
    "tools": f'"tools":{json.dumps(TOOLS)},"tool_choice":{{"type":"function","function":{{"name":"weather"}}}},'
    '"parallel_tool_calls":false,"functions":[],"function_call":"auto"',
    "response_format": f'"response_format":{{"type":"json_schema","json_schema":{json.dumps(SCHEMA)}}}',
    "audio": '"modalities":["text","audio"],"audio":{"voice":"alloy","format":"wav"},"prediction":{"type":"content"}',
    "search": '"web_search_options":{"user_location":{"type":"approximate"}},"prompt_cache_key":"k","safety_identifier":"s"',
    "nested_deeply": '"x":' + "[" * 300 + "]" * 300,
}  # fmt: skip

MESSAGES: dict[str, list[dict[str, Any]]] = {
    "system_and_developer": [{"role": "system", "content": "s"}, {"role": "developer", "content": "d", "name": "dev"}],
    "parts": [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "x": 1.0}]}],
    "images": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]},
        {"role": "assistant", "content": "a dot"},
    ],
    "audio_and_files": [
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
            ],
            "name": "ann",
        },
        {"role": "assistant", "content": None, "audio": {"id": "audio_1"}},
    ],
    "tool_calls": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sun"}]},
        {"role": "assistant", "content": ""},
    ],
    "legacy_functions": [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": None},
    ],
    "reasoning": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "hm", "reasoning_details": [{"type": "r", "i": 0}]},
    ],
    "refusals": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "annotations": []}],
    "cache_marks": [{"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]}],
    "unknown_roles": [{"role": "latest_reminder", "content": "x", "odd": {"b": 1, "a": 2}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def known() -> set[str]:
    """The users whose memory was filled."""
    return set()


async def sent(client: Client, upstream: Upstream, text: str, *, memory: bool) -> str:
    """What arrives at the provider."""
    if memory:
        await client.post(
            "/v1/memory/add", {"user_id": "tea", "role": "user", "content": "I like tea", "event_id": "tea"}
        )
        answer = await client.recalling(upstream, text.encode(), user="tea", X_MemoryOS_Memory="read")
    else:
        answer = await client.chat(text.encode())
    assert answer.status == 200, answer.body
    assert (answer.headers["x-memoryos-memories"] != "0") == memory
    return upstream.received[-1].body.decode()


async def check_sent(client: Client, upstream: Upstream, text: str) -> None:
    """Without memory every byte arrives; with it one message more, right before the last user message."""
    assert await sent(client, upstream, text, memory=False) == text
    got = await sent(client, upstream, text, memory=True)
    at = text.rindex(USER)
    added = got[at : len(got) - len(text) + at]
    assert got == text[:at] + added + text[at:]
    message = json.loads(added.removesuffix(","))
    assert message["role"] == "system"
    assert "I like tea" in message["content"]


@pytest.mark.parametrize("name", PARAMETERS)
async def test_request_when_it_has_any_parameter_then_it_arrives_to_the_letter(
    client: Client, upstream: Upstream, name: str
) -> None:
    await check_sent(client, upstream, f'{{"model":"m",{PARAMETERS[name]},"messages":[{USER}]}}')
    await check_sent(client, upstream, f'{{ "messages" : [ {USER} ] ,"model":"m",{PARAMETERS[name]}}}\n')


@pytest.mark.parametrize("name", MESSAGES)
async def test_request_when_it_has_any_message_then_it_arrives_to_the_letter(
    client: Client, upstream: Upstream, name: str
) -> None:
    before = json.dumps(MESSAGES[name])[1:-1]
    await check_sent(client, upstream, f'{{"model":"m","messages":[{before},{USER}]}}')
    parts = json.dumps({"role": "assistant", "content": "well"})
    await check_sent(client, upstream, f'{{"model":"m","messages":[{before},{USER},{parts}]}}')


async def test_request_when_it_is_large_then_it_arrives_to_the_letter(client: Client, upstream: Upstream) -> None:
    book = json.dumps({"role": "user", "content": "All of it, in 你 words. " * 700_000}, ensure_ascii=False)
    await check_sent(client, upstream, f'{{"model":"m","messages":[{book},{USER}]}}')


async def test_stream_when_asked_for_usage_then_the_request_arrives_to_the_letter(
    client: Client, upstream: Upstream
) -> None:
    for options in ('"stream_options":{"include_usage":true,"include_obfuscation":false}', '"stream_options":null'):
        await check_sent(client, upstream, f'{{"model":"m","stream":true,{options},"messages":[{USER}]}}')


MESSAGE = {"role": "assistant", "content": "Hi"}
ANSWERS = {
    "plain": completion("Hi"),
    "several_choices": json.dumps(
        {"choices": [{"index": 1, "message": MESSAGE}, {"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
    ).encode(),
    "logprobs": b'{"choices":[{"index":0,"logprobs":{"content":[{"token":"Hi","logprob":-1.0e-05,"bytes":[72,105]}]}}]}',
    "tool_calls": completion(None, "tool_calls", tool_calls=[CALL]),
    "reasoning": completion("Hi", reasoning_content="hm", annotations=[], refusal=None),
    "audio": completion(None, audio={"id": "a", "data": "UklGRg==", "transcript": "Hi"}),
    "keep_alive_lines_before": b"\n\n \n" + completion("Hi"),
    "numbers_and_escapes": b'{"a":1E400,"b":' + b"9" * 5000 + b',"c":"\\ud800\\/","d":NaN,"a":1.0,"choices":[]}\r\n',
    "not_utf8": b'{"choices":[{"index":0,"message":{"content":"\xff"}}]}',
    "bom": b"\xef\xbb\xbf" + completion("Hi"),
    "error_in_200": b'{"error":{"message":"busy","code":529}}',
    "nested_deeply": b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "empty": b"{}",
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_answer_when_any_json_then_every_byte_arrives_and_one_member_more(
    client: Client, upstream: Upstream, name: str
) -> None:
    given = ANSWERS[name]
    asked = f'{{"model":"m","messages":[{USER}]}}'.encode()
    upstream.will(*[Reply(body=[given], content_type="application/json; charset=utf-8")] * 2)
    without = await client.chat(asked)
    assert (without.status, without.body) == (200, given)
    assert without.headers["content-type"] == "application/json; charset=utf-8"
    got = (await client.chat(asked, user="answers")).body
    if name in ("empty", "nested_deeply"):
        assert got == given  # there is no place in them, or it is not looked for
        return
    end = given.rindex(b"}")
    assert got.startswith(given[:end] + b',"memoryos":{')
    assert got.endswith(given[end:])
    assert json.loads(b"{" + got[end + 1 : len(got) - len(given) + end] + b"}")["memoryos"]["source"] == "upstream"


async def test_answer_when_it_is_spoken_then_its_words_are_remembered(client: Client, upstream: Upstream) -> None:
    upstream.will(Reply(body=[ANSWERS["audio"]]))
    await client.chat(f'{{"model":"m","messages":[{USER}]}}'.encode(), user="listener")
    await client.keeps("listener", ("user", "Which drink do I like?"), ("assistant", "Hi"))
