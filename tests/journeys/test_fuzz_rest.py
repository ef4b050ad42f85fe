"""A real server and bridge are asked whatever our own OpenAPI document allows and forbids (schemathesis).

Every answer has a status and a shape that the document promises, and none is a failure of ours.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import System

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home: Path = tmp_path_factory.mktemp("rest")
    with System(home, {"MEMORYOS_LOG__FORMAT": "json"}) as running:
        yield running


def ask(system: System, *arguments: str) -> int:
    """Runs schemathesis; how many requests it sent. Fails with what it found."""
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{system.url}/openapi.json",
        "--checks",
        ",".join(CHECKS),
    ]
    always = ["--no-shrink", "--continue-on-failure", "--warnings", "off", "--request-timeout", "30"]
    done = subprocess.run([*command, *always, *arguments], cwd=system.home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found, done.stdout[-4000:]
    assert found[1] == found[2]
    return int(found[1])


def check(system: System) -> None:
    """Nothing has crashed, nobody has had a stack trace, and both still serve."""
    for name in ("server.log", "bridge.log"):
        log = (system.home / name).read_text(errors="replace")
        assert "Traceback" not in log
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert [line for line in lines if line.get("level") in ("error", "critical")] == []
    body = {"user_id": "after", "role": "user", "content": "I take my coffee black."}
    assert system.post("/v1/memory/add", body)[0] == 200
    status, answer, _ = system.post("/v1/memory/retrieve", {"user_id": "after", "query": "coffee"})
    assert status == 200
    assert "coffee" in json.dumps(answer)


def test_rest_when_asked_all_the_document_allows_and_forbids_then_every_answer_is_as_it_promises(
    system: System,
) -> None:
    sent = ask(system, "--phases", "coverage,fuzzing", "--max-examples", "10", "--generation-deterministic")
    assert sent > 1000
    check(system)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rest_when_asked_for_long_then_every_answer_is_as_it_promises(system: System, seed: int) -> None:
    ask(system, "--phases", "fuzzing,stateful", "--max-examples", "300", "--seed", str(seed))
    check(system)
