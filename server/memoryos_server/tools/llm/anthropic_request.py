"""OpenAI's requests as Anthropic's Messages interface takes them.

Source: https://platform.claude.com/docs/en/api/messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memoryos_server.domain.core.faults import Invalid

DEFAULT_MAX_TOKENS = 4096
"""What is asked for where the request names no bound, which this interface demands; every model may write that much."""

_SAME = frozenset({
    "model", "stream", "top_p", "top_k", "thinking", "output_config", "cache_control", "container", "context_management",
    "mcp_servers", "inference_geo", "speed",
})  # fmt: skip
_READ = frozenset({
    "messages", "max_tokens", "max_completion_tokens", "temperature", "stop", "tools", "tool_choice", "functions",
    "function_call", "parallel_tool_calls", "user", "response_format", "reasoning_effort", "stream_options",
})  # fmt: skip
_MEANS_NOTHING: Mapping[str, Any] = {"n": 1, "modalities": ["text"], "logprobs": False, "store": False}
"""Parameters with a value that says what is so anyway."""

_DATA_URL = re.compile(r"data:([^;,]+);base64,(.+)", re.S)

Block = dict[str, Any]


def messages_request(value: Mapping[str, Any], block: str = "") -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body for `POST /messages`, and the names of what has no counterpart and was left out.

    System messages that begin a conversation are its `system`. Later ones become a part of the user message after them.

    Args:
        value: OpenAI's request, parsed.
        block: The content of the system message that memory put in; it too becomes a part of the user message.

    Raises:
        Invalid: It holds what cannot be said here, such as recorded speech; `param` names the place.
    """
    out: dict[str, Any] = {name: given for name, given in value.items() if name in _SAME and given is not None}
    dropped = [
        name
        for name, given in value.items()
        if name not in _SAME | _READ and given is not None and _MEANS_NOTHING.get(name, ...) != given
    ]
    thinking = value.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    most = DEFAULT_MAX_TOKENS + (budget if isinstance(budget, int) else 0)  # thoughts are among them
    out["max_tokens"] = value.get("max_completion_tokens") or value.get("max_tokens") or most
    out["system"], out["messages"] = _conversation(value["messages"], block)
    if not out["system"]:
        del out["system"]
    if (temperature := value.get("temperature")) is not None:
        out["temperature"] = min(temperature, 1)
        dropped += ["temperature"] if temperature > 1 else []
    if stop := value.get("stop"):
        words = [stop] if isinstance(stop, str) else stop
        out["stop_sequences"] = [word for word in words if word.strip()]
        dropped += ["stop"] if len(words) != len(out["stop_sequences"]) else []
    if isinstance(user := value.get("user"), str) and user:
        out["metadata"] = {"user_id": user}
    dropped += [f"messages.{name}" for name in ("name",) if any(one.get(name) for one in value["messages"])]
    dropped += _put_tools(out, value)
    dropped += _put_output(out, value)
    return out, tuple(dict.fromkeys(dropped))


def _put_tools(out: dict[str, Any], value: Mapping[str, Any]) -> list[str]:
    """Adds the tools and which of them may be called; what was left out."""
    tools = [_tool(one, f"tools[{at}]") for at, one in enumerate(value.get("tools") or ())]
    tools += [_function(one, {}) for one in value.get("functions") or ()]
    if not tools:
        return [name for name in ("tool_choice", "function_call") if value.get(name) not in (None, "auto", "none")]
    out["tools"] = tools
    asked = value.get("tool_choice", value.get("function_call"))
    choice: Block | None = None
    if isinstance(asked, str):
        choice = {"type": {"required": "any"}.get(asked, asked)}
    elif isinstance(asked, dict) and asked.get("type") == "allowed_tools":
        allowed = asked.get("allowed_tools") or asked
        names = {one.get("name") or (one.get("function") or {}).get("name") for one in allowed.get("tools") or ()}
        out["tools"] = [one for one in tools if one.get("name") in names]
        choice = {"type": {"required": "any"}.get(str(allowed.get("mode")), "auto")}
    elif isinstance(asked, dict):
        function = asked.get("function")
        name = function.get("name") if isinstance(function, dict) else asked.get("name")
        if not isinstance(name, str):
            raise Invalid("tool_choice must name a function", param="tool_choice")
        choice = {"type": "tool", "name": name}
    if value.get("parallel_tool_calls") is False and (choice or {}).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice:
        out["tool_choice"] = choice
    return []


def _tool(tool: Any, place: str) -> Block:
    if isinstance(tool, dict) and tool.get("type") == "function" and isinstance(tool.get("function"), dict):
        return _function(tool["function"], tool)
    if isinstance(tool, dict) and isinstance(tool.get("type"), str) and tool["type"] not in ("function", "custom"):
        return tool  # one of the provider's own, such as web search
    raise Invalid(f"{place} must be a function", param=place)


def _function(function: Mapping[str, Any], tool: Mapping[str, Any]) -> Block:
    made = {
        "name": function.get("name"),
        "description": function.get("description"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
        "strict": function.get("strict") or None,
        "cache_control": tool.get("cache_control") or function.get("cache_control"),
    }
    return {name: given for name, given in made.items() if given is not None}


def _put_output(out: dict[str, Any], value: Mapping[str, Any]) -> list[str]:
    """Adds what the answer shall be like; what was left out."""
    config = dict(out.get("output_config") or {})
    dropped = []
    form = value.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "json_schema" and isinstance(form, dict):
        schema = form.get("json_schema")
        config.setdefault("format", {"type": "json_schema", "schema": (schema or {}).get("schema") or {}})
    elif kind not in (None, "text"):
        dropped.append("response_format")
    if effort := value.get("reasoning_effort"):
        if effort == "none":
            dropped.append("reasoning_effort")
        else:
            config.setdefault("effort", {"minimal": "low"}.get(effort, effort))
    if config:
        out["output_config"] = config
    return dropped


def _conversation(messages: Sequence[Mapping[str, Any]], block: str) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system prompt, and the turns: no two of one role in a row."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    waiting: list[Block] = []
    """System messages amid the conversation, for the next user message."""
    memories = 0
    behind: list[Block] = []
    """Memory's block, which comes behind what the user says: so the turn begins as it will when it is no longer the last."""
    calls: list[str] = []
    """Ids of calls in the old form of functions, which has none."""

    def say(role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})

    for at, message in enumerate(messages):
        place = f"messages[{at - memories}]"  # as the client counts
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            blocks = list(_blocks(content, f"{place}.content"))
            if block and content == block:
                memories += 1
                behind += blocks
            elif turns:
                waiting += blocks
            else:
                system += blocks
        elif role == "user":
            say("user", [*waiting, *_blocks(content, f"{place}.content"), *behind])
            waiting, behind = [], []
        elif role == "assistant":
            said = _said(message, place)
            if isinstance(function := message.get("function_call"), dict):
                calls.append(f"{function.get('name')}_{at}")
                said.append(_call(calls[-1], function, f"{place}.function_call"))
            say("assistant", said)
        elif role in ("tool", "function"):
            of = message.get("tool_call_id") if role == "tool" else (calls.pop(0) if calls else message.get("name"))
            result: Block = {"type": "tool_result", "tool_use_id": of}
            if blocks := list(_blocks(content, f"{place}.content")):
                result["content"] = blocks
            say("user", [result])
        else:
            raise Invalid(f"{place}.role is not known to this provider", param=f"{place}.role")
    say("user", waiting)
    return system, turns


def _said(message: Mapping[str, Any], place: str) -> list[Block]:
    """What the model said: its thoughts, which it wants back with their signature, words and calls."""
    blocks = [one for one in message.get("thinking_blocks") or () if isinstance(one, dict)]
    blocks += [one for one in _blocks(message.get("content"), f"{place}.content") if one.get("text") != ""]
    if refusal := message.get("refusal"):
        blocks.append({"type": "text", "text": refusal})
    for number, call in enumerate(message.get("tool_calls") or ()):
        where = f"{place}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise Invalid(f"{where} must be a function's call", param=where)
        blocks.append(_call(call.get("id"), function, where))
    return blocks


def _call(name: Any, function: Mapping[str, Any], where: str) -> Block:
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except (ValueError, TypeError):
        raise Invalid(f"{where}: its arguments must be JSON", param=where) from None
    return {"type": "tool_use", "id": name, "name": function.get("name"), "input": arguments}


def _blocks(content: Any, place: str) -> Iterator[Block]:
    """The blocks of a content in any of OpenAI's forms.

    Raises:
        Invalid: It has none of them, or one that has no counterpart.
    """
    if isinstance(content, str):
        if content:
            yield {"type": "text", "text": content}
        return
    if content is None:
        return
    if not isinstance(content, list):
        raise Invalid(f"{place} must be text or a list of parts", param=place)
    for number, part in enumerate(content):
        where = f"{place}[{number}]"
        block = _block(part, where) if isinstance(part, dict) else None
        if part == {"type": "text", "text": ""}:
            continue
        if block is None:
            raise Invalid(f"{where} is of a kind that this provider does not take", param=where)
        if cached := part.get("cache_control"):
            block["cache_control"] = cached
        yield block


def _block(part: Mapping[str, Any], where: str) -> Block | None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        return {"type": "text", "text": part.get("text", part.get("refusal"))}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return {"type": "image", "source": _source(url, where)}
    if kind == "file" and isinstance(file := part.get("file"), dict) and "file_data" in file:
        document = {"type": "document", "source": _source(file["file_data"], where)}
        return document | ({"title": file["filename"]} if isinstance(file.get("filename"), str) else {})
    if kind in ("image", "document", "search_result", "thinking", "redacted_thinking"):
        return dict(part)  # in this interface's own form already
    return None


def _source(url: Any, where: str) -> Block:
    if isinstance(url, str) and (found := _DATA_URL.fullmatch(url)):
        return {"type": "base64", "media_type": found[1], "data": found[2]}
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return {"type": "url", "url": url}
    raise Invalid(f"{where} must be a data URL in base64, or an http URL", param=where)
