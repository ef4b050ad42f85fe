"""An LLM provider on loopback that does what a test tells it, over real TCP.

In a test: `async with Upstream() as upstream`. In a process of its own: `UpstreamProcess`, or by hand
`python -m tests.upstream --port 9999`, which prints its base URL and is told what to do by POST to `/control/script` (a list of
replies as JSON), `/control/gate`, `/control/requests` and `/control/closed`. Without a script it echoes the last user message,
as JSON or as a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODELS = ("fake-1", "gpt-4o-mini", "gpt-test")


class Gate:
    """Holds a reply until it is opened."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reached = asyncio.Event()

    def open(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._event.wait()


@dataclass(frozen=True)
class Sleep:
    """A pause within a reply, in seconds."""

    seconds: float


class Die:
    """Resets the connection."""


Step = bytes | Gate | Sleep | Die
"""A part of a reply's body."""


@dataclass(frozen=True)
class Reply:
    """What a request is answered with.

    Attributes:
        status: The HTTP status.
        headers: Further headers.
        body: Bytes, gates, pauses and deaths, in order.
        before: The same, before the head is sent.
        content_type: The content type.
        chunked: Chunked encoding; else the end of the connection ends the body.
        length: Announced as Content-Length instead, whether it is true or not.
        end: Whether the body is ended as announced; else the connection is cut.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Sequence[Step] = ()
    before: Sequence[Gate | Sleep | Die] = ()
    content_type: str = "application/json"
    chunked: bool = True
    length: int | None = None
    end: bool = True


@dataclass
class Received:
    """A request as it came, and when its connection ended before its answer did (monotonic seconds), if it did."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    closed_at: float | None = None
    answered: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def sse(*events: object, done: bool = True) -> list[bytes]:
    """Frames of a stream, one per event."""
    frames = [b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n" for event in events]
    return [*frames, b"data: [DONE]\n\n"] if done else frames


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    inner = {} if content is None else {"content": content}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": inner | more, "finish_reason": finish}],
    }


def stream_reply(*texts: str, finish: str = "stop") -> Reply:
    """A whole streamed answer."""
    return Reply(body=sse(*(delta(t) for t in texts), delta(None, finish)), content_type="text/event-stream")


def completion(content: str | None, finish: str = "stop", **message: Any) -> bytes:
    """A JSON answer with odd but legal spacing and numbers, which a rewrite would lose."""
    inner = json.dumps({"role": "assistant", "content": content} | message, ensure_ascii=False)
    return (
        '{ "id":"chatcmpl-fake" ,"object":"chat.completion","created":1700000000,"model":"fake-1-2026",'
        f'"choices":[{{"index":0,"message":{inner},"logprobs":null,"finish_reason":"{finish}"}}],'
        '"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21},"odd":1.0,"big":12345678901234567890 }\n'
    ).encode()


def json_reply(content: str | None, finish: str = "stop", **message: Any) -> Reply:
    """A whole JSON answer."""
    return Reply(body=[completion(content, finish, **message)])


def error_reply(status: int, error: object | None = None, **headers: str) -> Reply:
    """An error answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    value = {"error": {"message": "no", "type": "t", "code": "c", "param": "p"}} if error is None else error
    return Reply(status=status, headers=named, body=[json.dumps(value).encode()])


class Upstream:
    """The provider. Open it with `async with`.

    Attributes:
        received: Every chat request, in order.
        models: What `/models` lists; None: 404.
        script: Replies for the next chat requests; when empty, the last user message is echoed.
        by_model: Replies for the next chat requests that name a model; they come before those of the script.
        lists: How often `/models` was asked for.
        connections: How many connections there were.
    """

    def __init__(self, models: Sequence[str | Mapping[str, Any]] | None = MODELS, port: int = 0) -> None:
        self.received: list[Received] = []
        self.models = models
        self.script: deque[Reply] = deque()
        self.by_model: dict[str, deque[Reply]] = {}
        self.lists = 0
        self.connections = 0
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gates: list[Gate] = []

    async def __aenter__(self) -> Upstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 20)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def open(self) -> int:
        """How many connections there are at present."""
        return len(self._tasks)

    def will(self, *replies: Reply, model: str | None = None) -> None:
        """Appends to the script, or to that of one model, so that several calls may be under way."""
        (self.script if model is None else self.by_model.setdefault(model, deque())).extend(replies)

    def _next(self, request: Received) -> Reply:
        body = request.json
        own = self.by_model.get(body.get("model"))
        return own.popleft() if own else self.script.popleft() if self.script else _echo(body)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Received(method, path, headers, body, time.monotonic())
        if path.partition("?")[0] == "/v1/models":
            self.lists += 1
            listed = {
                "object": "list",
                "data": [
                    {"id": m, "object": "model", "owned_by": "fake"} if isinstance(m, str) else m
                    for m in self.models or ()
                ],
            }
            reply = error_reply(404) if self.models is None else Reply(body=[json.dumps(listed).encode()])
        elif path.startswith("/control/"):
            reply = self._control(path, body)
        else:
            self.received.append(request)
            reply = self._next(request)
        answering = asyncio.create_task(self._answer(reply, writer))
        leaving = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                request.closed_at = time.monotonic()
                request.closed.set()
                return False
            request.answered = True
            return answering.result() and not leaving.done()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        if not await _play(reply.before, writer, chunked=False):
            return False
        headers = {"Content-Type": reply.content_type, **reply.headers}
        chunked = reply.chunked and reply.length is None
        if chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif reply.length is not None:
            headers["Content-Length"] = str(reply.length)
        else:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {reply.status} X", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        if not await _play(reply.body, writer, chunked=chunked):
            return False
        if reply.end and chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return reply.end and chunked

    def _control(self, path: str, body: bytes) -> Reply:
        value: Any = {"ok": True}
        if path == "/control/script":
            self.script.extend(self._reply(item) for item in json.loads(body))
        elif path == "/control/gate":
            for gate in self._gates:
                gate.open()
            self._gates.clear()
        elif path == "/control/requests":
            value = [
                {
                    "path": r.path,
                    "headers": r.headers,
                    "body": r.body.decode("utf-8", "replace"),
                    "at": r.at,
                    "answered": r.answered,
                }
                for r in self.received
            ]
        elif path == "/control/closed":
            value = [r.closed_at for r in self.received]
        return Reply(body=[json.dumps(value).encode()])

    def _reply(self, item: dict[str, Any]) -> Reply:
        """A reply from JSON: `body` holds texts, `{"base64"}`, `{"sleep": s}`, `{"gate": true}`, `{"die": true}`."""
        return Reply(
            status=item.get("status", 200),
            headers=item.get("headers", {}),
            body=[self._step(step) for step in item.get("body", [])],
            before=[step for step in map(self._step, item.get("before", [])) if not isinstance(step, bytes)],
            content_type=item.get("content_type", "application/json"),
            chunked=item.get("chunked", True),
            length=item.get("length"),
            end=item.get("end", True),
        )

    def _step(self, step: Any) -> bytes | Gate | Sleep | Die:
        if isinstance(step, str):
            return step.encode()
        if "sleep" in step:
            return Sleep(step["sleep"])
        if "base64" in step:
            return base64.b64decode(step["base64"])
        if "die" in step:
            return Die()
        gate = Gate()
        self._gates.append(gate)
        return gate


async def _play(steps: Sequence[bytes | Gate | Sleep | Die], writer: asyncio.StreamWriter, *, chunked: bool) -> bool:
    """Whether the connection lives on."""
    for step in steps:
        if isinstance(step, Gate):
            await step.wait()
        elif isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
        elif isinstance(step, Die):
            writer.transport.abort()
            return False
        elif step:
            writer.write(b"%x\r\n%b\r\n" % (len(step), step) if chunked else step)
            await writer.drain()
    return True


def _echo(body: dict[str, Any]) -> Reply:
    said = next((m.get("content") for m in reversed(body["messages"]) if m["role"] == "user"), "")
    text = said if isinstance(said, str) else json.dumps(said)
    if not body.get("stream"):
        return json_reply(f"You said: {text}")
    return stream_reply("You ", "said: ", text)


class UpstreamProcess:
    """The provider in a process of its own, for tests without a loop. Open it with `with`."""

    def __init__(self) -> None:
        self.base_url = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> UpstreamProcess:
        command = [sys.executable, "-m", "tests.upstream", "--port", "0"]
        root = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        assert self.base_url.startswith("http://"), "the provider did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def will(self, *replies: Mapping[str, Any]) -> None:
        """Appends replies, as JSON has them, to the script."""
        self._control("script", list(replies))

    def open_gates(self) -> None:
        """Opens every gate of the script."""
        self._control("gate", None)

    def requests(self) -> list[dict[str, Any]]:
        """Every chat request: path, headers (lower case), body, at, answered."""
        return list(self._control("requests", None))

    def closed(self) -> list[float | None]:
        """For each chat request, when its connection ended before its answer did (monotonic seconds), or None."""
        return list(self._control("closed", None))

    def _control(self, what: str, value: object) -> Any:
        url = f"{self.base_url.removesuffix('/v1')}/control/{what}"
        request = urllib.request.Request(url, json.dumps(value).encode(), method="POST")  # noqa: S310  # our own loopback
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return json.load(response)


async def _main(port: int) -> None:
    async with Upstream(port=port) as upstream:
        print(upstream.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake LLM provider on loopback.")
    parser.add_argument("--port", type=int, default=0, help="the port; 0 takes a free one")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args().port))
