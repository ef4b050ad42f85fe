"""The SDK of LiteLLM."""

from __future__ import annotations

import json
import os
from typing import Any

import litellm
from pydantic import BaseModel
from serve import serve

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}


class Weather(BaseModel):
    """The weather at a place."""

    place: str
    degrees: float


async def ask(user: str, messages: list[Any], model: str = "gpt-4o-mini", **more: Any) -> Any:
    return await litellm.acompletion(
        f"openai/{model}",
        messages,
        base_url=os.environ["BASE_URL"],
        api_key="callers-own",
        max_retries=0,
        extra_headers={"X-User-ID": user},
        **more,
    )


async def chat(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    answer = await ask(user, [{"role": "user", "content": text}], model)
    event_id = getattr(answer, "memoryos", {}).get("event_id")
    return {"text": answer.choices[0].message.content, "tokens": answer.usage.total_tokens, "event_id": event_id}


async def stream(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    asked = [{"role": "user", "content": text}]
    answer = await ask(user, asked, model, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in answer]
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    return {"pieces": pieces, "tokens": sum(c.usage.total_tokens for c in chunks if getattr(c, "usage", None))}


async def tools(user: str, text: str, streamed: bool) -> dict[str, Any]:
    said: list[Any] = [{"role": "user", "content": text}]
    while True:
        answer = await ask(user, said, tools=[TOOL], stream=streamed)
        if streamed:
            answer = litellm.stream_chunk_builder([chunk async for chunk in answer])
        message = answer.choices[0].message
        if not message.tool_calls:
            return {"text": message.content}
        said.append(message)
        for call in message.tool_calls:
            content = f"sun in {json.loads(call.function.arguments)['at']}"
            said.append({"role": "tool", "tool_call_id": call.id, "content": content})


async def structured(user: str, text: str) -> dict[str, Any]:
    answer = await ask(user, [{"role": "user", "content": text}], response_format=Weather)
    return Weather.model_validate_json(answer.choices[0].message.content).model_dump()


async def responses(user: str, text: str) -> dict[str, Any]:
    answer = await litellm.aresponses(
        text,
        "openai/gpt-4o-mini",
        stream=True,
        api_base=os.environ["BASE_URL"],
        api_key="callers-own",
        extra_headers={"X-User-ID": user},
    )
    return {"text": "".join([e.delta async for e in answer if e.type == "response.output_text.delta"])}


serve({"chat": chat, "stream": stream, "tools": tools, "structured": structured, "responses": responses})
