"""What tests of erasure share: words that are found wherever they are, and the calls."""

from __future__ import annotations

import secrets
from typing import Any

from tests.system import System


def canary() -> str:
    """A random word without any prefix shared with others; letters only, so that analysis keeps it whole."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(26))


def core(word: str) -> bytes:
    """What is searched for: compression may write a word's ends as part of something that stood elsewhere."""
    return word[4:-4].encode()


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


def ok(answer: tuple[int, Any, Any]) -> Any:
    assert answer[0] == 200, answer
    return answer[1]


def export(system: System, user: str, headers: dict[str, str] | None = None) -> Any:
    return ok(system.post("/v1/security/gdpr/export", {"user_id": user}, headers))["export"]


def delete(system: System, user: str, headers: dict[str, str] | None = None) -> Any:
    return ok(system.post("/v1/security/gdpr/delete", {"user_id": user}, headers))


def certificate(system: System, made: Any, headers: dict[str, str] | None = None) -> Any:
    return ok(system.get(f"/v1/security/gdpr/certificates/{made['certificate_id']}", headers))["certificate"]


def add(system: System, user: str, content: str, headers: dict[str, str] | None = None, **more: str) -> Any:
    body = {"user_id": user, "role": "user", "content": content, **more}
    return ok(system.post("/v1/memory/add", body, headers))
