"""What Prometheus sees of memory's background work, from a real server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embeddings import POISON, EmbeddingServer
from tests.system import System


def until(what: Callable[[], bool], tell: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, tell()
        time.sleep(0.2)


def shown(system: System) -> dict[str, float]:
    """The metrics of memory by name and labels."""
    status, text, _ = system.get("/metrics")
    assert status == 200
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    found = {name: float(value) for name, value in lines if name.startswith("memoryos_")}
    parts = ("queue", "events", "consolidations", "records", "embedding")
    return {k: v for k, v in found.items() if k.startswith(tuple(f"memoryos_{part}" for part in parts))}


def add(system: System, content: str) -> None:
    body = {"user_id": "ann-of-metrics", "role": "user", "content": content, "session_id": "s"}
    assert system.post("/v1/memory/add", body)[0] == 200


@pytest.mark.timeout(240)
def test_metrics_when_memory_works_then_its_ends_depth_records_and_embedding_are_counted(tmp_path: Path) -> None:
    with EmbeddingServer() as embeddings:
        embeddings.refuses.add(POISON)
        quick = {
            "MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.1",
            "MEMORYOS_MEMORY__SESSION_IDLE_SECONDS": "2",
        }
        with System(tmp_path, {**embeddings.env, **quick}) as system:
            before = shown(system)
            assert before['memoryos_events_ended_total{state="stored"}'] == 0
            assert before['memoryos_events_ended_total{state="merged"}'] == 0
            add(system, "I live in Lisbon.")
            add(system, "hi")
            add(system, f"An {POISON} heron stood on the pier.")

            expected = {
                'memoryos_events_ended_total{state="stored"}': 1,
                'memoryos_events_ended_total{state="rejected"}': 1,
                'memoryos_events_ended_total{state="dead_letter"}': 1,
                'memoryos_queue_depth{kind="open"}': 0,
                'memoryos_queue_depth{kind="dead_letter"}': 1,
                "memoryos_queue_oldest_seconds": 0,
            }
            until(lambda: shown(system).items() >= expected.items(), lambda: shown(system))
            assert shown(system)['memoryos_records_written_total{kind="fact"}'] >= 1
            until(
                lambda: (
                    shown(system)["memoryos_consolidations_total"] >= 1
                    and shown(system)['memoryos_records_written_total{kind="segment"}'] >= 1
                ),
                lambda: shown(system),
            )
            assert "ann-of-metrics" not in system.get("/metrics")[1]

            embeddings.out = True
            add(system, "The ferry leaves at nine.")
            until(lambda: shown(system)['memoryos_queue_depth{kind="open"}'] == 1, lambda: shown(system))
            until(lambda: shown(system)["memoryos_queue_oldest_seconds"] > 1, lambda: shown(system))
            embeddings.out = False
            until(lambda: shown(system)['memoryos_queue_depth{kind="open"}'] == 0, lambda: shown(system))

            system.stop()
            system.env["MEMORYOS_EMBEDDING__MODEL"] = "other-words"
            system.start()

            def again() -> bool:
                now = shown(system)
                total = now['memoryos_embedding_memories{kind="total"}']
                return total >= 5 and now['memoryos_embedding_memories{kind="embedded"}'] == total

            until(again, lambda: shown(system))
