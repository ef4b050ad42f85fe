"""Conversations over REST whose ids are no plain words."""

from __future__ import annotations

import uuid
from urllib.parse import quote

import pytest

from tests.system import System


def add(system: System, user: str, session: str, event: str = "e1") -> int:
    body = {"user_id": user, "role": "user", "content": "A heron stood.", "session_id": session, "event_id": event}
    return system.post("/v1/memory/add", body)[0]


@pytest.mark.parametrize(
    "session", ["team/2026/notes", "a%2Fb", "history", "sessions", "..", ".", "-/-", "q?x=1#y", "会话/一", "a b+c;d"]
)
def test_session_when_its_id_is_percent_encoded_in_the_path_then_read_and_deleted(shared: System, session: str) -> None:
    user = f"u-{uuid.uuid4()}"
    assert add(shared, user, session) == 200
    path = f"/v1/memory/sessions/{quote(session, safe='')}?user_id={user}"
    status, answer, _ = shared.get(path)
    assert (status, answer.get("session_id")) == (200, session), answer
    assert [turn["event_id"] for turn in answer["turns"]] == ["e1"]
    assert shared.call("DELETE", path)[1]["deleted"] == 1
    assert shared.get(path)[0] == 404


def test_event_when_its_id_is_a_word_of_another_route_then_found(shared: System) -> None:
    user = f"u-{uuid.uuid4()}"
    assert add(shared, user, "s", "history") == 200
    status, answer, _ = shared.get(f"/v1/memory/events/history?user_id={user}")
    assert (status, answer.get("event_id")) == (200, "history"), answer


def test_session_when_it_is_the_name_of_the_turns_without_one_then_refused(shared: System) -> None:
    user = f"u-{uuid.uuid4()}"
    body = {"user_id": user, "role": "user", "content": "A heron stood.", "session_id": "-"}
    status, answer, _ = shared.post("/v1/memory/add", body)
    assert (status, answer["error"]["param"]) == (400, "session_id")
    assert add(shared, user, "") == 200
    status, answer, _ = shared.get(f"/v1/memory/sessions/-?user_id={user}")
    assert (status, answer["session_id"], len(answer["turns"])) == (200, "", 1)
