"""`memoryos privacy` on the server's machine: with the server running, and without."""

from __future__ import annotations

import argparse
import asyncio
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from memoryos_server import privacy_commands
from memoryos_server.domain.core.caller import Caller
from memoryos_server.operator_privacy import PrivacyDesk
from tests.scratch.serve import MemoryAudit
from tests.system import System, until

ENV = {"MEMORYOS_EMBEDDING__MODEL": "none", "MEMORYOS_AUTH__ENABLED": "true"}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    running = System(tmp_path, ENV)
    running.env["ADMIN"] = json.loads(running.cli("keys", "create", "--admin", "--json").stdout)["api_key"]
    with running:
        yield running


def said(system: System, *arguments: str) -> Any:
    return json.loads(system.cli("privacy", *arguments, "--json").stdout)


def as_admin(system: System, tenant: str = "acme") -> dict[str, str]:
    return {"Authorization": f"Bearer {system.env['ADMIN']}", "X-Tenant-ID": tenant}


def add(system: System, user: str, content: str, tenant: str = "acme") -> None:
    body = {"user_id": user, "role": "user", "content": content}
    assert system.post("/v1/memory/add", body, as_admin(system, tenant))[0] == 200


def recorded(system: System, event_type: str) -> list[tuple[str, str, str]]:
    tail = system.cli("audit", "tail", "--limit", "500", "--tenant", "acme", "--json").stdout.splitlines()
    events = [json.loads(line) for line in tail]
    return [(one["outcome"], one["actor"], one["resource"]) for one in events if one["event_type"] == event_type]


def test_export_when_asked_for_then_the_same_document_as_over_http_whole_or_not_at_all(
    system: System, tmp_path: Path
) -> None:
    add(system, "ann", "I live in Porto. " + "é" * 90_000)
    add(system, "ann", "I live in Rome", tenant="other")
    to = tmp_path / "ann.json"
    assert system.cli("privacy", "export", "ann", "--tenant", "acme", "--to", str(to)).stdout == ""
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    there = json.loads(to.read_text())
    printed = json.loads(system.cli("privacy", "export", "ann", "--tenant", "acme").stdout)
    asked = system.post("/v1/security/gdpr/export", {"user_id": "ann"}, as_admin(system))[1]["export"]
    for one in (there, printed):
        assert {name: one[name] for name in ("user_id", "episodes", "segments", "knowledge", "recent")} == {
            name: asked[name] for name in ("user_id", "episodes", "segments", "knowledge", "recent")
        }
    assert len(there["episodes"]) == 1
    until(lambda: recorded(system, "gdpr.export")[:4] == [(it, "operator", "gdpr") for it in ("intent", "ok")] * 2)
    for refused in (("export", "ann", "--tenant", "no such"), ("export", "a\x01b", "--tenant", "acme")):
        answer = system.cli("privacy", *refused, "--to", str(tmp_path / "none.json"), check=False)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr.startswith("memoryos: ")
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["ann.json"]


def test_delete_when_asked_for_then_erased_and_the_certificate_says_so(system: System) -> None:
    add(system, "ann", "I live in Porto")
    add(system, "ann", "I live in Rome", tenant="other")
    key = json.loads(system.cli("keys", "create", "--user", "ann", "--tenant", "*", "--json").stdout)["api_key"]
    made = said(system, "delete", "ann", "--tenant", "acme")
    assert (made["status"], made["errors"], made["requested_by"]) == ("ok", [], "operator")
    assert {one["category"]: one["removed"] for one in made["categories"]}["episodes"] == 1
    seen = said(system, "certificate", made["id"])
    assert (seen["id"], seen["status"], seen["tenant_id"]) == (made["id"], "ok", "acme")
    path = f"/v1/security/gdpr/certificates/{made['id']}"
    over_http = system.get(path, as_admin(system))[1]["certificate"]
    assert (over_http["id"], over_http["user_hash"]) == (made["id"], made["user_hash"])
    exported = system.post("/v1/security/gdpr/export", {"user_id": "ann"}, as_admin(system))[1]["export"]
    assert (exported["episodes"], exported["knowledge"]) == ([], [])
    elsewhere = system.post("/v1/security/gdpr/export", {"user_id": "ann"}, as_admin(system, "other"))[1]["export"]
    assert len(elsewhere["episodes"]) == 1
    # Who is on the machine reaches every key.
    asked = {"Authorization": f"Bearer {key}", "X-Tenant-ID": "acme"}
    assert system.post("/v1/memory/retrieve", {"query": "x"}, asked)[0] == 401
    resource = f"erasure/{made['id']}"
    told = [("intent", "operator", resource), ("ok", "operator", resource)]
    assert recorded(system, "gdpr.delete") == told
    shown = system.cli("privacy", "certificate", made["id"]).stdout
    assert f"certificate {made['id']}  tenant=acme  ok" in shown
    assert "episodes: 1 removed, 0 left" in shown
    unknown = system.cli("privacy", "certificate", "0" * 32, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "memoryos: There is no such certificate\n")


def test_delete_when_no_server_runs_then_unreadable_at_once_and_removed_by_the_next_start(system: System) -> None:
    add(system, "ann", "I live in Porto")
    system.stop()
    refused = system.cli("privacy", "export", "ann", "--tenant", "acme", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "start it first" in refused.stderr
    made = said(system, "delete", "ann", "--tenant", "acme")
    assert made["status"] == "erasing"
    assert "the next start" in system.cli("privacy", "certificate", made["id"]).stdout
    system.start()
    until(lambda: said(system, "certificate", made["id"])["status"] == "ok", 30)
    exported = system.post("/v1/security/gdpr/export", {"user_id": "ann"}, as_admin(system))[1]["export"]
    assert exported["episodes"] == []
    told = [(outcome, "operator", f"erasure/{made['id']}") for outcome in ("intent", "partial", "ok")]
    until(lambda: recorded(system, "gdpr.delete") == told)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["export", "ann", "--to", to] for to in ("", ".", "..", "/", "~", "~nobody-there/ann.json")),
        *([command, "\udcff\udcfe"] for command in ("export", "delete")),
    ],
)
def test_command_when_what_it_names_cannot_be_then_it_says_so_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser(prog="memoryos")
    privacy_commands.register(parser.add_subparsers())
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["privacy", *arguments])
    assert ended.value.code == 2
    assert "error: argument " in capsys.readouterr().err.splitlines()[-1]


async def test_delete_when_it_is_broken_off_then_its_outcome_is_recorded_all_the_same() -> None:
    class Endless:
        async def erase(self, who: Caller, user_id: str) -> None:
            await asyncio.Event().wait()

    log = MemoryAudit()
    desk = PrivacyDesk(cast(Any, Endless()), cast(Any, None), log, "operator")

    async def asked() -> None:
        async for _ in desk.run("delete", {"tenant_id": "acme", "user_id": "ann"}):
            pass

    task = asyncio.create_task(asked())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [(one.event_type, one.outcome, one.user_id) for one in log.events] == [("gdpr.delete", "failed", "ann")]
