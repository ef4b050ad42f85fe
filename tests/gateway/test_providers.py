"""A whole system with a file of providers: names lead where it says, headers tell, and it is read again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.anthropic import block_events, check_strictly, message_events, message_reply, said, text
from tests.anthropic import stream_reply as stream_reply_of
from tests.gateway.conftest import Client
from tests.system import System, free_port
from tests.upstream import Upstream, error_reply, json_reply, stream_reply

TABLE = """
default = "smart"

[providers.fast]
kind = "groq"
base_url = "http://127.0.0.1:{fast}/v1"
api_key_env = "FAST_KEY"
models = ["llama-*"]

[providers.large]
base_url = "http://127.0.0.1:{large}/v1"
auth = "none"
hoists_system = true
models = []

[providers.claude]
kind = "anthropic"
base_url = "http://127.0.0.1:{claude}/v1"
api_key = "provider-key"
models = ["claude-*"]

[models.smart]
aliases = ["{alias}"]
deployments = ["large/large-1"]
fallbacks = ["llama-3"]
"""


class Providers:
    """A system and its file."""

    def __init__(self, system: System, file: Path, ports: dict[str, int]) -> None:
        self.system, self.file, self.ports = system, file, ports

    def write(self, alias: str) -> None:
        self.file.with_suffix(".new").write_text(TABLE.format(**self.ports, alias=alias))
        os.replace(self.file.with_suffix(".new"), self.file)


@pytest.fixture(scope="module")
def providers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Providers]:
    home = tmp_path_factory.mktemp("providers")
    ports = {"fast": free_port(), "large": free_port(), "claude": free_port()}
    file = home / "providers.toml"
    settings = {
        "MEMORYOS_UPSTREAM__PROVIDERS_FILE": str(file),
        "FAST_KEY": "fast-key",
        "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
    }
    file.write_text(TABLE.format(**ports, alias="one"))
    with System(home, settings) as running:
        yield Providers(running, file, ports)


@pytest.fixture
async def client(providers: Providers) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Client(providers.system.url, session)


@pytest.fixture
async def fast(providers: Providers) -> AsyncIterator[Upstream]:
    async with Upstream(None, providers.ports["fast"]) as running:
        yield running


@pytest.fixture
async def large(providers: Providers) -> AsyncIterator[Upstream]:
    async with Upstream(None, providers.ports["large"]) as running:
        yield running


@pytest.fixture
async def claude(providers: Providers) -> AsyncIterator[Upstream]:
    async with Upstream(None, providers.ports["claude"]) as running:
        yield running


def chat(model: str, *contents: str, **more: object) -> dict[str, object]:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return {"model": model, "messages": messages, **more}


@pytest.mark.parametrize("streamed", [False, True])
async def test_chat_when_a_provider_does_not_know_a_parameter_then_a_header_says_that_it_is_left_out(
    client: Client, fast: Upstream, streamed: bool
) -> None:
    fast.will(stream_reply("yes") if streamed else json_reply("yes"))
    answer = await client.chat(chat("llama-3", "hi", stream=streamed, logprobs=True, seed=1))
    assert answer.status == 200
    assert answer.headers["x-memoryos-provider"] == "fast"
    assert answer.headers["x-memoryos-dropped"] == "logprobs"
    (request,) = fast.received
    assert request.json["seed"] == 1
    assert "logprobs" not in request.json
    assert request.headers["authorization"] == "Bearer fast-key"


async def test_chat_when_very_many_or_odd_members_are_left_out_then_the_header_stays_a_header(
    client: Client, claude: Upstream
) -> None:
    claude.will(message_reply(text("yes")))
    odd = {"a\r\nX-Evil": 1, "\u00fc": 1, "\ud800": 1} | {f"unknown_{number}": 1 for number in range(1000)}
    answer = await client.chat(chat("claude-x", "hi", **odd))
    dropped = answer.headers["x-memoryos-dropped"]
    assert dropped.startswith("a%0D%0AX-Evil,%C3%BC,%EF%BF%BD,unknown_0,")
    assert dropped.endswith(",...")
    assert len(dropped) < 1100
    assert "x-evil" not in answer.headers


async def test_chat_when_the_model_has_an_alias_then_its_provider_gets_its_own_name_for_it(
    client: Client, large: Upstream
) -> None:
    answer = await client.chat(chat("one", "hi"))
    assert (answer.status, answer.headers["x-memoryos-provider"]) == (200, "large")
    assert "x-memoryos-dropped" not in answer.headers
    assert large.received[0].json["model"] == "large-1"


async def test_chat_when_the_provider_is_away_then_the_fallback_answers_and_the_header_says_so(
    client: Client, fast: Upstream, large: Upstream
) -> None:
    large.will(*[error_reply(503)] * 3)
    answer = await client.chat(chat("smart", "hi"))
    assert (answer.status, answer.headers["x-memoryos-provider"]) == (200, "fast")
    assert fast.received[0].json["model"] == "llama-3"


async def test_chat_when_system_messages_are_hoisted_then_memories_stand_in_the_message_that_asks(
    client: Client, large: Upstream
) -> None:
    turn = {"user_id": "ann", "role": "user", "content": "My cat is called Momo."}
    assert (await client.post("/v1/memory/add", turn)).status == 200
    answer = await client.recalling(large, chat("smart", "hello", "hi", "What is my cat called?"), user="ann")
    assert answer.headers["x-memoryos-memories"] != "0"
    messages = large.received[-1].json["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant", "user"]
    question, block = messages[-1]["content"]
    assert "Momo" in block["text"]
    assert question == {"type": "text", "text": "What is my cat called?"}


async def test_chat_when_the_provider_has_an_interface_of_its_own_then_openais_client_notices_nothing(
    client: Client, claude: Upstream
) -> None:
    turn = {"user_id": "bob", "role": "user", "content": "My dog is called Rex."}
    assert (await client.post("/v1/memory/add", turn)).status == 200
    use = block_events(
        0,
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {}},
        {"type": "input_json_delta", "partial_json": "{}"},
    )
    claude.will(
        stream_reply_of(*message_events(use, stop="tool_use")), stream_reply_of(*message_events(said("Rex", "!")))
    )
    tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "weather"}}
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is my dog called?"}]
    async with AsyncOpenAI(base_url=f"{client.url}/v1", api_key="k", default_headers={"X-User-ID": "bob"}) as openai:
        async with openai.chat.completions.stream(model="claude-x", messages=messages, tools=[tool]) as stream:
            called = (await stream.get_final_completion()).choices[0].message
        assert called.tool_calls
        assert (called.tool_calls[0].id, called.tool_calls[0].function.name) == ("t1", "weather")
        messages += [
            {
                "role": "assistant",
                "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        ]
        async with openai.chat.completions.stream(model="claude-x", messages=messages, tools=[tool]) as stream:
            final = (await stream.get_final_completion()).choices[0]
    assert (final.message.content, final.finish_reason) == ("Rex!", "stop")
    first, second = map(check_strictly, claude.received[:2])
    assert "Rex" in first["messages"][0]["content"][1]["text"]
    assert second["messages"][0] == first["messages"][0]  # the same block, so that the provider's cache hits


async def test_chat_when_nobody_is_named_by_the_model_then_the_default_answers(client: Client, large: Upstream) -> None:
    assert (await client.chat(chat("whatever", "hi"))).headers["x-memoryos-provider"] == "large"


async def test_models_when_asked_for_then_those_of_the_file_are_listed(client: Client) -> None:
    async with client.session.get(client.url + "/v1/models") as answer:
        listed = [one["id"] for one in json.loads(await answer.read())["data"]]
    assert listed == ["memoryos/recall", "smart", "one"]


async def test_file_when_it_changes_then_the_next_calls_go_by_it(
    client: Client, large: Upstream, providers: Providers
) -> None:
    providers.write("two")
    async with asyncio.timeout(20):
        while True:
            async with client.session.get(client.url + "/v1/models") as answer:
                if "two" in str(await answer.read()):
                    break
            await asyncio.sleep(0.1)
    assert (await client.chat(chat("two", "hi"))).status == 200
    providers.write("one")


def test_start_when_the_file_is_wrong_then_the_setting_and_the_place_are_named(
    providers: Providers, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[providers.groq]\nmodel = []")
    done = providers.system.cli(
        "serve", check=False, MEMORYOS_UPSTREAM__PROVIDERS_FILE=str(file), MEMORYOS_DATA_DIR=str(tmp_path / "data")
    )
    assert done.returncode != 0
    assert f"upstream.providers_file: {file}: providers.groq.model: Extra inputs are not permitted" in done.stderr
