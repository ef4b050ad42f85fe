"""The main job, with the unmodified openai client: told, remembered, recalled in a later conversation."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

import memoryos
from tests.system import System
from tests.upstream import UpstreamProcess

FACTS = [
    "My sister Ingrid keeps bees on a roof in Lisbon.",
    "I am allergic to hazelnuts, so never suggest pralines.",
    "My train to Basel leaves on the ninth of March at 6:40.",
]
QUESTIONS = [
    ("Who keeps bees on a roof?", "Ingrid"),
    ("Which nuts am I allergic to?", "hazelnuts"),
    ("When does my train to Basel leave?", "6:40"),
]


def openai_client(system: System, user: str) -> OpenAI:
    return OpenAI(base_url=f"{system.url}/v1", api_key="unused", default_headers={"X-User-ID": user}, max_retries=0)


def test_chat_with_builtin_model_when_told_three_facts_then_recalls_the_right_one(shared: System) -> None:
    user = f"ada-{uuid.uuid4()}"
    with openai_client(shared, user) as client:
        for fact in FACTS:
            told = client.chat.completions.with_raw_response.create(
                model="memoryos/recall",
                messages=[{"role": "user", "content": fact}],
                extra_headers={"X-MemoryOS-Session-ID": "first"},
            )
            assert told.headers["X-MemoryOS-Remembered"] == "true"
        for question, answer in QUESTIONS:
            stream = client.chat.completions.create(
                model="memoryos/recall",
                messages=[{"role": "user", "content": question}],
                stream=True,
                extra_headers={"X-MemoryOS-Session-ID": f"later-{answer}"},
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            assert answer in text
        plain = client.chat.completions.create(
            model="memoryos/recall", messages=[{"role": "user", "content": QUESTIONS[0][0]}]
        )
        assert "Ingrid" in (plain.choices[0].message.content or "")
        assert "memoryos/recall" in [model.id for model in client.models.list().data]


@pytest.fixture
def upstream() -> Iterator[UpstreamProcess]:
    with UpstreamProcess() as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, upstream: UpstreamProcess) -> Iterator[System]:
    with System(tmp_path, {"OPENAI_BASE_URL": upstream.base_url, "OPENAI_API_KEY": "provider-key"}) as running:
        yield running


def test_chat_with_upstream_when_new_conversation_then_block_is_really_in_the_request(
    gateway: System, upstream: UpstreamProcess
) -> None:
    with openai_client(gateway, "ada") as client:
        for fact in FACTS:
            client.chat.completions.create(
                model="gpt-test",
                messages=[{"role": "user", "content": fact}],
                extra_headers={"X-MemoryOS-Session-ID": "1"},
            )
        for question, answer in QUESTIONS:
            stream = client.chat.completions.create(
                model="gpt-test",
                messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
                stream=True,
                extra_headers={"X-MemoryOS-Session-ID": "2"},
            )
            assert [chunk for chunk in stream]
            sent = json.loads(upstream.requests()[-1]["body"])
            assert [m["role"] for m in sent["messages"]] == ["system", "system", "user"]
            assert sent["messages"][0]["content"] == "Be brief."
            assert answer in sent["messages"][1]["content"]
            assert sent["messages"][2]["content"] == question
            assert upstream.requests()[-1]["headers"]["authorization"] == "Bearer provider-key"
        off = client.chat.completions.with_raw_response.create(
            model="gpt-test",
            messages=[{"role": "user", "content": QUESTIONS[0][0]}],
            extra_headers={"X-MemoryOS-Memory": "off"},
        )
        assert len(json.loads(upstream.requests()[-1]["body"])["messages"]) == 1
        assert "memoryos" not in json.loads(off.content)


def test_chat_over_grpc_when_told_then_recalls(shared: System) -> None:
    user = f"gil-{uuid.uuid4()}"
    with memoryos.Client(shared.grpc, user_id=user) as client:
        client.chat([{"role": "user", "content": FACTS[0]}], model="memoryos/recall", session_id="a")
        for role, content in (("user", FACTS[1]), ("user", FACTS[2])):
            client.add(content, role=role)
        found = client.retrieve(QUESTIONS[2][0])
        assert "6:40" in found.episodes[0].content
        text = "".join(
            client.stream_chat([{"role": "user", "content": QUESTIONS[0][0]}], model="memoryos/recall", session_id="b")
        )
        assert "Ingrid" in text
