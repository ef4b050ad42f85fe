from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from memoryos.settings import MemorySettings
from memoryos_server.domain.chat import jsontext, recalling
from memoryos_server.domain.chat import request as request_module
from memoryos_server.domain.chat import responses as responses_module
from memoryos_server.domain.chat.context import CLOSE, OPEN
from memoryos_server.domain.chat.model import (
    Api,
    ChatRequest,
    MemoryMode,
    MemoryReport,
)
from memoryos_server.domain.chat.service import ChatService
from memoryos_server.domain.core.caller import Caller
from memoryos_server.domain.core.faults import (
    BackendDown,
    DeadlineExceeded,
    Forbidden,
    Invalid,
    Upstream,
    UpstreamRejected,
)
from tests.domain.chat_support import ANYONE, Chat, ListMemory, ask, body, data, flow, open_chat
from tests.upstream import Gate, Reply, completion, delta, error_reply, json_reply, sse, stream_reply


@pytest.fixture
async def chat() -> AsyncIterator[Chat]:
    async with open_chat(recall_deadline_seconds=2.0, remember_deadline_seconds=2.0) as opened:
        yield opened


async def test_complete_when_memory_is_known_then_block_stands_before_the_last_user_message(chat: Chat) -> None:
    memory_id = chat.memory.say("My sister Ingrid keeps bees.")
    chat.memory.say("Somebody else's bees", user="other")
    sent = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who keeps bees?"}]
    answer = await ask(chat, body(messages=sent, seed=1.0))
    (request,) = chat.upstream.received
    got = request.json["messages"]
    assert [got[0], got[2]] == sent
    assert got[1]["role"] == "system"
    assert got[1]["content"].startswith(OPEN)
    assert "Ingrid" in got[1]["content"]
    assert "Somebody" not in got[1]["content"]
    assert b'"seed": 1.0' in request.body
    assert [i.id for i in answer.memory.injected] == [memory_id]
    member = json.loads(answer.body)["memoryos"]
    (injected,) = answer.memory.injected
    assert member["injected"] == [
        {"id": memory_id, "tier": "episode", "score": injected.score, "tokens": injected.tokens}
    ]
    assert 0 < injected.tokens < member["tokens"]
    assert member["tokens"] > 0
    assert (member["source"], member["remembered"]) == ("upstream", True)
    assert member["event_id"] == answer.memory.event_id


async def test_complete_when_answered_then_every_other_byte_is_unchanged(chat: Chat) -> None:
    chat.upstream.will(json_reply("Hi"), json_reply("Hi"))
    original = completion("Hi")
    on = (await ask(chat, body("x"))).body
    start = on.index(b',"memoryos":')
    assert on[:start] + on[on.rindex(b"}") :] == original
    off = await ask(chat, body("x"), memory=MemoryMode.OFF)
    assert off.body == original
    assert chat.upstream.received[1].body.decode() == body("x")


async def test_complete_when_turn_ends_then_question_and_answer_are_remembered_once(chat: Chat) -> None:
    sent = [
        {"role": "system", "content": "prompt"},
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "older"},
        {"role": "user", "content": "I like tea"},
    ]
    answer = await ask(chat, body(messages=sent))
    assert chat.memory.said() == [("user", "I like tea"), ("assistant", "You said: I like tea")]
    assert chat.memory.turns[0][2].event_id == answer.memory.event_id
    assert chat.memory.turns[1][2].event_id == answer.memory.event_id + ":assistant"
    assert chat.memory.turns[0][2].session_id == answer.memory.session_id


async def test_complete_when_block_is_echoed_then_it_is_not_remembered(chat: Chat) -> None:
    chat.upstream.will(json_reply(f"{OPEN}\nleak\n{CLOSE} fine"))
    await ask(chat, body(f"look: {OPEN}\nstolen\n{CLOSE} ok"))
    assert chat.memory.said() == [("user", "look: ok"), ("assistant", "fine")]


@pytest.mark.parametrize("finish", ["tool_calls", "function_call"])
async def test_complete_when_turn_goes_on_then_nothing_is_remembered_yet(chat: Chat, finish: str) -> None:
    chat.upstream.will(json_reply(None, finish, tool_calls=[{"id": "t"}]))
    answer = await ask(chat, body("weather?"))
    assert chat.memory.said() == []
    assert (answer.memory.remembered, answer.memory.event_id, answer.finish_reason) == ("false", "", finish)


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_call_when_it_ends_with_stop_then_the_turn_is_still_remembered_once(
    chat: Chat, stream: bool
) -> None:
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    user = {"role": "user", "content": "Is it raining?"}
    if stream:
        first = [delta(None, tool_calls=calls), delta(None, "stop")]
        chat.upstream.will(Reply(content_type="text/event-stream", body=sse(*first)), stream_reply("No."))
        report = (await flow(chat, body(messages=[user], stream=True)))[-1].memory
    else:
        chat.upstream.will(json_reply(None, "stop", tool_calls=calls), json_reply("No."))
        report = (await ask(chat, body(messages=[user]))).memory
    assert (report.remembered, report.event_id, chat.memory.said()) == ("false", "", [])
    loop = [user, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": "c", "content": "dry"}]
    if stream:
        await flow(chat, body(messages=loop, stream=True))
    else:
        await ask(chat, body(messages=loop))
    assert chat.memory.said() == [("user", "Is it raining?"), ("assistant", "No.")]


async def test_complete_when_the_answer_holds_no_choice_then_no_event_is_named(chat: Chat) -> None:
    chat.upstream.will(Reply(body=[b'{"error":{"message":"in a 200"}}']))
    answer = await ask(chat, body("hello"))
    assert (answer.memory.remembered, answer.memory.event_id, chat.memory.said()) == ("false", "", [])


async def test_builtin_when_memory_takes_too_long_then_deadline(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalling, "BUILTIN_RECALL_SECONDS", 0.05)
    chat.memory.delay = 5.0
    with pytest.raises(DeadlineExceeded):
        await ask(chat, body("Who keeps bees?", model="memoryos/recall"))


@pytest.mark.parametrize("api", Api)
@pytest.mark.parametrize("large", [True, False])
async def test_stream_when_the_body_is_large_then_it_is_read_once_and_beside_the_loop(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, api: Api, large: bool
) -> None:
    read = []

    def scan(text: str) -> object:
        read.append(threading.current_thread() is threading.main_thread())
        return jsontext.members(text)

    monkeypatch.setattr(request_module if api is Api.CHAT_COMPLETIONS else responses_module, "members", scan)
    said = "bees " * (100_000 if large else 10)
    sent = {"messages": [{"role": "user", "content": said}]} if api is Api.CHAT_COMPLETIONS else {"input": said}
    text = json.dumps({"model": "fake-1"} | sent)
    chat.upstream.will(stream_reply("yes"))
    with suppress(Upstream):  # what is answered here is no response
        await flow(chat, text, api=api, memory=MemoryMode.OFF)
    assert chat.upstream.received[0].body == text[:-1].encode() + b',"stream":true}'
    assert read == [not large]


@pytest.mark.parametrize("text", ["[" * 300_000, '{"model":"m","messages":' + "[" * 300_000])
async def test_chat_when_a_large_body_is_malformed_then_it_is_refused(chat: Chat, text: str) -> None:
    with pytest.raises(Invalid):
        await ask(chat, text)


@pytest.mark.parametrize("model", ["fake-1", "memoryos/recall"])
async def test_chat_when_memories_are_very_long_then_other_chats_go_on(chat: Chat, model: str) -> None:
    for number in range(30):
        chat.memory.say(f"蜜蜂 {number} " + "蜂蜜很甜。" * 5_000)
    found = await chat.memory.recall("default", "default_user", "蜜蜂", limit=30)

    async def at_once(*_: object, **__: object) -> object:
        return found

    monkey = pytest.MonkeyPatch()
    monkey.setattr(chat.memory, "recall", at_once)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            since = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - since)

    ticking = asyncio.create_task(tick())
    began = time.monotonic()
    try:
        await ask(chat, body("蜜蜂", model=model), memory=MemoryMode.READ)
    finally:
        ticking.cancel()
        monkey.undo()
    # Read on the loop, all of it would be one pause; a busy machine stretches both alike.
    assert longest < max(0.25, 0.5 * (time.monotonic() - began))


async def test_tool_loop_when_memory_changed_meanwhile_then_same_block_byte_for_byte(chat: Chat) -> None:
    chat.memory.say("I live in Basel")
    first = [{"role": "user", "content": "weather where I live?"}]
    await ask(chat, body(messages=first), memory=MemoryMode.READ)
    chat.memory.say("I live in Bern now, weather is mild")
    loop = [*first, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "sun"}]
    await ask(chat, body(messages=loop), memory=MemoryMode.READ)
    before, after = (r.json["messages"] for r in chat.upstream.received)
    assert after[0] == before[0]
    assert after[1:] == loop
    assert chat.memory.recalls == 1


async def test_prompt_cache_when_next_turn_comes_then_prefix_before_last_user_message_is_common(chat: Chat) -> None:
    chat.memory.say("tea is good")
    first = [{"role": "system", "content": "s"}, {"role": "user", "content": "tea?"}]
    await ask(chat, body(messages=first))
    await ask(
        chat, body(messages=[*first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "more tea?"}])
    )
    one, two = (r.body for r in chat.upstream.received)
    prefix = json.dumps(first[0]).encode()
    assert one[: one.index(prefix) + len(prefix)] == two[: two.index(prefix) + len(prefix)]


async def test_complete_when_memory_is_slow_then_answer_comes_without_it() -> None:
    async with open_chat(recall_deadline_seconds=0.05, remember_deadline_seconds=0.05) as chat:
        chat.memory.say("tea is good")
        chat.memory.delay = 0.6
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await ask(chat, body("tea?"))
        assert loop.time() - began < 0.4
        assert answer.memory.degraded
        assert answer.memory.injected == ()
        assert answer.memory.remembered == "false"
        assert chat.upstream.received[0].body.decode() == body("tea?")
        # What was handed over is not taken back.
        await chat.service.drain(2)
        assert ("user", "tea?") in chat.memory.said()


@pytest.mark.parametrize("failure", [BackendDown("down"), RuntimeError("bug")])
async def test_complete_when_memory_fails_then_answer_comes_and_says_not_remembered(
    chat: Chat, failure: Exception
) -> None:
    chat.memory.failure = failure
    answer = await ask(chat, body("tea?"))
    assert answer.content == "You said: tea?"
    assert (answer.memory.remembered, answer.memory.degraded) == ("false", True)
    assert json.loads(answer.body)["memoryos"]["remembered"] is False


async def test_idempotency_key_when_repeated_then_remembered_once_and_first_answer_stands(chat: Chat) -> None:
    chat.upstream.will(json_reply("one"), json_reply("two"))
    first = await ask(chat, body("q"), idempotency_key="k")
    second = await ask(chat, body("q"), idempotency_key="k")
    assert first.memory.event_id == second.memory.event_id
    assert second.memory.remembered == "true"
    assert chat.memory.said() == [("user", "q"), ("assistant", "one")]
    assert len(chat.upstream.received) == 2
    await ask(chat, body("another"), idempotency_key="k")
    assert ("user", "another") in chat.memory.said()


async def test_repeat_when_ten_minutes_are_over_or_it_was_forgotten_then_it_is_another_turn(chat: Chat) -> None:
    async def asked() -> str:
        return str((await ask(chat, body("q"), session_id="s")).memory.event_id)

    first = await asked()
    chat.clock.now += 599
    assert await asked() == first
    chat.clock.now += 599  # since the last time
    assert await asked() == first
    chat.service.forget("default", "someone-else")
    assert await asked() == first
    chat.clock.now += 601
    second = await asked()
    assert second != first
    chat.service.forget("default", "default_user")
    assert len({first, second, await asked()}) == 3
    assert chat.memory.said() == [("user", "q"), ("assistant", "You said: q")] * 3


async def test_tool_loop_when_memories_were_forgotten_while_they_were_gathered_then_they_are_not_kept_for_it(
    chat: Chat,
) -> None:
    chat.memory.say("I live in Basel")
    chat.memory.delay = 0.05
    first = [{"role": "user", "content": "weather where I live?"}]
    asking = asyncio.create_task(ask(chat, body(messages=first)))
    while not chat.memory.recalls:  # noqa: ASYNC110  # the fake sets no event
        await asyncio.sleep(0.001)
    chat.memory.turns.clear()
    chat.service.forget("default", "default_user")
    await asking
    loop = [*first, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "sun"}]
    await ask(chat, body(messages=loop))
    assert chat.memory.recalls == 2
    assert "Basel" not in json.dumps(chat.upstream.received[1].json)


async def test_tool_loop_when_memory_failed_at_its_beginning_then_none_is_injected_later(chat: Chat) -> None:
    chat.memory.say("I live in Basel")
    chat.memory.failure = BackendDown("down")
    first = [{"role": "user", "content": "weather where I live?"}]
    await ask(chat, body(messages=first))
    chat.memory.failure = None
    loop = [*first, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "sun"}]
    await ask(chat, body(messages=loop))
    assert chat.upstream.received[1].json["messages"] == loop
    await ask(chat, body(messages=first))
    assert OPEN in chat.upstream.received[2].json["messages"][0]["content"]


async def test_memory_mode_when_read_or_write_then_only_that(chat: Chat) -> None:
    chat.memory.say("tea is good")
    read = await ask(chat, body("tea?"), memory=MemoryMode.READ)
    assert len(read.memory.injected) == 1
    assert len(chat.memory.turns) == 1
    write = await ask(chat, body("tea?"), memory=MemoryMode.WRITE)
    assert write.memory.injected == ()
    assert len(chat.memory.turns) == 3


async def test_session_when_not_named_then_new_after_idle_gap(chat: Chat) -> None:
    sessions = []
    for pause in (0, 1799, 1799, 1801):
        chat.clock.now += pause
        sessions.append((await ask(chat, body("x"))).memory.session_id)
    assert sessions[0] == sessions[1] == sessions[2] != sessions[3]
    assert (await ask(chat, body("x"), session_id="mine")).memory.session_id == "mine"


async def test_session_when_named_as_the_turns_without_one_then_refused(chat: Chat) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(chat, body("x"), session_id="-")
    assert caught.value.param == "session_id"
    assert chat.memory.turns == []


async def test_long_text_when_remembered_then_split_without_loss(chat: Chat) -> None:
    text = "word " * 30_000
    chat.upstream.will(json_reply("ok"))
    await ask(chat, body(text), memory=MemoryMode.WRITE)
    pieces = [content for role, content in chat.memory.said() if role == "user"]
    assert len(pieces) == 2
    assert "".join(pieces) == text


async def test_model_when_unknown_then_documented_error(chat: Chat) -> None:
    with pytest.raises(Invalid) as caught:
        await ask(chat, body("x", model="gpt-9"))
    fault = caught.value
    assert (fault.message, fault.details, fault.reason) == (
        "Invalid model name",
        "Model 'gpt-9' is not supported",
        "model_not_found",
    )
    with pytest.raises(Invalid):
        await ChatService(ListMemory(), None, MemorySettings()).complete(ANYONE, ChatRequest(body("x")))
    await ask(chat, body("x"))
    await ask(chat, body("x"))
    assert chat.upstream.lists == 1


async def test_model_when_provider_has_no_list_then_any_name_passes() -> None:
    async with open_chat(models=None) as chat:
        assert (await ask(chat, body("x", model="whatever"))).content == "You said: x"
        assert [m.id for m in await chat.service.models()] == ["memoryos/recall"]


KEY = Caller("default", user_id="ada", permissions=frozenset({"chat"}), key_id="k")


@pytest.mark.parametrize(
    ("who", "label", "owner"),
    [
        (ANYONE, "", "default_user"),
        (ANYONE, "bob", "bob"),
        (Caller("default", anonymous=True, named_user="cy"), "bob", "cy"),
        (KEY, "", "ada"),
        (KEY, "bob", "ada"),
        (Caller("default", user_id="app", permissions=frozenset({"chat", "act_as"})), "", None),
        (Caller("default", user_id="app", permissions=frozenset({"chat", "act_as"})), "bob", "bob"),
        (Caller("default", user_id="app", permissions=frozenset({"chat", "act_as"}), named_user="cy"), "bob", "cy"),
        (Caller("default", user_id="root", permissions=frozenset({"admin"})), "", "root"),
        (Caller("default", user_id="root", permissions=frozenset({"admin"})), "bob", "bob"),
    ],
)
async def test_owner_when_caller_and_label_vary_then_as_documented(
    chat: Chat, who: Caller, label: str, owner: str | None
) -> None:
    answer = await ask(chat, body("x", user=label) if label else body("x"), who)
    assert {user for _, user, _ in chat.memory.turns} == ({owner} if owner else set())
    assert (b"memoryos" in answer.body) is (owner is not None)
    assert chat.upstream.received[0].json.get("user", "") == label


async def test_owner_when_key_names_another_then_forbidden(chat: Chat) -> None:
    with pytest.raises(Forbidden, match="act_as"):
        await ask(chat, body("x"), KEY, user_id="bob")
    assert chat.upstream.received == []


async def test_complete_when_upstream_refuses_then_fault_and_nothing_remembered(chat: Chat) -> None:
    chat.upstream.will(error_reply(400))
    with pytest.raises(UpstreamRejected):
        await ask(chat, body("x"))
    assert chat.memory.said() == []


async def test_complete_when_cancelled_then_upstream_is_closed_and_nothing_remembered(chat: Chat) -> None:
    gate = Gate()
    chat.upstream.will(Reply(before=[gate]))
    task = asyncio.create_task(ask(chat, body("x")))
    await asyncio.wait_for(gate.reached.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(chat.upstream.received[0].closed.wait(), 1)
    assert chat.memory.said() == []


async def test_complete_when_cancelled_during_acceptance_then_it_is_not_undone(chat: Chat) -> None:
    chat.memory.delay = 0.3
    task = asyncio.create_task(ask(chat, body("x"), memory=MemoryMode.WRITE))
    await asyncio.wait_for(chat.memory.entered.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await chat.service.drain(2)
    assert chat.memory.said() == [("user", "x"), ("assistant", "You said: x")]


async def test_builtin_when_told_then_recalls_and_its_answers_are_not_remembered(chat: Chat) -> None:
    told = await ask(chat, body("My sister Ingrid keeps bees.", model="memoryos/recall"))
    assert told.memory.remembered == "true"
    asked = await ask(chat, body("Who keeps bees?", model="memoryos/recall"))
    assert "Ingrid" in asked.content
    assert asked.memory.source == "recall"
    assert len(asked.memory.injected) == 1
    assert chat.memory.said() == [("user", "My sister Ingrid keeps bees."), ("user", "Who keeps bees?")]
    assert chat.upstream.received == []
    value = json.loads(asked.body)
    assert value["object"] == "chat.completion"
    assert value["usage"]["total_tokens"] == value["usage"]["prompt_tokens"] + value["usage"]["completion_tokens"]


async def test_builtin_when_streamed_then_many_deltas_usage_and_done(chat: Chat) -> None:
    chat.memory.say("My sister Ingrid keeps bees.")
    request = body("Who keeps bees?", model="memoryos/recall", stream=True, stream_options={"include_usage": True})
    events = await flow(chat, request)
    frames = data(events).split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    assert "Ingrid" in text
    assert len(chunks) > 5
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    assert text == (await ask(chat, body("Who keeps bees?", model="memoryos/recall"), memory=MemoryMode.READ)).content


async def test_builtin_when_memory_is_down_then_fault(chat: Chat) -> None:
    chat.memory.failure = BackendDown("down")
    with pytest.raises(BackendDown):
        await ask(chat, body("Who?", model="memoryos/recall"))


async def test_report_when_remembered_late_then_event_id_is_kept() -> None:
    async with open_chat(remember_deadline_seconds=0.01) as chat:
        chat.memory.delay = 0.2
        answer = await ask(chat, body("x"), memory=MemoryMode.WRITE)
        assert isinstance(answer.memory, MemoryReport)
        assert answer.memory.remembered == "false"
        await chat.service.drain(2)
        assert chat.memory.turns[0][2].event_id == answer.memory.event_id
