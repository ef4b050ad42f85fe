"""The embedder over HTTP, against a server on loopback that speaks OpenAI's dialect."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import replace
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


def the_file(directory: Path) -> Path:
    (found,) = (path for path in directory.rglob("*") if path.is_file())
    return found


async def test_embed_when_many_texts_then_unit_vectors_in_order_and_in_batches(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    async with open_embedder(options(provider), tmp_path) as embedder:
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


async def test_embed_when_the_provider_hangs_then_one_waits_and_nobody_after_it_until_it_is_back(
    provider: EmbeddingServer,
) -> None:
    async with open_embedder(options(provider, 3), Path("unused")) as embedder:
        provider.answers.clear()
        with pytest.raises(BackendDown):
            await embedder.embed(["first"])
        waited = time.monotonic()
        for _ in range(20):
            with pytest.raises(BackendDown):
                await embedder.embed(["second"])
        assert time.monotonic() - waited < 1  # it would be forty seconds
        assert ["second"] not in provider.asked

        provider.answers.set()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await embedder.embed(["third"])
                    break
                except BackendDown:
                    await asyncio.sleep(0.05)
        assert ["back"] in provider.asked


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
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    provider.status = 503
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert isinstance(embedder, NoEmbedder)
        assert "start again once it answers, or set embedding.dimension" in embedder.status()


async def test_open_when_the_provider_is_away_then_the_same_model_with_the_dimension_it_said_before(
    provider: EmbeddingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_embedder(options(provider), tmp_path) as embedder:
        identity = embedder.identity
    provider.out = True
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert (embedder.identity, embedder.names) == (identity, {NAME: 3})
        assert "taken as 3, as it said before" in caplog.text
        with pytest.raises(BackendDown):
            await embedder.embed(["abc"])
        provider.out = False
        assert len((await embedder.embed(["abc"]))[0][NAME]) == 3


async def test_open_when_nothing_listens_any_more_then_the_dimension_is_known_all_the_same(tmp_path: Path) -> None:
    with EmbeddingServer(5) as gone:
        async with open_embedder(options(gone), tmp_path):
            pass
    async with open_embedder(options(gone), tmp_path) as embedder:
        assert embedder.names == {NAME: 5}


async def test_open_when_the_provider_hangs_and_its_dimension_is_known_then_the_start_waits_little(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    async with open_embedder(options(provider), tmp_path):
        pass
    provider.answers.clear()
    began = time.monotonic()
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert embedder.names == {NAME: 3}
    assert time.monotonic() - began < 10  # it would be thirty seconds
    provider.answers.set()


async def test_open_when_another_model_or_provider_is_away_then_nothing_is_known_of_it(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    async with open_embedder(options(provider), tmp_path):
        pass
    provider.out = True
    for other in (
        replace(options(provider), model="another"),
        replace(options(provider), base_url=f"{provider.url}/other"),
    ):
        async with open_embedder(other, tmp_path) as embedder:
            assert isinstance(embedder, NoEmbedder)


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"dimension": 3', b"[3]", b'{"dimension": 0}', b'{"dimension": true}', b'{"dimension": "3"}', b"\xff"],
)
async def test_open_when_what_is_kept_is_damaged_then_asked_again_and_mended(
    provider: EmbeddingServer, tmp_path: Path, damage: bytes
) -> None:
    async with open_embedder(options(provider), tmp_path):
        pass
    kept = the_file(tmp_path)
    kept.write_bytes(damage)
    provider.out = True
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert isinstance(embedder, NoEmbedder)
    for provider.out in (False, True):
        async with open_embedder(options(provider), tmp_path) as embedder:
            assert embedder.names == {NAME: 3}


async def test_open_when_the_dimension_changed_then_the_new_one_is_kept(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    for provider.dimension in (3, 4):
        async with open_embedder(options(provider), tmp_path) as embedder:
            assert embedder.names == {NAME: provider.dimension}
    provider.out = True
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert embedder.names == {NAME: 4}


async def test_open_when_the_provider_refuses_then_what_it_said_before_does_not_count(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    async with open_embedder(options(provider), tmp_path):
        pass
    provider.status = 404
    async with open_embedder(options(provider), tmp_path) as embedder:
        assert isinstance(embedder, NoEmbedder)  # each text would become a dead letter


async def test_open_when_the_dimension_is_kept_then_no_key_and_no_address_is(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    given = replace(options(provider), api_key="key-in-header")
    address = given.base_url.replace("http://", "http://someone:key-in-url@")
    # What is sent of an address with a user in it makes its header: no other may be set.
    for one in (given, replace(given, base_url=address, api_key="")):
        async with open_embedder(one, tmp_path) as embedder:
            assert embedder.names == {NAME: 3}
    kept = the_file(tmp_path)  # one model, whoever asks
    assert kept.read_bytes() == b'{"dimension":3}'
    assert "127.0.0.1" not in kept.name


async def test_open_when_the_directory_cannot_be_written_then_it_goes_on_without(
    provider: EmbeddingServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with open_embedder(options(provider), tmp_path / "file") as embedder:
        assert embedder.names == {NAME: 3}


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
