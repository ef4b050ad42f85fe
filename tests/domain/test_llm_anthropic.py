"""Anthropic's own interface: OpenAI's requests and answers across it, against a server that takes nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.table import read_table
from tests.anthropic import (
    BODY,
    HI,
    check_strictly,
    message_reply,
    opened,
    text,
)
from tests.upstream import Upstream as Server

PNG = "iVBORw0KGgo="
WEATHER = {
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Rome"}'}}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server(None) as running:
        yield running


async def asked(server: Server, *messages: Any, **more: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the server is asked, and what it is not told."""
    server.will(message_reply(text("ok")))
    async with opened(server) as llm:
        sent = json.dumps({"model": "claude-x", "messages": messages or [HI], **more})
        answer = await llm.complete(Asked("claude-x", sent))
    assert answer.served is not None
    return check_strictly(server.received[-1]), answer.served.dropped


async def test_request_when_plain_then_its_counterpart(server: Server) -> None:
    body, dropped = await asked(
        server,
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d", "cache_control": {"type": "ephemeral"}}]},
        HI,
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Bo"},
        max_tokens=7,
        temperature=0.5,
        stop=["x", " "],
        user="u1",
        top_k=3,
        n=1,
    )
    assert body == {
        "model": "claude-x",
        "max_tokens": 7,
        "system": [text("s"), {**text("d"), "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [text("hi")]},
            {"role": "assistant", "content": [text("hello")]},
            {"role": "user", "content": [text("a"), text("b")]},
        ],
        "temperature": 0.5,
        "stop_sequences": ["x"],
        "metadata": {"user_id": "u1"},
        "top_k": 3,
    }
    assert dropped == ("stop", "messages.name")


@pytest.mark.parametrize(
    ("given", "sent", "dropped"),
    [
        ({}, {"max_tokens": 4096}, ()),
        ({"max_completion_tokens": 9, "max_tokens": 8}, {"max_tokens": 9}, ()),
        ({"seed": 1, "logprobs": True, "n": 2}, {}, ("seed", "logprobs", "n")),
        ({"temperature": 1.5}, {"temperature": 1}, ("temperature",)),
        ({"stop": "END"}, {"stop_sequences": ["END"]}, ()),
        ({"response_format": {"type": "json_object"}}, {}, ("response_format",)),
        ({"response_format": {"type": "text"}}, {}, ()),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            (),
        ),
        ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}, ()),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}, ()),
        ({"unheard_of": 1}, {}, ("unheard_of",)),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 8000}},
            {"thinking": {"type": "enabled", "budget_tokens": 8000}, "max_tokens": 12096},
            (),
        ),
        ({"tool_choice": "required"}, {}, ("tool_choice",)),
    ],
)
async def test_request_when_a_parameter_is_given_then_its_counterpart_or_a_word_that_it_has_none(
    server: Server, given: dict[str, Any], sent: dict[str, Any], dropped: tuple[str, ...]
) -> None:
    body, lost = await asked(server, **given)
    plain = {"model": "claude-x", "messages": [{"role": "user", "content": [text("hi")]}], "max_tokens": 4096}
    assert body == {**plain, **sent}
    assert lost == dropped


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        (None, None, None),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, None, {"type": "tool", "name": "weather"}),
        ({"name": "weather"}, None, {"type": "tool", "name": "weather"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
    ],
)
async def test_request_when_there_are_tools_then_they_and_the_choice_are_told(
    server: Server, choice: Any, parallel: bool | None, sent: Any
) -> None:
    given = {
        "tools": [
            {"type": "function", "function": WEATHER | {"strict": True}},
            {"type": "function", "function": {"name": "f"}},
        ]
    }
    more = {
        name: value for name, value in (("tool_choice", choice), ("parallel_tool_calls", parallel)) if value is not None
    }
    body, _ = await asked(server, **given, **more)
    assert body["tools"] == [
        {"name": "weather", "description": "d", "input_schema": WEATHER["parameters"], "strict": True},
        {"name": "f", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert body.get("tool_choice") == sent


async def test_request_when_tools_were_called_then_results_come_in_one_turn_before_what_the_user_says(
    server: Server,
) -> None:
    second = {**CALL, "id": "t2"}
    thoughts = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
    body, _ = await asked(
        server,
        HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL, second], "thinking_blocks": thoughts},
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2", "content": [{"type": "text", "text": "rain"}]},
        {"role": "system", "content": "block"},
        {"role": "user", "content": "and now?"},
    )
    use = {"type": "tool_use", "name": "weather", "input": {"at": "Rome"}}
    assert body["messages"][1]["content"] == [*thoughts, {**use, "id": "t1"}, {**use, "id": "t2"}]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "t1", "content": [text("sun")]},
        {"type": "tool_result", "tool_use_id": "t2", "content": [text("rain")]},
        text("block"),
        text("and now?"),
    ]


async def test_request_when_memory_put_a_block_in_then_it_is_behind_the_question_and_places_are_the_client_s(
    server: Server,
) -> None:
    block = {"role": "system", "content": "block"}
    messages = [
        {"role": "system", "content": "s"},
        block,
        {**HI, "content": [{**text("hi"), "cache_control": {"type": "ephemeral"}}]},
    ]
    server.will(message_reply(text("ok")))
    async with opened(server) as llm:
        await llm.complete(Asked("claude-x", json.dumps({"model": "claude-x", "messages": messages}), "block"))
        messages[2] = {"role": "user", "content": [{"type": "input_audio"}]}
        with pytest.raises(Invalid) as caught:
            await llm.complete(Asked("claude-x", json.dumps({"model": "claude-x", "messages": messages}), "block"))
    body = check_strictly(server.received[0])
    assert body["system"] == [text("s")]
    assert body["messages"] == [
        {"role": "user", "content": [{**text("hi"), "cache_control": {"type": "ephemeral"}}, text("block")]}
    ]
    assert caught.value.param == "messages[1].content[0]"


async def test_request_when_functions_are_in_their_old_form_then_the_same(server: Server) -> None:
    body, _ = await asked(
        server,
        HI,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "sun"},
        functions=[WEATHER],
        function_call={"name": "weather"},
    )
    assert body["tool_choice"] == {"type": "tool", "name": "weather"}
    assert body["messages"][1]["content"][0]["id"] == body["messages"][2]["content"][0]["tool_use_id"]


async def test_request_when_there_are_pictures_and_documents_then_they_go_along(server: Server) -> None:
    body, _ = await asked(
        server,
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}},
            ],
        },
    )
    assert body["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "title": "a.pdf",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PNG},
        },
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[0].content[0]"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]},
            "messages[0].content[0]",
        ),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "critic", "content": "x"}, "messages[0].role"),
        (
            {"role": "assistant", "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0]",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "t", "custom": {}}]}, "messages[0].tool_calls[0]"),
    ],
)
async def test_request_when_it_cannot_be_said_here_then_the_place_is_named(
    server: Server, message: Any, param: str
) -> None:
    async with opened(server) as llm:
        with pytest.raises(Invalid) as caught:
            await llm.complete(Asked("claude-x", json.dumps({"model": "claude-x", "messages": [message]})))
    assert caught.value.param == param
    assert server.received == []


@pytest.mark.parametrize(
    "odd",
    [
        {"stop": [1]}, {"stop": 5}, {"tools": 5}, {"functions": [1]}, {"output_config": [1]}, {"reasoning_effort": {"a": 1}},
        {"response_format": {"type": "json_schema", "json_schema": "x"}}, {"top_p": float("inf")},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": 5}]},
        {"messages": [{"role": "assistant", "content": "x", "thinking_blocks": 5}]},
    ],
)  # fmt: skip
async def test_request_when_a_member_has_an_odd_form_then_invalid_and_nothing_is_sent(
    server: Server, odd: dict[str, Any]
) -> None:
    sent = json.dumps({"model": "claude-x", "messages": [HI], **odd}).replace("Infinity", "1e999")
    async with opened(server) as llm:
        with pytest.raises(Invalid):
            await llm.complete(Asked("claude-x", sent))
    assert server.received == []


async def test_request_when_tools_are_allowed_by_name_then_only_those_are_told(server: Server) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]}
    body, _ = await asked(server, tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [one["name"] for one in body["tools"]] == ["b"]
    assert body["tool_choice"] == {"type": "any"}


async def test_headers_when_the_file_adds_some_then_those_that_are_known_stay(server: Server) -> None:
    server.will(message_reply(text("ok")))
    table = f'''[providers.anthropic]
        base_url = "{server.base_url}"
        api_key = "provider-key"
        headers = {{ Anthropic-Beta = "x" }}'''
    async with Gateway(read_table(table, {})) as llm:
        await llm.complete(Asked("claude-x", BODY))
    assert server.received[0].headers["anthropic-version"] == "2023-06-01"
    assert server.received[0].headers["anthropic-beta"] == "x"
