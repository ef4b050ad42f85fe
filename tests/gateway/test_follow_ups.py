"""Questions that only make sense behind others, and a stream that says at its end what memory did."""

from __future__ import annotations

import json

import pytest

from tests.gateway.conftest import Client
from tests.upstream import Reply as Given
from tests.upstream import Upstream, delta, sse, stream_reply


@pytest.mark.parametrize(
    ("who", "fact", "talk"),
    [
        (
            "f-en",
            "Anna lives in Porto, near the river.",
            ("Who is my sister?", "Your sister is Anna.", "Where does she live?"),
        ),
        ("f-zh", "小梅住在波尔图。", ("我妹妹叫什么？", "你妹妹叫小梅。", "她住在哪里？")),
    ],
)
async def test_chat_when_the_question_points_back_then_what_it_means_is_found(
    client: Client, upstream: Upstream, who: str, fact: str, talk: tuple[str, str, str]
) -> None:
    for said in (fact, "The lamp in the hall is broken.", "我昨天买了一把新椅子。", "Tea is in the left cupboard."):
        turn = {"user_id": who, "role": "user", "content": said}
        assert (await client.post("/v1/memory/add", turn)).status == 200
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), talk, strict=True)]
    await client.recalling(upstream, {"model": "m", "messages": messages}, user=who, X_MemoryOS_Memory="read")
    sent = upstream.received[-1].json["messages"]
    assert [one["content"] for one in sent if one["role"] != "system"] == list(talk)
    (block,) = [one["content"] for one in sent if one["role"] == "system"]
    assert fact in block


@pytest.mark.parametrize("done", [True, False])
async def test_stream_when_a_report_is_asked_for_then_a_comment_stands_before_its_end_and_all_else_is_equal(
    client: Client, upstream: Upstream, done: bool
) -> None:
    frames = b"".join(sse(delta("hi"), delta("", "stop"), done=done))
    upstream.will(Given(body=[frames], content_type="text/event-stream"))
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Say hi to the gardener."}]}
    answer = await client.chat(body, user=f"report-{done}", X_MemoryOS_Report="comment")
    (line,) = [one for one in answer.body.splitlines() if one.startswith(b": memoryos ")]
    assert answer.body.replace(line + b"\n", b"") == frames
    end = answer.body.partition(line + b"\n")[2]
    assert end == (b"data: [DONE]\n\n" if done else b"")
    told = json.loads(line.removeprefix(b": memoryos "))
    assert told["source"] == "upstream"
    assert told["event_id"] == answer.headers["x-memoryos-event-id"]
    assert isinstance(told["remembered"], bool)


async def test_stream_when_another_report_is_asked_for_then_400(client: Client, upstream: Upstream) -> None:
    upstream.will(stream_reply("x"))
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    answer = await client.chat(body, X_MemoryOS_Report="frame")
    assert (answer.status, answer.error["param"]) == (400, "X-MemoryOS-Report")
