"""What a user says is in no raw file; with sealing off it is in each, so the search itself is known to work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journeys.privacy_support import canary, core
from tests.system import System


@pytest.mark.parametrize("sealing", ["true", "false"])
def test_canaries_when_told_through_every_door_then_only_unsealed_files_hold_them(tmp_path: Path, sealing: str) -> None:
    user, session, name, event = (canary() for _ in range(4))
    texts = {door: canary() for door in ("add", "chat", "stream")}
    with System(tmp_path, {"MEMORYOS_SECURITY__SEALING": sealing}) as system:
        status, answer, _ = system.post(
            "/v1/memory/add",
            {
                "user_id": user,
                "role": "user",
                "content": f"word {texts['add']}",
                "session_id": session,
                "name": name,
                "event_id": event,
            },
        )
        assert status == 200, answer
        for door in ("chat", "stream"):
            status, answer, _ = system.post(
                "/v1/chat/completions",
                {
                    "model": "memoryos/recall",
                    "messages": [{"role": "user", "content": f"word {texts[door]}"}],
                    "stream": door == "stream",
                },
                {"X-User-ID": user, "X-MemoryOS-Session-ID": session},
            )
            assert status == 200, answer
        for word in texts.values():
            _, found, _ = system.post("/v1/memory/retrieve", {"user_id": user, "query": word})
            assert word in found["episodes"][0]["content"]
        system.stop()
        stores = {store: system.raw(store) for store in ("valkey", "edge")}
    assert all(len(raw) > 1000 for raw in stores.values())
    for word in (*texts.values(), user, session, name, event):
        for store, raw in stores.items():
            if sealing == "true":
                assert core(word) not in raw, f"{store} holds a canary"
    if sealing == "false":
        for store, raw in stores.items():
            # One of three may be hidden by compression, which stores four characters that came before by reference.
            assert sum(core(word) in raw for word in texts.values()) >= 2, f"the search does not work in {store}"
    rest = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(system.data))
    assert all(core(word) not in rest for word in (*texts.values(), user, session, name, event)), "a log holds a canary"
