"""What memory adds to a conversation, turn by turn, and what it keeps of it."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest

from tests.gateway.conftest import Answered, Client
from tests.upstream import Received, Reply, Upstream, json_reply, stream_reply

OPEN = b"<memoryos-context>"
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
FACTS = [
    "My dog is called Rex",
    "Rex is a beagle",
    "Rex sleeps in the kitchen",
    "I walk Rex at seven",
    "Rex hates cats",
]
QUESTIONS = [
    "What is my dog called?", "Which breed is Rex?", "Where does Rex sleep?", "When do I walk Rex?", "Does Rex like cats?",
    "My cat Tom arrived today", "Will Rex like Tom?", "Rex slept beside Tom!", "Where does Tom sleep?", "Who hates cats?",
]  # fmt: skip


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


async def remember(client: Client, who: str, *texts: str) -> None:
    for text in texts:
        added = await client.post("/v1/memory/add", {"user_id": who, "role": "user", "content": text})
        assert added.status == 200, added.body


async def talk(
    client: Client,
    upstream: Upstream,
    who: str,
    messages: list[dict[str, Any]],
    reply: Reply | None = None,
    **more: Any,
) -> Answered:
    """A turn, or a step of one, with all of memory; what is to be kept of it is kept when this returns."""
    headers = {name: value for name, value in more.items() if name.startswith("X_") or name == "Idempotency_Key"}
    body = {"model": "m", "messages": messages} | {k: v for k, v in more.items() if k not in headers}
    answer = await client.recalling(upstream, body, user=who, reply=reply, **headers)
    assert answer.status == 200, answer.body
    stepped = answer.headers["content-type"] == "application/json" and not text_of(answer)
    if not stepped:
        await client.kept(who, answer.headers["x-memoryos-event-id"])
    return answer


def text_of(answer: Answered) -> str:
    return str(answer.json["choices"][0]["message"]["content"] or "")


def before_last_user_message(request: Received) -> bytes:
    """The bytes up to where the last user message begins, or the block that stands before it."""
    last = max(n for n, message in enumerate(request.json["messages"]) if message["role"] == "user")
    block = last - ("<memoryos-context>" in str(request.json["messages"][last - 1]["content"]) if last else 0)
    kept = json.dumps(request.json["messages"][:block])[:-1].encode()
    at = request.body.index(kept) + len(kept) if block else request.body.index(b"[") + 1
    return request.body[:at]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_prompt_cache_when_a_conversation_has_ten_turns_then_each_request_begins_as_the_one_before(
    client: Client, upstream: Upstream, stream: bool
) -> None:
    who = f"cached-{stream}"
    await remember(client, who, *FACTS)
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(QUESTIONS):
        messages.append(user(question))
        said = f"Answer {number}, which is long enough to count"
        reply = stream_reply(said) if stream else json_reply(said)
        await talk(client, upstream, who, messages, reply, stream=stream)
        messages.append(assistant(said))
    requests = upstream.received
    assert len(requests) == len(QUESTIONS)
    assert all(OPEN in request.body for request in requests)
    blocks = {request.body[request.body.index(OPEN) :] for request in requests}
    assert len(blocks) == len(QUESTIONS)  # memory did answer each question anew
    for earlier, later in pairwise(requests):
        prefix = before_last_user_message(earlier)
        assert later.body.startswith(prefix)
        # All that went out before is found again but for the block, which stood behind it.
        assert OPEN not in prefix
        assert later.body.startswith(
            prefix + (b", " if prefix[-1:] == b"}" else b"") + json.dumps(earlier.json["messages"][-1]).encode()
        )


@pytest.mark.parametrize("knows", [True, False], ids=["memories", "none"])
async def test_tool_loop_when_memory_changes_meanwhile_then_what_went_out_stays_and_the_turn_is_kept_once(
    client: Client, upstream: Upstream, knows: bool
) -> None:
    who = f"looper-{knows}"
    if knows:
        await remember(client, who, "I live in Basel")
    messages = [{"role": "system", "content": "Be brief"}, user("How is the weather where I live?")]
    calls = json_reply(None, "tool_calls", tool_calls=[CALL])
    events = set()
    for step in range(4):
        answer = await talk(client, upstream, who, messages, calls if step < 3 else json_reply("Sunny"))
        events.add(answer.headers.get("x-memoryos-event-id", ""))
        assert step == 3 or answer.headers["x-memoryos-remembered"] == "false"
        if step == 0:
            await remember(client, who, "The weather where I live in Bern is mild")
        messages += [
            assistant(None, tool_calls=[CALL]),
            {"role": "tool", "tool_call_id": "c1", "content": f"sun {step}"},
        ]
    assert all((OPEN in request.body) == knows for request in upstream.received)
    for earlier, later in pairwise(upstream.received):
        assert later.body.startswith(earlier.body.removesuffix(b"]}"))
    told = [("user", "I live in Basel")] if knows else []
    told += [("user", "The weather where I live in Bern is mild")]
    await client.keeps(who, *told, ("user", "How is the weather where I live?"), ("assistant", "Sunny"))
    assert len(events - {""}) == 1


async def test_regeneration_when_the_answer_is_the_same_or_another_then_the_question_is_kept_once(
    client: Client, upstream: Upstream
) -> None:
    history = [user("I have a dog"), assistant("Nice"), user("What shall I feed it?")]
    first = await talk(client, upstream, "again", history[:1], json_reply("Nice"))
    said = [
        ("user", "I have a dog"), ("assistant", "Nice"), ("user", "What shall I feed it?"), ("assistant", "Meat"),
        ("assistant", "Bones"),
    ]  # fmt: skip
    ids = set()
    for number, text in enumerate(("Meat", "Meat", "Bones", "Bones", "Meat")):
        again = await talk(client, upstream, "again", history, json_reply(text))
        ids.add(again.headers["x-memoryos-event-id"])
        if number in (0, 2):
            await client.keeps("again", *said[: 4 if number == 0 else 5])
    assert len(ids) == 1
    assert ids != {first.headers["x-memoryos-event-id"]}
    await client.keeps("again", *said)
    state = await client.session.get(f"{client.url}/v1/memory/events/{ids.pop()}", headers={"X-User-ID": "again"})
    assert state.status == 200
    assert (await state.json())["state"] in ("accepted", "stored")


async def test_history_when_it_is_edited_then_nothing_is_kept_twice(client: Client, upstream: Upstream) -> None:
    first, answer, last = user("I live in Basel"), assistant("Fine"), user("Where do I live?")
    there = json_reply("There")
    await talk(client, upstream, "editor", [first], there)
    await talk(client, upstream, "editor", [first, answer, last], there)
    for history in (
        [first, assistant("Edited by the client"), last],
        [user("I live in Bern"), answer, last],
        [{"role": "system", "content": "A summary of what was said"}, last],
        [{"role": "system", "content": "s"}, first, answer, assistant("More"), last],
    ):
        await talk(client, upstream, "editor", history, there)
    await client.keeps(
        "editor",
        ("user", "I live in Basel"), ("assistant", "There"), ("user", "Where do I live?"), ("assistant", "There"),
    )  # fmt: skip


async def test_same_words_when_said_anew_then_kept_anew(client: Client, upstream: Upstream) -> None:
    messages: list[dict[str, Any]] = []
    for number in range(3):
        messages.append(user("Go on"))
        answer = await talk(client, upstream, "reader", messages, json_reply(f"Part {number}"))
        messages.append(assistant(text_of(answer)))
    await client.keeps("reader", *((m["role"], m["content"]) for m in messages))
    for city in ("Bern", "Basel", "Bern"):  # without any history
        await talk(client, upstream, "mover", [user(f"I moved to {city}")])
    await talk(client, upstream, "mover", [user("I moved to Bern")], X_MemoryOS_Session_ID="another")
    said = [content for role, content in await client.said("mover") if role == "user"]
    assert said == ["I moved to Bern", "I moved to Basel", "I moved to Bern", "I moved to Bern"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_idempotency_key_when_repeated_then_the_provider_is_asked_and_the_first_answer_kept(
    client: Client, upstream: Upstream, stream: bool
) -> None:
    who = f"keyed-{stream}"
    one, two = (stream_reply("one"), stream_reply("two")) if stream else (json_reply("one"), json_reply("two"))
    asked = [user("Pick a number")]
    first = await talk(client, upstream, who, asked, one, stream=stream, Idempotency_Key="k1")
    await talk(client, upstream, who, [user("Something else")], Idempotency_Key="k2")
    second = await talk(client, upstream, who, asked, two, stream=stream, Idempotency_Key="k1")
    assert first.headers["x-memoryos-event-id"] == second.headers["x-memoryos-event-id"]
    assert len(upstream.received) == 3
    await client.keeps(
        who, ("user", "Pick a number"), ("assistant", "one"),
        ("user", "Something else"), ("assistant", "You said: Something else"),
    )  # fmt: skip


async def test_ingestion_when_prompts_and_blocks_are_sent_or_echoed_then_only_words_are_kept(
    client: Client, upstream: Upstream
) -> None:
    who = "echo"
    await remember(client, who, "I like green tea")
    question = "Which tea do I like?"
    messages = [
        {"role": "system", "content": "SECRET-SYSTEM"}, {"role": "developer", "content": "SECRET-DEVELOPER"},
        user("An earlier question"), assistant("An earlier answer"), user(question),
    ]  # fmt: skip
    await talk(client, upstream, who, messages)
    block = next(m["content"] for m in upstream.received[-1].json["messages"] if "<memoryos" in m["content"])
    assert "I like green tea" in block
    await talk(client, upstream, who, [user("Repeat all of it")], json_reply(f"{block}\nGreen"))
    cut = json_reply(f"Sure: {block[:-30]}", "length")
    await talk(client, upstream, who, [user(f"{block} And more?")], cut)
    await client.keeps(
        who,
        ("user", "I like green tea"), ("user", question), ("assistant", f"You said: {question}"),
        ("user", "Repeat all of it"), ("assistant", "Green"), ("user", "And more?"), ("assistant", "Sure: "),
    )  # fmt: skip
    for word in ("SECRET", "earlier", "memoryos-context"):
        found = await client.post("/v1/memory/retrieve", {"user_id": who, "query": word, "limit": 50})
        assert all(word not in episode["content"] for episode in found.json["episodes"])


async def test_chats_when_the_same_is_asked_at_once_then_it_is_kept_once(client: Client, upstream: Upstream) -> None:
    await asyncio.gather(*(talk(client, upstream, "twins", [user("Hello there")]) for _ in range(8)))
    assert len(upstream.received) == 8
    await client.keeps("twins", ("user", "Hello there"), ("assistant", "You said: Hello there"))
