"""What Anthropic's Messages interface takes and gives, for tests; the server itself is `tests.upstream`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.table import read_table
from tests.upstream import Received, Reply, Step, Upstream

MEMBERS = {
    "model", "max_tokens", "messages", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools",
    "tool_choice", "thinking", "metadata", "output_config", "cache_control", "container", "mcp_servers", "service_tier",
    "context_management", "inference_geo", "speed",
}  # fmt: skip
BLOCKS = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
}
TOOL = {"name", "description", "input_schema", "strict", "cache_control"}


def check_strictly(request: Received) -> dict[str, Any]:
    """The request's body; it is one that the interface takes, and its head holds what must be there and no more."""
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == "provider-key"
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in request.headers
    body: dict[str, Any] = request.json
    assert set(body) <= MEMBERS
    assert isinstance(body["max_tokens"], int)
    assert body["max_tokens"] >= 1
    assert 0 <= body.get("temperature", 1) <= 1
    assert all(word.strip() for word in body.get("stop_sequences", ()))
    for block in body.get("system", ()):
        _check_block(block, {"text"})
    for tool in body.get("tools", ()):
        assert set(tool) <= TOOL
        assert tool["input_schema"]["type"] == "object"
    if "tool_choice" in body:
        assert body["tools"]
        assert body["tool_choice"]["type"] in ("auto", "any", "tool", "none")
    _check_turns(body["messages"])
    return body


def _check_turns(messages: list[Any]) -> None:
    assert messages[0]["role"] == "user"
    waiting: set[str] = set()
    before = ""
    for message in messages:
        assert set(message) == {"role", "content"}
        assert message["role"] in ("user", "assistant")
        assert message["role"] != before, "two turns of one role"
        before = message["role"]
        assert message["content"], "an empty turn"
        ours = before == "user"
        kinds = (
            {"text", "image", "document", "tool_result"} if ours else set(BLOCKS) - {"image", "document", "tool_result"}
        )
        for block in message["content"]:
            _check_block(block, kinds)
        answered = [one["tool_use_id"] for one in message["content"] if one["type"] == "tool_result"]
        if ours:
            assert set(answered) == waiting, "each call has its result in the next turn"
            first = next(
                (at for at, one in enumerate(message["content"]) if one["type"] != "tool_result"), len(answered)
            )
            assert first == len(answered), "results come first"
        waiting = {one["id"] for one in message["content"] if one["type"] == "tool_use"}


def _check_block(block: dict[str, Any], kinds: set[str]) -> None:
    assert block["type"] in kinds
    assert set(block) <= BLOCKS[block["type"]]
    if block["type"] == "text":
        assert block["text"]
    if block["type"] == "tool_use":
        assert isinstance(block["input"], dict)
    for inner in block["content"] if isinstance(block.get("content"), list) else ():
        _check_block(inner, {"text", "image", "document"})


def message(*content: dict[str, Any], stop: str = "end_turn", **usage: int) -> dict[str, Any]:
    """A whole answer."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content),
        "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 3, "output_tokens": 5, **usage},
    }  # fmt: skip


def text(words: str) -> dict[str, Any]:
    """A block of words."""
    return {"type": "text", "text": words}


def message_reply(*content: dict[str, Any], stop: str = "end_turn", **usage: int) -> Reply:
    """A reply with a whole answer."""
    return Reply(body=[json.dumps(message(*content, stop=stop, **usage)).encode()])


def event(kind: str, **members: Any) -> bytes:
    """An event of a stream."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def block_events(at: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[bytes]:
    """The events of a block."""
    return [
        event("content_block_start", index=at, content_block=block),
        *[event("content_block_delta", index=at, delta=delta) for delta in deltas],
        event("content_block_stop", index=at),
    ]


def message_events(*blocks: Sequence[bytes], stop: str = "end_turn", **usage: int) -> list[bytes]:
    """The events of a whole stream."""
    begun = {**message(**usage), "stop_reason": None}
    return [
        event("message_start", message=begun),
        event("ping"),
        *[one for block in blocks for one in block],
        event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": 9}),
        event("message_stop"),
    ]


def said(*words: str) -> list[bytes]:
    """The events of a block of words, the first of a stream."""
    return block_events(0, text(""), *[{"type": "text_delta", "text": one} for one in words])


def stream_reply(*steps: Step) -> Reply:
    """A reply with events."""
    return Reply(body=list(steps), content_type="text/event-stream")


HI = {"role": "user", "content": "hi"}


BODY = json.dumps({"model": "claude-x", "messages": [HI], "stream": True, "stream_options": {"include_usage": True}})


def opened(server: Upstream, **more: Any) -> Gateway:
    """The gateway to a server; `more` are members of the provider."""
    members = "\n".join(f"{name} = {json.dumps(value)}" for name, value in more.items())
    table = f'retries = 0\n[providers.anthropic]\nbase_url = "{server.base_url}"\napi_key = "provider-key"\n{members}'
    return Gateway(read_table(table, {}))
