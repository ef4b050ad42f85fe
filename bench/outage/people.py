"""Users with a memory, and the calls that are made for them, each seen as one line like those of `expected`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from bench.outage.families import ADMIN_KEY
from memoryos.v1 import memory_service_pb2 as pb
from memoryos.v1 import memory_service_pb2_grpc as pb_grpc
from tests.system import System
from tests.upstream import UpstreamProcess, completion

RECENT = "My locker at the heron gate has the number 7341."
RULE = "Answer in short sentences."
QUESTION = "Which number has my locker at the heron gate?"
SLOW_SECONDS = 1.0
"""An answer that took longer is seen as slow: the breakers are open by then."""


@dataclass
class Person:
    """A user with a memory.

    Attributes:
        name: The user id.
        headers: Who he is, for calls.
        rule: The id of his typed memory.
        segment: The id of his segment.
        said: Texts that were acknowledged and must be found in the end.
    """

    name: str
    headers: Mapping[str, str]
    rule: str = ""
    segment: str = ""
    said: list[str] = field(default_factory=list)


def with_key_of_the_settings(name: str) -> Person:
    """One whom the key of the settings names, which no store need know."""
    return Person(name, {"Authorization": f"Bearer {ADMIN_KEY}", "X-User-ID": name})


def with_key_of_his_own(system: System, name: str) -> Person:
    """One with a key that is in the store."""
    made = json.loads(system.cli("keys", "create", "--user", name, "--json").stdout)
    return Person(name, {"Authorization": f"Bearer {made['api_key']}"})


def seed(system: System, person: Person) -> None:
    """Gives him something in every tier."""
    ok(system.post("/v1/memory/add", {"role": "user", "content": RECENT}, person.headers))
    ok(system.post("/v1/memory/add", {"role": "user", "content": "I live in Porto."}, person.headers))
    rule = ok(system.post("/v1/memories", {"content": RULE, "memory_type": "rule"}, person.headers))
    person.rule = rule["data"]["id"]
    segment = {"summary": "Likes to hike", "tags": ["hobby"], "memory_type": "qa"}
    ok(system.post("/v1/memory/manage/import", {"user_id": person.name, "segments": [segment]}, person.headers))
    found = {"user_id": person.name, "tags": ["hobby"], "limit": 5}
    person.segment = ok(system.post("/v1/memory/manage/search/tags", found, person.headers))["segments"][0]["id"]


def ok(answer: tuple[int, Any, Any]) -> Any:
    """What came with a 200."""
    if answer[0] != 200:
        raise RuntimeError(f"{answer[0]}: {answer[1]}")
    return answer[1]


@dataclass(frozen=True, slots=True)
class Seen:
    """How a call was answered, and in how many seconds."""

    line: str
    seconds: float


class Calls:
    """Makes the calls of the table.

    Args:
        system: Whom to call.
        upstream: Its provider.
    """

    def __init__(self, system: System, upstream: UpstreamProcess) -> None:
        self._system = system
        self._upstream = upstream
        self._made = 0
        self._calls: dict[str, Callable[[Person], str]] = {
            "chat JSON": lambda person: self.chat(person, stream=False),
            "chat SSE": lambda person: self.chat(person, stream=True),
            "add": self._add,
            "retrieve": self._retrieve,
            "retrieve gRPC": self._retrieve_grpc,
            "memories read": lambda person: self._found("GET", f"/v1/memories/{person.rule}", None, person),
            "memories create": self._create,
            "memories change": self._change,
            "manage read": self._tagged,
            "manage change": self._tag,
            "health": self._health,
        }

    def make(self, call: str, person: Person) -> Seen:
        """Makes one call."""
        self._made += 1
        began = time.perf_counter()
        line = self._calls[call](person)
        seconds = time.perf_counter() - began
        return Seen(f"{line} slow" if seconds > SLOW_SECONDS else line, seconds)

    def chat(self, person: Person, *, stream: bool = False, memory: str = "") -> str:
        """One chat; `memory` is the header of that name."""
        before = len(self._upstream.requests())
        body = {"model": "fake-1", "stream": stream, "messages": [{"role": "user", "content": QUESTION}]}
        headers = {**person.headers, **({"X-MemoryOS-Memory": memory} if memory else {})}
        status, answer, got = self._system.post("/v1/chat/completions", body, headers)
        if status != 200:
            return _line(status, answer, got)
        if stream and "[DONE]" not in answer:
            return f"{status} broken off"
        asked = self._upstream.requests()[before:]
        tiers = _injected(json.loads(asked[-1]["body"])) if asked else "no request"
        return f"{_line(status, answer, got)} injected={tiers} remembered={got.get('X-MemoryOS-Remembered')}"

    def timed_chat(self, person: Person, memory: str, thinks: float = 0.0) -> float:
        """The seconds of one chat, with nothing else counted; the provider thinks for so many of them."""
        if thinks:
            reply = {"before": [{"sleep": thinks}], "body": [completion("7341").decode()]}
            self._upstream.will(reply)
        body = {"model": "fake-1", "messages": [{"role": "user", "content": QUESTION}]}
        headers = {**person.headers, **({"X-MemoryOS-Memory": memory} if memory else {})}
        began = time.perf_counter()
        ok(self._system.post("/v1/chat/completions", body, headers))
        return time.perf_counter() - began

    def _add(self, person: Person) -> str:
        text = f"Note {self._made}: the ferry leaves from pier {self._made}."
        status, answer, got = self._system.post("/v1/memory/add", {"role": "user", "content": text}, person.headers)
        if status == 200:
            person.said.append(text)
        return _line(status, answer, got)

    def _retrieve(self, person: Person) -> str:
        status, answer, got = self._system.post("/v1/memory/retrieve", {"query": QUESTION}, person.headers)
        if status != 200:
            return _line(status, answer, got)
        brought = (
            ("short_term", answer["short_term"]),
            ("episodes", answer["episodes"]),
            ("long_term", answer["long_term"]["profile"] or answer["long_term"]["knowledge"]),
        )
        return f"{_line(status, answer, got)} {'+'.join(name for name, value in brought if value) or 'nothing'}"

    def _retrieve_grpc(self, person: Person) -> str:
        metadata = tuple((name.lower(), value) for name, value in person.headers.items())
        with grpc.insecure_channel(self._system.grpc) as channel:
            call = pb_grpc.MemoryServiceStub(channel).RetrieveMemory.with_call
            try:
                answer, got = call(pb.RetrieveMemoryRequest(query=QUESTION), metadata=metadata, timeout=20)
            except grpc.RpcError as failed:
                error: Any = failed  # it is the call, too
                marked = dict(error.initial_metadata() or ()).get("memoryos-status")
                code = error.code()
                said = "503 store_unavailable" if code is grpc.StatusCode.UNAVAILABLE else code.name
                return f"{said} {marked}" if marked else said
        marked = dict(got.initial_metadata() or ()).get("memoryos-status")
        brought = (
            ("short_term", answer.short_term),
            ("episodes", answer.episodes),
            ("long_term", answer.long_term.profile or answer.long_term.knowledge),
        )
        parts = "+".join(name for name, value in brought if value) or "nothing"
        return f"200 {marked!s} {parts}" if marked else f"200 {parts}"

    def _found(self, verb: str, path: str, body: Any, person: Person) -> str:
        status, answer, got = self._system.call(verb, path, body, person.headers)
        if status == 200:
            return f"{_line(status, answer, got)} {'found' if RULE in json.dumps(answer) else 'nothing'}"
        return _line(status, answer, got)

    def _create(self, person: Person) -> str:
        body = {"content": f"Owns boat {self._made}", "memory_type": "fact"}
        return _line(*self._system.post("/v1/memories", body, person.headers))

    def _change(self, person: Person) -> str:
        body = {"importance": round(self._made % 97 / 100, 2)}
        return _line(*self._system.call("PATCH", f"/v1/memories/{person.rule}", body, person.headers))

    def _tagged(self, person: Person) -> str:
        body = {"user_id": person.name, "tags": ["hobby"], "limit": 5}
        status, answer, got = self._system.post("/v1/memory/manage/search/tags", body, person.headers)
        if status == 200:
            return f"{_line(status, answer, got)} {'found' if answer['segments'] else 'nothing'}"
        return _line(status, answer, got)

    def _tag(self, person: Person) -> str:
        body = {"user_id": person.name, "segment_id": person.segment, "tags": [f"tag-{self._made}"]}
        return _line(*self._system.post("/v1/memory/manage/tags", body, person.headers))

    def _health(self, _person: Person) -> str:
        status, answer, got = self._system.get("/health/status")
        mark = " degraded" if got.get("X-MemoryOS-Status") else ""
        ready = self._system.get("/health/ready")[0]
        return f"{status}{mark} {answer['mode']} redis={answer['redis']} qdrant={answer['qdrant']} ready={ready}"

    def missing(self, person: Person) -> list[str]:
        """What was acknowledged to him and is not found by search."""
        return [text for text in person.said if text not in self._texts(person, text)]

    def _texts(self, person: Person, query: str) -> list[str]:
        body = {"query": query, "limit": 50}
        status, answer, _ = self._system.post("/v1/memory/retrieve", body, person.headers)
        return [episode["content"] for episode in answer["episodes"]] if status == 200 else []


def _line(status: int, answer: Any, headers: Mapping[str, str]) -> str:
    parts = [str(status)]
    if status >= 400 and isinstance(answer, dict):
        parts.append(str(answer["error"]["code"]))
    if marked := headers.get("X-MemoryOS-Status"):
        parts.append(marked)
    return " ".join(parts)


def _injected(body: Mapping[str, Any]) -> str:
    text = "\n".join(m["content"] for m in body["messages"] if m["role"] == "system")
    tiers = set()
    for line in text.splitlines():
        if line.startswith("{"):
            item = json.loads(line)
            if item["tier"] == "rule":
                tiers.add("rule")
            elif item["text"] == RECENT:
                tiers.add({"short_term": "recent", "episode": "episode"}.get(item["tier"], item["tier"]))
    return "+".join(sorted(tiers, reverse=True)) or "nothing"
