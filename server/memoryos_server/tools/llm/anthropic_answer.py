"""Answers of Anthropic's Messages interface in OpenAI's form, whole and streamed.

Thoughts are `reasoning_content`, as DeepSeek has it; `thinking_blocks` holds them with the signatures that the provider wants back
in a tool loop. Source: https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memoryos_server.domain.chat.sse import SseEvent

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
DONE = b"data: [DONE]\n\n"


def completion(answer: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's chat completion of a message."""
    blocks = [one for one in answer.get("content") or () if isinstance(one, dict)]
    calls = [
        {
            "id": one.get("id"),
            "type": "function",
            "function": {"name": one.get("name"), "arguments": _dumps(one.get("input"))},
        }
        for one in blocks
        if one.get("type") == "tool_use"
    ]
    text = "".join(one.get("text") or "" for one in blocks if one.get("type") == "text")
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    thoughts = [one for one in blocks if one.get("type") in ("thinking", "redacted_thinking")]
    if thoughts:
        message["reasoning_content"] = "".join(one.get("thinking") or "" for one in thoughts)
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = calls
    finish = _finish(answer.get("stop_reason"))
    return {
        "id": answer.get("id"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage_of(answer.get("usage") or {}),
    }


def usage_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's usage: tokens read from a cache and written to it are among those of the prompt."""

    def count(name: str) -> int:
        number = usage.get(name)
        return number if isinstance(number, int) else 0

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    prompt, answer = count("input_tokens") + read + written, count("output_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": read},
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
    }


class Chunks:
    """Makes OpenAI's chunks of a stream of events.

    Attributes:
        told: Whether an error came; nothing follows it.
    """

    def __init__(self, *, include_usage: bool) -> None:
        """Starts before the first event.

        Args:
            include_usage: Whether a last chunk has the usage. Without, the one with the finish reason has it, as other
                providers' have: whoever counts what a call costs reads it there.
        """
        self.told = False
        self._include_usage = include_usage
        self._about: dict[str, Any] = {"object": "chat.completion.chunk", "created": int(time.time())}
        self._usage: dict[str, Any] = {}
        self._calls: dict[Any, int] = {}
        self._silent: set[Any] = set()
        """Calls of which no argument was sent yet."""
        self._thoughts: dict[Any, dict[str, Any]] = {}

    def of(self, event: SseEvent) -> bytes:
        """The frames of an event; none for one that says nothing to an OpenAI client.

        Raises:
            ValueError: It is no JSON object.
        """
        value = json.loads(event.data)
        if not isinstance(value, dict):
            raise ValueError("an event is no object")
        kind = value.get("type")
        made = getattr(self, f"_{kind}", None) if kind in _EVENTS else None
        return b"" if made is None or self.told else made(value)

    def _message_start(self, value: Mapping[str, Any]) -> bytes:
        message = value.get("message") or {}
        self._about = {"id": message.get("id"), **self._about, "model": message.get("model")}
        self._usage |= message.get("usage") or {}
        return self._frame({"role": "assistant", "content": "", "refusal": None})

    def _content_block_start(self, value: Mapping[str, Any]) -> bytes:
        block = value.get("content_block") or {}
        kind, at = block.get("type"), value.get("index")
        if kind == "text" and block.get("text"):
            return self._frame({"content": block["text"]})
        if kind in ("thinking", "redacted_thinking"):
            self._thoughts[at] = dict(block)
        if kind != "tool_use":
            return b""
        self._calls[at] = len(self._calls)
        given = _dumps(block["input"]) if block.get("input") else ""
        if not given:
            self._silent.add(at)
        function = {"name": block.get("name"), "arguments": given}
        return self._call(at, {"id": block.get("id"), "type": "function", "function": function})

    def _content_block_delta(self, value: Mapping[str, Any]) -> bytes:
        delta = value.get("delta") or {}
        kind, at = delta.get("type"), value.get("index")
        if kind == "text_delta":
            return self._frame({"content": delta.get("text")})
        if kind == "input_json_delta" and at in self._calls:
            if delta.get("partial_json"):
                self._silent.discard(at)
            return self._call(at, {"function": {"arguments": delta.get("partial_json")}})
        thought = self._thoughts.get(at)
        if thought is not None and kind == "thinking_delta":
            thought["thinking"] = (thought.get("thinking") or "") + (delta.get("thinking") or "")
            return self._frame({"reasoning_content": delta.get("thinking")})
        if thought is not None and kind == "signature_delta":
            thought["signature"] = delta.get("signature")
        return b""

    def _content_block_stop(self, value: Mapping[str, Any]) -> bytes:
        at = value.get("index")
        if at in self._silent:  # an OpenAI client reads the arguments as JSON
            self._silent.discard(at)
            return self._call(at, {"function": {"arguments": "{}"}})
        thought = self._thoughts.pop(at, None)
        return b"" if thought is None else self._frame({"thinking_blocks": [thought]})

    def _message_delta(self, value: Mapping[str, Any]) -> bytes:
        self._usage |= {name: number for name, number in (value.get("usage") or {}).items() if number is not None}
        reason = (value.get("delta") or {}).get("stop_reason")
        if not reason:
            return b""
        return self._frame({}, _finish(reason), None if self._include_usage else usage_of(self._usage))

    def _message_stop(self, value: Mapping[str, Any]) -> bytes:
        if not self._include_usage:
            return DONE
        return _sse({**self._about, "choices": [], "usage": usage_of(self._usage)}) + DONE

    def _error(self, value: Mapping[str, Any]) -> bytes:
        self.told = True
        error = value.get("error") or {}
        return _sse(
            {"error": {"message": error.get("message"), "type": error.get("type"), "param": None, "code": None}}
        )

    def _call(self, at: Any, call: dict[str, Any]) -> bytes:
        return self._frame({"tool_calls": [{"index": self._calls[at], **call}]})

    def _frame(self, delta: dict[str, Any], finish: str | None = None, usage: Mapping[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        more = {"usage": usage} if usage or self._include_usage else {}
        return _sse({**self._about, "choices": [choice], **more})


_EVENTS: Sequence[str] = (
    *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
    *("message_stop", "error"),
)


def is_data(event: SseEvent) -> bool:
    """Whether an event is more than a sign of life."""
    return b'"ping"' not in event.data[:64]


def _finish(reason: Any) -> str:
    return _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
