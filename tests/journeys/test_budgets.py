"""Budgets of keys, from the command line to the answer of a chat."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system import System, until
from tests.upstream import UpstreamProcess

ADMIN = "admin-key-of-a-test-0123456789"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("budgets")
    with UpstreamProcess() as upstream:
        env = {
            "MEMORYOS_AUTH__ENABLED": "true",
            "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
            "OPENAI_BASE_URL": upstream.base_url,
        }
        with System(home, env) as running:
            yield running


@pytest.fixture(autouse=True)
def amid_a_minute() -> None:
    """Waits for the next minute where the present one is nearly over: requests of the one before weigh less."""
    if (left := 60 - time.time() % 60) < 8:
        time.sleep(left + 0.1)


def key_of(system: System, *budget: str) -> str:
    asked = ("keys", "create", "--user", "ann", "--permissions", "chat,memory", *budget, "--json")
    return str(json.loads(system.cli(*asked).stdout)["api_key"])


def chat(system: System, key: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    body = {"model": "fake-1", "messages": [{"role": "user", "content": "Hello"}]} | more
    status, answer, headers = system.call("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
    return status, answer, {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("stream", [False, True])
def test_chat_when_the_key_has_used_its_requests_then_429_with_the_time_to_wait(system: System, stream: bool) -> None:
    key, other = key_of(system, "--requests-per-minute", "2"), key_of(system)
    statuses = [chat(system, key, stream=stream)[0] for _ in range(2)]
    assert statuses == [200, 200]
    status, answer, headers = chat(system, key, stream=stream)
    assert status == 429
    assert (answer["error"]["type"], answer["error"]["code"]) == ("TooManyRequests", "too_many_requests")
    assert 1 <= int(headers["retry-after"]) <= 120
    status, _, _ = system.call("POST", "/v1/memory/retrieve", {"query": "x"}, {"Authorization": f"Bearer {key}"})
    assert status == 200  # only chats count
    assert chat(system, other)[0] == 200


def test_chat_when_the_key_has_used_its_tokens_then_429_until_the_day_is_over(system: System) -> None:
    key = key_of(system, "--tokens-per-day", "30")
    for _ in range(2):  # 21 tokens each; what is under way when the budget ends is answered
        assert chat(system, key)[0] == 200
    status, _, headers = chat(system, key)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 86_400
    system.stop()
    system.start()
    until(lambda: chat(system, key)[0] == 429)
    assert 'memoryos_budget_refused_total{bound="tokens"}' in system.get("/metrics")[1]


def test_keys_when_they_have_budgets_then_the_list_says_so_and_nonsense_is_refused(system: System) -> None:
    key_of(system, "--requests-per-minute", "7", "--tokens-per-day", "70000")
    assert "7 requests a minute  70000 tokens a day" in system.cli("keys", "list").stdout
    refused = system.cli("keys", "create", "--user", "ann", "--tokens-per-day", "-1", check=False)
    assert refused.returncode != 0
    assert "tokens_per_day" in refused.stderr
