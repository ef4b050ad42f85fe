"""The embedder over HTTP, against a server on loopback that speaks OpenAI's dialect."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryos.settings import EmbeddingSettings
from memoryos_server.domain.core.faults import BackendDown, UpstreamRejected
from memoryos_server.tools.embed.http import BATCH, NAME, HttpEmbedder
from memoryos_server.tools.embed.identity import NoEmbedder
from memoryos_server.tools.embed.opening import open_embedder
from tests.embeddings import EmbeddingServer, vector


@pytest.fixture
def provider() -> Iterator[EmbeddingServer]:
    with EmbeddingServer(3) as made:
        yield made


def options(provider: EmbeddingServer, dimension: int = 0) -> EmbeddingSettings:
    return EmbeddingSettings(
        provider="http", model="tiny", base_url=provider.url, api_key="k", dimension=dimension, max_chars=10
    )


async def test_embed_when_many_texts_then_unit_vectors_in_order_and_in_batches(provider: EmbeddingServer) -> None:
    async with open_embedder(options(provider), Path("unused")) as embedder:
        assert embedder.names == {NAME: 3}  # asked of the provider
        vectors = await embedder.embed(["duck"] + ["ab" * 50] * BATCH)
    given = vector("duck", 3)
    assert vectors[0][NAME] == pytest.approx([value / math.hypot(*given) for value in given], abs=1e-6)
    assert vectors[0][NAME] != vectors[1][NAME]
    assert vectors[1][NAME] == vectors[-1][NAME]
    assert [len(text) for text in provider.asked[1]][:2] == [4, 10]
    assert len(provider.asked) == 3
    assert set(provider.keys) == {"Bearer k"}


async def test_embed_when_the_provider_is_out_of_breath_then_it_counts_as_down(provider: EmbeddingServer) -> None:
    async with open_embedder(options(provider, 3), Path("unused")) as embedder:
        for provider.status in (401, 429, 500, 503):
            with pytest.raises(BackendDown):
                await embedder.embed(["abc"])
        provider.status, provider.body = 200, b'{"data": [{"index": 0, "embedding": [0, 0, 0]}]}'
        with pytest.raises(BackendDown):
            await embedder.embed(["abc"])


async def test_embed_when_a_text_is_refused_then_that_is_told_apart(provider: EmbeddingServer) -> None:
    provider.refuses.add("bad")
    async with open_embedder(options(provider, 3), Path("unused")) as embedder:
        with pytest.raises(UpstreamRejected):
            await embedder.embed(["a bad one"])
        assert await embedder.embed(["fine"])


async def test_embed_when_the_provider_changes_its_dimension_then_nothing_is_mixed(provider: EmbeddingServer) -> None:
    async with open_embedder(options(provider, 4), Path("unused")) as embedder:
        with pytest.raises(BackendDown, match="dimension"):
            await embedder.embed(["abc"])


async def test_open_when_the_dimension_cannot_be_learned_then_words_alone_and_said_so(
    provider: EmbeddingServer,
) -> None:
    provider.status = 503
    async with open_embedder(options(provider), Path("unused")) as embedder:
        assert isinstance(embedder, NoEmbedder)
        assert "embedding.dimension" in embedder.status()


async def test_identity_when_model_or_dimension_differ_then_the_fingerprint_does(provider: EmbeddingServer) -> None:
    prints = set()
    for model, dimension in (("a", 3), ("b", 3), ("a", 4)):
        made = EmbeddingSettings(provider="http", model=model, base_url=provider.url, dimension=dimension)
        async with open_embedder(made, Path("unused")) as embedder:
            assert isinstance(embedder, HttpEmbedder)
            prints.add(embedder.identity.fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (EmbeddingSettings(provider="http", base_url="http://127.0.0.1:1", model=""), "embedding.model"),
        (EmbeddingSettings(provider="http", model="m"), "embedding.base_url"),
        (EmbeddingSettings(model="bge"), "embedding.model"),
        (EmbeddingSettings(provider="fastembed"), "embedding.model"),
    ],
)
async def test_open_when_a_setting_is_missing_then_it_is_named(given: EmbeddingSettings, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        async with open_embedder(given, Path("unused")):
            pass
