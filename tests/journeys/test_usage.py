"""What chats cost, through server and bridge: who sees which key's, and what a stop and a kill leave of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system import System
from tests.upstream import UpstreamProcess, delta, sse

ADMIN = "admin-key-of-a-test-0123456789"
SEEN = ("tenant_id", "key_id", "model", "requests", "input_tokens", "output_tokens", "cached_tokens")


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamProcess]:
    with UpstreamProcess() as running:
        yield running


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, upstream: UpstreamProcess) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("usage")
    env = {
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
        "OPENAI_BASE_URL": upstream.base_url,
        # What is sent is what is counted, not what a busy machine left out.
        "MEMORYOS_MEMORY__RECALL_DEADLINE_SECONDS": "5",
    }
    with System(home, env) as running:
        yield running


def made(system: System, tenant: str) -> tuple[str, str]:
    """A key of a tenant, and its id."""
    asked = ("keys", "create", "--user", "ann", "--tenant", tenant, "--permissions", "chat,memory", "--json")
    value = json.loads(system.cli(*asked).stdout)
    return value["api_key"], value["id"]


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def usage(system: System, key: str, query: str = "") -> Any:
    status, answer, _ = system.call("GET", f"/v1/usage{query}", None, bearer(key))
    assert status == 200, answer
    return answer["usage"]


def chat(system: System, key: str, **more: Any) -> dict[str, str]:
    body = {"model": "fake-1", "messages": [{"role": "user", "content": "I live in Porto."}], **more}
    status, answer, headers = system.call("POST", "/v1/chat/completions", body, bearer(key))
    assert status == 200, answer
    return dict(headers)


def test_usage_when_two_tenants_chat_then_each_key_sees_its_own_and_the_admin_all(
    system: System, upstream: UpstreamProcess
) -> None:
    north, north_id = made(system, "north")
    south, south_id = made(system, "south")
    chat(system, north)
    given = {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 16}}
    frames = sse(delta("Hi", "stop"), {"choices": [], "usage": given})
    upstream.will({"body": [frame.decode() for frame in frames], "content_type": "text/event-stream"})
    chat(system, north, stream=True, stream_options={"include_usage": True})
    chat(system, south, stream=True)

    (mine,) = usage(system, north)
    assert tuple(mine[name] for name in SEEN) == ("north", north_id, "fake-1", 2, 39, 16, 16)
    assert mine["estimated_requests"] == 0
    (theirs,) = usage(system, south)
    assert tuple(theirs[name] for name in SEEN) == ("south", south_id, "fake-1", 1, 0, 0, 0)
    assert theirs["estimated_requests"] == 1
    assert theirs["estimated_input_tokens"] > 3
    assert theirs["estimated_output_tokens"] > 3

    assert usage(system, ADMIN) == []
    assert usage(system, ADMIN, "?tenant_id=*") == [mine, theirs]
    assert usage(system, ADMIN, f"?tenant_id=*&key_id={south_id}") == [theirs]
    day = mine["day"]
    assert usage(system, ADMIN, f"?tenant_id=north&from={day}&to={day}") == [mine]
    assert usage(system, ADMIN, "?tenant_id=north&to=2026-01-01") == []
    for query, code in ((f"key_id={south_id}", 403), ("tenant_id=south", 403), ("from=monday", 400)):
        status, answer, _ = system.call("GET", f"/v1/usage?{query}", None, bearer(north))
        assert (status, answer["error"]["param"]) == (
            code,
            query.partition("=")[0] if code == 400 else answer["error"]["param"],
        )
    metrics = system.get("/metrics")[1]
    assert 'memoryos_llm_tokens_total{direction="cached",estimated="false",model="fake-1"} 16.0' in metrics
    assert north_id not in metrics


def test_usage_when_the_server_is_stopped_or_killed_then_what_was_written_stays(system: System) -> None:
    east, _ = made(system, "east")
    chat(system, east)
    system.stop()  # what waits is written now at the latest
    system.start()
    assert usage(system, east)[0]["requests"] == 1
    chat(system, east)
    assert usage(system, east)[0]["requests"] == 2  # who asks has it written
    system.kill()
    system.start()
    assert usage(system, east)[0]["requests"] == 2
