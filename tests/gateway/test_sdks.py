"""SDKs that people use, unchanged and each in an environment of its own, against bridge and server and a strict provider.

Their scripts are in `sdk/`, with locks of what they need. A script runs by its SDK's own interpreter and does what lines of JSON say.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.generate import ROOT
from tests.gateway.conftest import Client, until
from tests.gateway.strict import check_strictly
from tests.gateway.test_responses import events, streamed
from tests.system import CACHE, System, free_port
from tests.upstream import Gate, Reply, Upstream, delta, error_reply, json_reply, sse

HERE = Path(__file__).resolve().parent / "sdk"
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # the first run of each installs it


@dataclass(frozen=True)
class Sdk:
    """An SDK, and what it calls things.

    Attributes:
        name: Its package, which names its lock, too.
        script: What runs it.
        errors: Its own exceptions: of 429, of 400, and of a stream that breaks off.
        member: Whether it shows the answer's `memoryos`, or the head that says the same.
        headers: Whether an error of it has the answer's head.
        cancelled: What a cancelled call ends with; None: a stream under way just ends.
        package: The name in `node_modules`; empty: it is one for Python.
    """

    name: str
    script: str
    errors: tuple[str, str, str]
    member: bool = True
    headers: bool = True
    cancelled: tuple[str | None, ...] = ("asyncio.CancelledError",)
    package: str = ""


SDKS = [
    Sdk(
        name="openai-node",
        script="openai_node_script.mjs",
        errors=("RateLimitError", "BadRequestError", "APIError"),
        cancelled=("openai.APIUserAbortError", None),
        package=package,
    )
    for package in ("openai", "openai-6")
] + [
    Sdk("langchain-openai", "langchain_openai_script.py", ("RateLimitError", "BadRequestError", "APIError")),
    Sdk("litellm", "litellm_script.py", ("RateLimitError", "BadRequestError", "APIError")),
    Sdk(
        "pydantic-ai-slim",
        "pydantic_ai_script.py",
        ("ModelHTTPError", "ModelHTTPError", "ModelAPIError"),
        member=False,
        headers=False,
    ),
]


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}"


def installed(sdk: Sdk) -> Path:
    """The folder of an SDK's environment: made once for each lock and interpreter, and kept outside of the repository."""
    sources = [HERE / sdk.name / n for n in ("package.json", "package-lock.json")]
    sources = sources if sdk.package else [HERE / f"{sdk.name}.lock"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + sys.version.encode())
    home = CACHE / "sdk" / f"{sdk.name}-{key.hexdigest()[:16]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            if sdk.package:
                for path in sources:
                    shutil.copy(path, home)
                run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=home)
            else:
                run(sys.executable, "-m", "venv", home, cwd=home)
                pip = (home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
                run(*pip, "install", "--no-deps", "--require-hashes", "-r", sources[0], cwd=home)
            (home / "complete").touch()
    return home


class Script:
    """A script under way."""

    def __init__(self, sdk: Sdk, base_url: str, log: Path) -> None:
        home = installed(sdk)
        command = ["node" if sdk.package else str(home / "bin" / "python"), str(HERE / sdk.script)]
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        self.sdk = sdk
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=home,
                # LiteLLM asks for a newer list of prices otherwise.
                env=env | {"BASE_URL": base_url, "PACKAGE": sdk.package, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    async def does(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What came of a function."""
        return await self._told({"do": do} | arguments)

    async def begins(self, do: str, **arguments: Any) -> None:
        """Begins a function; `does("cancel")` cancels it."""
        assert await self._told({"begin": do} | arguments) == {}

    async def _told(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), 120)
        assert line, self.log.read_text()[-4000:]
        return dict(json.loads(line))

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def provider_port() -> int:
    return free_port()


@pytest.fixture
async def upstream(provider_port: int) -> AsyncIterator[Upstream]:
    """A provider that lists its models, so that others are unknown."""
    async with Upstream(port=provider_port) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, provider_port: int) -> Iterator[System]:
    settings = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{provider_port}/v1",
        "OPENAI_API_KEY": "provider-key",
        "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
        "MEMORYOS_MEMORY__REMEMBER_DEADLINE_SECONDS": "5",
    }
    with System(tmp_path_factory.mktemp("gateway"), settings) as running:
        yield running


@pytest.fixture(scope="module", params=SDKS, ids=lambda sdk: sdk.package or sdk.name)
def script(
    request: pytest.FixtureRequest, gateway: System, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Script]:
    sdk: Sdk = request.param
    if sdk.package and not (shutil.which("node") and shutil.which("npm")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("node and npm are not installed")
    running = Script(sdk, f"{gateway.url}/v1", tmp_path_factory.mktemp("sdk") / "errors.log")
    yield running
    running.end()


@pytest.fixture
def user(script: Script, request: pytest.FixtureRequest) -> str:
    """A user of this test and SDK."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


async def test_chat_when_asked_again_then_memory_arrives_and_its_member_does_no_harm(
    script: Script, user: str, upstream: Upstream, client: Client
) -> None:
    upstream.will(json_reply("I will keep it in mind"))
    told = await script.does("chat", user=user, text="I like tea best")
    assert told["text"] == "I will keep it in mind", told
    await client.keeps(user, ("user", "I like tea best"), ("assistant", "I will keep it in mind"))
    for _ in range(100):  # a busy machine may keep a chat from its memory
        upstream.will(json_reply("Tea"))
        asked = await script.does("chat", user=user, text="What do I like best to drink?")
        messages = check_strictly(upstream.received[-1])["messages"]
        if len(messages) > 1:
            break
        await asyncio.sleep(0.1)
    assert (asked["text"], asked["tokens"]) == ("Tea", 21)
    assert "I like tea best" in messages[0]["content"]
    assert (messages[1]["role"], messages[1]["content"]) == ("user", "What do I like best to drink?")
    assert bool(asked.get("event_id")) == script.sdk.member
    assert len(list(map(check_strictly, upstream.received))) >= 2


async def test_stream_when_read_then_every_piece_and_the_usage(script: Script, user: str, upstream: Upstream) -> None:
    usage = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "choices": []}
    usage |= {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    frames = sse(delta("", role="assistant"), delta("你"), delta("好"), delta(None, "stop"), usage)
    upstream.will(Reply(body=[b": ping\n\n", *frames], content_type="text/event-stream"))
    assert await script.does("stream", user=user, text="Greet me") == {"pieces": ["你", "好"], "tokens": 3}
    assert check_strictly(upstream.received[0])["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
async def test_tools_when_called_then_the_loop_ends_with_the_answer(
    script: Script, user: str, upstream: Upstream, client: Client, streamed: bool
) -> None:
    question = "How is the weather in Basel?"
    call: dict[str, Any] = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"at":"Basel"}'},
    }
    if streamed:
        pieces = [
            {"index": 0} | call | {"function": {"name": "weather", "arguments": ""}},
            *({"index": 0, "function": {"arguments": piece}} for piece in ('{"at', '":"Ba', 'sel"}')),
        ]
        deltas = [delta(None, tool_calls=[piece]) for piece in pieces]
        frames = sse(delta(None, role="assistant"), *deltas, delta(None, "tool_calls"))
        answer = sse(delta("Sun", role="assistant"), delta("ny"), delta(None, "stop"))
        upstream.will(*(Reply(body=body, content_type="text/event-stream") for body in (frames, answer)))
    else:
        upstream.will(json_reply(None, "tool_calls", tool_calls=[call]), json_reply("Sunny"))
    assert await script.does("tools", user=user, text=question, streamed=streamed) == {"text": "Sunny"}
    one, two = map(check_strictly, upstream.received)
    assert one["tools"] == two["tools"]
    assert (bool(one.get("stream")), bool(two.get("stream"))) == (streamed, streamed)
    asked, said, result = two["messages"]
    (called,) = said["tool_calls"]
    assert (asked["content"], said.get("content") or None) == (question, None)
    assert (called["id"], json.loads(called["function"]["arguments"])) == ("c1", {"at": "Basel"})
    assert (result["tool_call_id"], result["content"]) == ("c1", "sun in Basel")
    await client.keeps(user, ("user", question), ("assistant", "Sunny"))


async def test_structured_output_when_asked_for_then_parsed(script: Script, user: str, upstream: Upstream) -> None:
    upstream.will(json_reply('{"place": "Basel", "degrees": 21.5}'))
    found = await script.does("structured", user=user, text="The weather, structured")
    assert found == {"place": "Basel", "degrees": 21.5}
    asked = check_strictly(upstream.received[0])["response_format"]
    assert (asked["type"], asked["json_schema"]["strict"]) == ("json_schema", True)
    assert set(asked["json_schema"]["schema"]["properties"]) == {"place", "degrees"}


@pytest.mark.parametrize("do", ["chat", "stream"])
async def test_call_when_cancelled_then_the_providers_connection_is_closed(
    script: Script, user: str, upstream: Upstream, client: Client, do: str
) -> None:
    gate = Gate()
    begun = Reply(body=[sse(delta("one"))[0], gate], content_type="text/event-stream")
    upstream.will(begun if do == "stream" else Reply(before=[gate]))
    await script.begins(do, user=user, text="Never mind")
    await asyncio.wait_for(gate.reached.wait(), 20)
    at = time.monotonic()
    told = await script.does("cancel")
    assert told.get("error") in script.sdk.cancelled
    assert told.get("pieces", []) in ([], ["one"])
    await asyncio.wait_for(upstream.received[0].closed.wait(), 10)
    closed_at = upstream.received[0].closed_at
    assert closed_at is not None
    print(f"{script.sdk.package or script.sdk.name}, {do}: closed after {(closed_at - at) * 1000:.0f} ms")
    assert closed_at - at < 2
    await until(lambda: upstream.open == 0)
    await client.keeps(user)


async def test_errors_when_refused_then_the_sdks_own(script: Script, user: str, upstream: Upstream) -> None:
    limited, refused, _ = script.sdk.errors
    upstream.will(error_reply(429, Retry_After="60"))
    caught = await script.does("chat", user=user, text="Go")
    assert limited in caught.get("kinds", ()), caught
    assert caught["status"] == 429
    if script.sdk.headers:
        assert caught["retry_after"] == "60"
    assert len(upstream.received) == 1
    unknown = await script.does("chat", user=user, text="Go", model="nobody-has-this")
    assert refused in unknown.get("kinds", ()), unknown
    assert unknown["status"] == 400
    assert unknown.get("code") in (None, "model_not_found")
    assert len(upstream.received) == 1


async def test_stream_when_it_breaks_off_then_the_sdks_own_error(script: Script, user: str, upstream: Upstream) -> None:
    frames = sse(delta("one", role="assistant"), done=False)
    upstream.will(Reply(body=[*frames, b'data: {"cho'], content_type="text/event-stream", end=False))
    told = await script.does("stream", user=user, text="Go")
    assert script.sdk.errors[2] in told.get("kinds", ()), told
    assert "broke off" in told["message"]


async def test_model_when_it_is_our_own_then_answers_and_streams(script: Script, user: str, client: Client) -> None:
    told = await script.does("chat", user=user, text="My sister lives in Porto", model="memoryos/recall")
    assert told["text"], told
    for do in ("chat", "stream"):
        for _ in range(100):
            told = await script.does(do, user=user, text="Where does my sister live?", model="memoryos/recall")
            text = "".join(told.get("pieces", ())) or told.get("text", "")
            if "Porto" in text:
                break
            await asyncio.sleep(0.1)
        assert "Porto" in text, told
        assert told["tokens"] > 0


async def test_responses_when_streamed_then_memory_arrives_and_the_text_comes_whole(
    script: Script, user: str, upstream: Upstream, client: Client
) -> None:
    turn = {"user_id": user, "role": "user", "content": "My cat is called Momo."}
    assert (await client.post("/v1/memory/add", turn)).status == 200
    for _ in range(100):  # a busy machine may keep it from its memory
        upstream.will(streamed(*events("Mo", "mo")))
        told = await script.does("responses", user=user, text="What is my cat called?")
        assert told == {"text": "Momo"}
        request = upstream.received[-1]
        assert request.path == "/v1/responses"
        if b"called Momo" in request.body:
            break
        await asyncio.sleep(0.1)
    assert request.json["input"][0]["role"] == "developer"
    assert request.json["input"][-1]["role"] == "user"


def test_versions_when_locked_then_the_documentation_names_them() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text()
    for name in ("langchain-openai", "litellm", "pydantic-ai-slim"):
        version = (HERE / f"{name}.in").read_text().strip().partition("==")[2]
        assert f"`{name.removesuffix('-slim')}` {version}" in page
    wanted = json.loads((HERE / "openai-node" / "package.json").read_text())["dependencies"]
    assert all(wanted[sdk.package].rpartition("@")[2] in page for sdk in SDKS if sdk.package)
