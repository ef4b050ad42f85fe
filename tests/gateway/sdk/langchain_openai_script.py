"""LangChain's `ChatOpenAI`."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from serve import serve


class Weather(BaseModel):
    """The weather at a place."""

    place: str
    degrees: float


@tool
def weather(at: str) -> str:
    """The weather at a place."""
    return f"sun in {at}"


def llm(user: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        **{"model": "gpt-4o-mini"} | more,
        base_url=os.environ["BASE_URL"],
        api_key="callers-own",
        max_retries=0,
        default_headers={"X-User-ID": user},
        include_response_headers=True,
    )


async def chat(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    answer = await llm(user, model=model).ainvoke(text)
    used = answer.usage_metadata or {}
    headers = answer.response_metadata["headers"]
    return {"text": answer.text, "tokens": used.get("total_tokens"), "event_id": headers["x-memoryos-event-id"]}


async def stream(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    chunks = [chunk async for chunk in llm(user, model=model, stream_usage=True).astream(text)]
    used = [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata]
    return {"pieces": [chunk.text for chunk in chunks if chunk.text], "tokens": sum(used)}


async def tools(user: str, text: str, streamed: bool) -> dict[str, Any]:
    bound = llm(user, streaming=streamed).bind_tools([weather])
    said: list[AnyMessage] = [HumanMessage(text)]
    while True:
        answer = await bound.ainvoke(said)
        said.append(answer)
        if not answer.tool_calls:
            return {"text": answer.text}
        said.extend([await weather.ainvoke(call) for call in answer.tool_calls])


async def structured(user: str, text: str) -> dict[str, Any]:
    found = await llm(user).with_structured_output(Weather, method="json_schema", strict=True).ainvoke(text)
    assert isinstance(found, Weather)
    return found.model_dump()


async def responses(user: str, text: str) -> dict[str, Any]:
    chunks = [chunk async for chunk in llm(user, use_responses_api=True).astream(text)]
    return {"text": "".join(chunk.text for chunk in chunks)}


serve({"chat": chat, "stream": stream, "tools": tools, "structured": structured, "responses": responses})
