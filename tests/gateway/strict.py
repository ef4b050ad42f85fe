"""What a provider takes that refuses whatever OpenAI would refuse."""

from __future__ import annotations

from typing import Any

from tests.upstream import Received

PARAMETERS = {
    "model", "messages", "stream", "stream_options", "tools", "tool_choice", "response_format", "temperature", "n", "logprobs",
    "max_completion_tokens", "parallel_tool_calls", "user",
}  # fmt: skip
MEMBERS = {
    "system": {"role", "content"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "tool_calls", "refusal", "annotations", "audio", "function_call", "parsed"},
    "tool": {"role", "content", "tool_call_id"},
}


def check_strictly(request: Received) -> dict[str, Any]:
    """The request's body; it holds nothing that OpenAI would refuse, and its head nothing of the caller or of ours."""
    body: dict[str, Any] = request.json
    assert set(body) <= PARAMETERS
    assert request.headers["authorization"] == "Bearer provider-key"
    assert not [name for name in request.headers if name.startswith(("x-", "openai-", "cookie"))]
    waiting: set[str] = set()
    for message in body["messages"]:
        assert set(message) <= MEMBERS[message["role"]], message
        if message["role"] == "tool":
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, "a tool call is not answered"
        waiting = {call["id"] for call in message.get("tool_calls") or ()}
    return body
