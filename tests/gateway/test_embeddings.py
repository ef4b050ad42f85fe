"""`POST /v1/embeddings`, from the model that memory searches with."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.gateway.conftest import Client
from tests.system import System
from tests.upstream import Reply, Upstream, error_reply, json_reply


async def embed(client: Client, body: Any) -> Any:
    answer = await client.post("/v1/embeddings", body)
    assert answer.status == 200, answer.body
    return answer.json


def unpacked(text: str) -> list[float]:
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def likeness(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_embeddings_when_numbers_or_base64_then_the_same_unit_vectors_in_order(client: Client) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."]
    plain = await embed(client, {"model": "minilm", "input": texts})
    assert list(plain) == ["object", "data", "model", "usage"]
    assert (plain["object"], plain["model"]) == ("list", "minilm")
    assert [(d["object"], d["index"]) for d in plain["data"]] == [("embedding", n) for n in range(3)]
    assert 15 < plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"] < 60
    cat, kitten, money = (d["embedding"] for d in plain["data"])
    assert len(cat) == 384
    assert likeness(cat, cat) == pytest.approx(1, abs=1e-3)
    assert likeness(cat, kitten) > 0.5 > 0.2 > likeness(cat, money)
    packed = await embed(client, {"model": "minilm", "input": texts, "encoding_format": "base64", "dimensions": 384})
    assert [unpacked(d["embedding"]) for d in packed["data"]] == [
        [struct.unpack("<f", struct.pack("<f", x))[0] for x in vector] for vector in (cat, kitten, money)
    ]
    alone = await embed(client, {"model": "minilm", "input": texts[0], "encoding_format": "float", "user": "ann"})
    assert [d["embedding"] for d in alone["data"]] == [cat]


async def test_embeddings_when_openais_client_asks_then_it_reads_them(gateway: System) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as ai:
        packed = await ai.embeddings.create(model="minilm", input="A cat sleeps.")  # base64, as it asks for by itself
        plain = await ai.embeddings.create(model="minilm", input=["A cat sleeps."], encoding_format="float")
    assert len(packed.data[0].embedding) == 384
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.usage.total_tokens == plain.usage.total_tokens > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "minilm"}, "input"),
        ({"model": "minilm", "input": "x", "dimensions": 256}, "dimensions"),
        ({"model": "minilm", "input": "x", "dimensions": -1}, "dimensions"),
        ({"model": "minilm", "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"model": "minilm", "input": "x", "unknown": 1}, "unknown"),
        ({"model": "minilm", "input": []}, "input"),
        ({"model": "minilm", "input": ["x"] * 2049}, "input"),
        ({"model": "minilm", "input": [15339, 1917]}, "input"),
        ({"model": "minilm", "input": [[15339], [1917]]}, "input"),
        ({"model": "minilm", "input": {"text": "x"}}, "input"),
        ({"model": "minilm", "input": ["x", ""]}, "input[1]"),
        ({"model": "minilm", "input": ["x", "y" * 100_001]}, "input[1]"),
        ({"model": "minilm", "input": ["x", "今天天气很好"]}, "input[1]"),
    ],
)
async def test_embeddings_when_wrong_then_400_names_the_field(client: Client, body: dict[str, Any], param: str) -> None:
    answer = await client.post("/v1/embeddings", body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


async def test_embeddings_when_a_provider_has_the_model_then_the_request_and_its_vectors_pass(
    client: Client, upstream: Upstream
) -> None:
    given = [{"object": "embedding", "index": at, "embedding": [0.1, -2e-07]} for at in (1, 0)]
    listed = {"object": "list", "data": given, "model": "e-1", "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    packed = {**listed, "data": [{"object": "embedding", "index": 0, "embedding": "AAAAPw=="}]}
    upstream.will(
        *[Reply(body=[json.dumps(one).encode()]) for one in (listed, packed)], error_reply(400), json_reply("?")
    )
    plain = await embed(client, {"model": "e-1", "input": ["a", "caf\u00e9"], "dimensions": 2})
    assert plain == {**listed, "data": given[::-1]}
    assert upstream.received[0].path == "/v1/embeddings"
    asked = {"model": "e-1", "input": ["a", "caf\u00e9"], "encoding_format": "float", "dimensions": 2}
    assert upstream.received[0].json == asked
    tokens = await embed(client, {"model": "e-1", "input": [[1, 2], [3]], "encoding_format": "base64"})
    assert tokens["data"][0]["embedding"] == "AAAAPw=="
    assert upstream.received[1].json["input"] == [[1, 2], [3]]
    refused = await client.post("/v1/embeddings", {"model": "e-1", "input": "x"})
    assert refused.status == 400
    broken = await client.post("/v1/embeddings", {"model": "e-1", "input": "x"})
    assert (broken.status, broken.error["code"]) == (502, "upstream_failed")
