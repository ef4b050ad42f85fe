"""Pydantic AI with its OpenAI model."""

from __future__ import annotations

import os
from typing import Any

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from serve import serve


class Weather(BaseModel):
    """The weather at a place."""

    place: str
    degrees: float


def provider(user: str) -> OpenAIProvider:
    client = AsyncOpenAI(
        base_url=os.environ["BASE_URL"], api_key="callers-own", max_retries=0, default_headers={"X-User-ID": user}
    )
    return OpenAIProvider(openai_client=client)


def agent(user: str, model: str = "gpt-4o-mini", **more: Any) -> Agent[None, Any]:
    return Agent(OpenAIChatModel(model, provider=provider(user)), **more)


def weather(at: str) -> str:
    """The weather at a place."""
    return f"sun in {at}"


async def chat(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    run = await agent(user, model).run(text)
    return {"text": run.output, "tokens": run.usage.total_tokens}


async def stream(user: str, text: str, model: str = "gpt-4o-mini") -> dict[str, Any]:
    async with agent(user, model).run_stream(text) as run:
        pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
    return {"pieces": pieces, "tokens": run.usage.total_tokens}


async def tools(user: str, text: str, streamed: bool) -> dict[str, Any]:
    asked = agent(user, tools=[weather])
    if not streamed:
        return {"text": (await asked.run(text)).output}
    async with asked.run_stream(text) as run:
        return {"text": await run.get_output()}


async def structured(user: str, text: str) -> dict[str, Any]:
    found: Weather = (await agent(user, output_type=NativeOutput(Weather)).run(text)).output
    return found.model_dump()


async def responses(user: str, text: str) -> dict[str, Any]:
    async with Agent(OpenAIResponsesModel("gpt-4o-mini", provider=provider(user))).run_stream(text) as run:
        return {"text": await run.get_output()}


serve({"chat": chat, "stream": stream, "tools": tools, "structured": structured, "responses": responses})
