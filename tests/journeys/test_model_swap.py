"""Another embedding model over the same data: said, served by words meanwhile, embedded again in the background."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.embeddings import EmbeddingServer
from tests.system import System, until

HTTP = {"MEMORYOS_EMBEDDING__PROVIDER": "http", "MEMORYOS_EMBEDDING__MODEL": "tiny"}


def found(system: System, query: str) -> list[str]:
    answer = system.post("/v1/memory/retrieve", {"user_id": "ann", "query": query})[1]
    return [episode["content"] for episode in answer["episodes"]]


def log(system: System) -> str:
    return (system.home / "server.log").read_text()


@pytest.mark.timeout(240)
def test_model_when_another_is_configured_then_said_and_everything_is_embedded_again(tmp_path: Path) -> None:
    with EmbeddingServer(3) as provider:
        http = HTTP | {"MEMORYOS_EMBEDDING__BASE_URL": provider.url}
        with System(tmp_path, http) as system:
            for n in range(40):
                system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": f"Heron number {n} flew."})
            body = {"content": "The physician comes on Friday", "memory_type": "fact"}
            assert system.post("/v1/memories", body)[0] == 200
            system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": "The doctor lives in Porto."})
            system.stop()
            asked = len(provider.asked)
            assert asked > 40
            for name in http:
                del system.env[name]
            system.start()
            # Words are served from the first moment; meaning follows.
            assert "The doctor lives in Porto." in found(system, "doctor")
            until(lambda: "indexing again is done" in log(system))
            assert "the embedding model is all-MiniLM" in log(system)
            assert "tiny" in log(system)
            assert found(system, "physician")[:1] == ["The doctor lives in Porto."]
            hits = system.post("/v1/memories/search", {"query": "a doctor's visit", "top_k": 1})[1]["data"]["results"]
            assert [hit["content"] for hit in hits] == ["The physician comes on Friday"]
            assert len(provider.asked) == asked

            # A restart with the same model has nothing to do.
            done = log(system).count("indexing again is done")
            system.stop()
            system.start()
            assert found(system, "physician")[:1] == ["The doctor lives in Porto."]
            assert log(system).count("indexing again is done") == done


@pytest.mark.timeout(240)
def test_model_when_killed_while_embedding_again_then_the_next_start_goes_on(tmp_path: Path) -> None:
    with EmbeddingServer(3) as provider, System(tmp_path, {"MEMORYOS_EMBEDDING__MODEL": "none"}) as system:
        for n in range(300):
            system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": f"Heron number {n} flew."})
        system.stop()
        del system.env["MEMORYOS_EMBEDDING__MODEL"]
        system.env |= HTTP | {"MEMORYOS_EMBEDDING__BASE_URL": provider.url}
        system.env["MEMORYOS_EMBEDDING__DIMENSION"] = "3"
        provider.most = 150  # then it is away for a while
        system.start()
        until(lambda: "indexing again waits" in log(system))
        assert "Heron number 7 flew." in found(system, "heron number 7")
        assert system.server is not None
        os.kill(system.server.pid, signal.SIGKILL)
        system.server.wait()
        provider.most = 10**9
        provider.asked.clear()
        system.start()
        until(lambda: "indexing again is done" in log(system))
        embedded = {text for texts in provider.asked for text in texts}
        assert len([text for text in embedded if "flew" in text]) >= 150
        assert "Heron number 7 flew." in found(system, "heron number 7")


@pytest.mark.timeout(120)
def test_text_when_the_model_refuses_it_then_it_is_found_by_words_after_all(tmp_path: Path) -> None:
    with EmbeddingServer(3) as provider, System(tmp_path, {"MEMORYOS_EMBEDDING__MODEL": "none"}) as system:
        for content in ("A bad heron.", "A good heron."):
            system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": content})
        system.stop()
        del system.env["MEMORYOS_EMBEDDING__MODEL"]
        system.env |= HTTP | {"MEMORYOS_EMBEDDING__BASE_URL": provider.url}
        provider.refuses.add("bad")
        system.start()
        until(lambda: "indexing again is done" in log(system))
        assert "stays without a vector" in log(system)
        assert sorted(found(system, "heron")) == ["A bad heron.", "A good heron."]


@pytest.mark.timeout(120)
def test_model_when_its_provider_is_away_at_the_start_then_it_is_the_same_model_and_nothing_is_made_anew(
    tmp_path: Path,
) -> None:
    with EmbeddingServer(3) as provider:
        http = HTTP | {"MEMORYOS_EMBEDDING__BASE_URL": provider.url}
        with System(tmp_path, http) as system:
            system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": "The heron flew."})
            system.stop()
            provider.out = True
            system.start()
            assert found(system, "heron") == ["The heron flew."]
            assert "taken as 3, as it said before" in log(system)
            assert "no model makes them now" not in log(system)
            provider.out = False
            provider.asked.clear()
            system.post("/v1/memory/add", {"user_id": "ann", "role": "user", "content": "The owl slept."})
            until(lambda: ["The owl slept."] in provider.asked)
            assert "The owl slept." in found(system, "owl")
