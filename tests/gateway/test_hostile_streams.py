"""Streams that broke other gateways, and streams that are merely odd: legal bytes arrive unchanged, broken ones say so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.gateway.conftest import SILENCE_SECONDS, Client
from tests.upstream import Die, Gate, Reply, Sleep, Upstream, delta, sse

END = delta(None, "stop")
CUT = {"end": False}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


@dataclass(frozen=True)
class Stream:
    """What a provider sends.

    Attributes:
        body: The pieces, in order.
        text: What is remembered of the answer; None: nothing is.
        lost: The end of it that cannot arrive, because it is no whole event, or follows `[DONE]`.
        error: The code of the error that the client gets behind it, or "".
        reply: What is special in how it is sent.
        ask: What is special in the request.
    """

    body: Sequence[bytes | Gate | Sleep]
    text: str | None = "Hi"
    lost: bytes = b""
    error: str = ""
    reply: dict[str, Any] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)

    @property
    def sent(self) -> bytes:
        return b"".join(piece for piece in self.body if isinstance(piece, bytes))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def choice(index: int, content: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": {} if content is None else {"content": content}, "finish_reason": finish}


def tool(arguments: str, **more: Any) -> dict[str, Any]:
    return delta(None, tool_calls=[{"index": 0, "function": {"arguments": arguments}, **more}])


ODD = "你好 🙂 é"
PLAIN = b"".join(sse(delta(ODD), END))
CRLF = PLAIN.replace(b"\n", b"\r\n")
CR = PLAIN.replace(b"\n", b"\r")
AZURE_FILTERS = {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
PICTURE = "QUJD" * (10 * 1024 * 1024 // 4)
UPDATES = [delta(str(n % 10), usage={"total_tokens": n}) for n in range(20)]

LEGAL = {
    # What other gateways broke.
    "azure_first_frame_without_choices": Stream(sse(AZURE_FILTERS, delta("Hi"), END)),
    "choices_empty_or_null_midway": Stream(sse(delta("H"), {"choices": []}, {"choices": None}, {}, delta("i"), END)),
    "usage_on_a_chunk_with_choices": Stream(sse(delta("Hi", usage=USAGE), END | {"usage": USAGE})),
    "usage_last_without_choices": Stream(sse(delta("Hi"), END, {"choices": [], "usage": USAGE})),
    "usage_cumulative_on_each_chunk": Stream(sse(*UPDATES, END), "01234567890123456789"),
    "a_hundred_equal_deltas": Stream(sse(*[delta("ha")] * 100, END), "ha" * 100),
    "null_and_unknown_members": Stream(sse(delta("Hi") | {"service_tier": None, "x_odd": [1.0, {}]}, END)),
    "reasoning_before_content": Stream(sse(delta(None, reasoning_content="hm"), delta("Hi"), END)),
    "error_event_of_the_provider": Stream(sse(delta("Hi"), {"error": {"message": "busy"}}, done=False), None),
    # What the format allows.
    "one_byte_chunks": Stream(cut(PLAIN, 1), ODD),
    "two_byte_chunks": Stream(cut(CRLF, 2), ODD),
    "utf8_cut_in_characters": Stream(cut(PLAIN, 7), ODD),
    "crlf": Stream([CRLF], ODD),
    "crlf_cut_in_the_middle": Stream(cut(CRLF, 1), ODD),
    "cr": Stream([CR], ODD),
    "bom": Stream([b"\xef\xbb\xbf" + PLAIN], ODD),
    "bom_cut": Stream([b"\xef", b"\xbb", b"\xbf" + PLAIN], ODD),
    "comments": Stream([b": hello\n\n", *sse(delta("Hi"), done=False), b":\n:\n\n: x\n", *sse(END), b": bye\n\n"], lost=b": bye\n\n"),
    "comment_within_an_event": Stream([b'data: {"choices":[],\n: ping\ndata: "x":1}\n\n', *sse(delta("Hi"), END)]),
    "names_ids_and_retries": Stream([b"event: a\nid: 7\nretry: 5\n" + sse(delta("Hi"))[0], b"id\n\n", *sse(END)]),
    "data_without_a_blank": Stream([b"data:" + json.dumps(delta("Hi")).encode() + b"\n\n", *sse(END)]),
    "data_on_several_lines": Stream([b"data: " + json.dumps(delta("Hi"), indent=1).replace("\n", "\ndata: ").encode(), b"\n\n", *sse(END)]),
    "not_json": Stream([b"data: nope\n\ndata: [1]\n\ndata: \xff\xfe\n\n", *sse(delta("Hi"), END)]),
    "ten_megabytes_in_a_frame": Stream(sse(delta("Hi"), delta(None, images=[PICTURE]), END)),
    "frame_longer_than_what_is_read": Stream(sse(delta("Hi"), delta(None, images=[PICTURE * 2]), END), None),
    "done_missing": Stream(sse(delta("Hi"), END, done=False)),
    "done_missing_and_no_blank_line": Stream([b"".join(sse(delta("Hi"), END, done=False))[:-2]]),
    "done_twice": Stream([*sse(delta("Hi"), END), b"data: [DONE]\n\n"], lost=b"data: [DONE]\n\n"),
    "frames_behind_done": Stream([*sse(delta("Hi"), END), *sse(delta("more"))], lost=b"".join(sse(delta("more")))),
    "character_cut_in_two_deltas": Stream(
        [json.dumps(delta(one)).encode().join((b"data: ", b"\n\n")) for one in ("hi \ud83d", "\ude00 you")] + sse(END),
        "hi \U0001f600 you",
    ),
    "done_in_pieces": Stream([*sse(delta("Hi"), END, done=False), b"da", b"ta: [DO", b"NE]", b"\n", b"\n"]),
    "done_without_a_line_end": Stream([*sse(delta("Hi"), END, done=False), b"data: [DONE]"]),
    "death_after_done": Stream(sse(delta("Hi"), END), reply=CUT),
    "end_of_connection_is_the_end": Stream(sse(delta("Hi"), END), reply={"chunked": False}),
    "several_choices": Stream(
        sse({"choices": [choice(1, "no"), choice(0, "H")]}, {"choices": [choice(0, "i", "stop")]},
            {"choices": [choice(1, "pe", "length")]}),
        ask={"n": 2},
    ),
    "fewer_choices_than_asked_for": Stream(sse(delta("Hi"), END), ask={"n": 4}),
    "content_type_of_its_own": Stream(sse(delta("Hi"), END), reply={"content_type": "application/octet-stream"}),
}  # fmt: skip

BROKEN = {
    "death_swallowed": Stream(sse(delta("Hi"), done=False), None, error="upstream_failed", reply=CUT),
    "clean_end_without_an_end": Stream(sse(delta("Hi"), done=False), None, error="upstream_failed"),
    "end_of_connection_without_an_end": Stream(
        sse(delta("Hi"), done=False), None, error="upstream_failed", reply={"chunked": False}
    ),
    "done_without_an_end": Stream(sse(delta("Hi")), None, b"data: [DONE]\n\n", error="upstream_failed"),
    "shorter_than_announced": Stream(
        sse(delta("Hi"), done=False), None, error="upstream_failed", reply={"length": 100_000, "end": False}
    ),
    "cut_in_an_event": Stream(
        [*sse(delta("Hi"), done=False), b'data: {"cho'], None, b'data: {"cho', error="upstream_failed", reply=CUT
    ),
    "cut_in_a_character": Stream(
        [*sse(delta("Hi"), done=False), b'data: "\xe4\xbd'], None, b'data: "\xe4\xbd', error="upstream_failed", reply=CUT
    ),
    "clean_end_in_an_event": Stream(
        [*sse(delta("Hi"), done=False), b'data: {"cho'], None, b'data: {"cho', error="upstream_failed"
    ),
    "one_of_two_choices_ends": Stream(
        sse({"choices": [choice(0, "Hi", "stop"), choice(1, "n")]}, done=False), None, error="upstream_failed",
        ask={"n": 2},
    ),
    "one_of_two_choices_comes": Stream(sse(delta("Hi"), END, done=False), None, error="upstream_failed", ask={"n": 2}),
    "done_with_a_choice_unended": Stream(
        sse({"choices": [choice(0, "Hi", "stop"), choice(1, "n")]}), None, b"data: [DONE]\n\n", error="upstream_failed",
        ask={"n": 2},
    ),
    "death_behind_a_frame_too_long": Stream(
        sse(delta("Hi"), delta(None, images=[PICTURE * 2]), done=False), None, error="upstream_failed", reply=CUT
    ),
    "done_behind_an_error_event": Stream(sse(delta("Hi"), {"error": {"message": "busy"}}), None, b"data: [DONE]\n\n"),
}  # fmt: skip


def model_of(name: str) -> str:
    return f"hostile-{name}"


async def play(client: Client, upstream: Upstream, name: str, stream: Stream) -> bytes:
    """What the client gets of a stream with memory on, and what was remembered is checked."""
    reply = Reply(body=stream.body, **({"content_type": "text/event-stream"} | stream.reply))
    upstream.will(reply, model=model_of(name))
    asked = {"model": model_of(name), "stream": True, "messages": [{"role": "user", "content": "Go"}], **stream.ask}
    answer = await client.chat(asked, user=name)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/event-stream"
    await client.keeps(name, *([] if stream.text is None else [("user", "Go"), ("assistant", stream.text)]))
    return answer.body


@pytest.mark.parametrize("name", LEGAL)
async def test_stream_when_odd_but_legal_then_every_byte_up_to_done_arrives(
    client: Client, upstream: Upstream, name: str
) -> None:
    stream = LEGAL[name]
    assert await play(client, upstream, name, stream) == stream.sent.removesuffix(stream.lost)


def is_error_frame(frame: bytes, code: str) -> bool:
    """Whether it is one event, our error."""
    if not (frame.startswith(b"data: ") and frame.endswith(b"\n\n") and frame.count(b"\n") == 2):
        return False
    error = json.loads(frame[6:])["error"]
    return bool(error["code"] == code and error["message"])


@pytest.mark.parametrize("name", BROKEN)
async def test_stream_when_broken_then_whole_events_and_one_error_and_no_done(
    client: Client, upstream: Upstream, name: str
) -> None:
    stream = BROKEN[name]
    got = await play(client, upstream, name, stream)
    whole = stream.sent.removesuffix(stream.lost)
    assert got.startswith(whole)
    assert b"[DONE]" not in got
    rest = got[len(whole) :]
    assert is_error_frame(rest, stream.error) if stream.error else rest == b""


async def test_stream_when_the_provider_falls_silent_then_its_kind_decides(client: Client, upstream: Upstream) -> None:
    """All at once, because each takes seconds."""
    ping = [step for _ in range(100) for step in (b": ping\n\n", Sleep(0.25))]
    half = [step for _ in range(100) for step in (b"x", Sleep(0.25))]
    silent = {
        "heartbeats": Stream([*sse(delta("Hi"), done=False), *ping], None, error="deadline_exceeded"),
        "nothing": Stream([*sse(delta("Hi"), done=False), Gate()], None, error="deadline_exceeded"),
        "half_an_event": Stream([*sse(delta("Hi"), done=False), b"data: ", *half], None, error="deadline_exceeded"),
        "after_the_finish": Stream([*sse(delta("Hi"), END, done=False), Gate()]),
        "after_done": Stream([*sse(delta("Hi"), END), Gate()]),
        "after_an_error": Stream([*sse(delta("Hi"), {"error": {"message": "busy"}}, done=False), Gate()], None),
        "between_choices": Stream(
            [*sse(delta("Hi"), END, done=False), Gate()], None, error="deadline_exceeded", ask={"n": 2}
        ),
    }
    began = asyncio.get_running_loop().time()
    got = await asyncio.gather(*(play(client, upstream, name, stream) for name, stream in silent.items()))
    assert asyncio.get_running_loop().time() - began < 4 * SILENCE_SECONDS
    for body, (name, stream) in zip(got, silent.items(), strict=True):
        whole = b"".join(piece for piece in stream.body if isinstance(piece, bytes) and piece.startswith(b"data: {"))
        if name == "after_done":
            whole = stream.sent
        assert body.startswith(whole), name
        rest = body[len(whole) :].replace(b": ping\n\n", b"")
        assert is_error_frame(rest, stream.error) if stream.error else rest == b"", name
    assert upstream.connections == len(silent)


@pytest.mark.parametrize(
    "frames",
    [
        sse(delta("one"), delta("two"), END),
        sse(tool('{"a"', id="c1"), tool(":1}"), delta(None, "tool_calls"), {"choices": [], "usage": USAGE}),
        [b": waking up\n\n", *sse(delta("one"), END)],
    ],
    ids=["text", "tool_with_usage", "comment"],
)
async def test_stream_when_the_next_frame_is_not_sent_yet_then_the_one_before_is_out(
    client: Client, upstream: Upstream, frames: list[bytes]
) -> None:
    gates = [Gate() for _ in frames]
    steps = [step for pair in zip(frames, gates, strict=True) for step in pair]
    upstream.will(Reply(content_type="text/event-stream", body=steps))
    asked = {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Go"}],
    }
    async with client.session.post(
        f"{client.url}/v1/chat/completions", json=asked, headers={"X-User-ID": "gated"}
    ) as answer:
        assert answer.headers["X-MemoryOS-Remembered"] == "pending"
        for frame, gate in zip(frames, gates, strict=True):
            assert await asyncio.wait_for(answer.content.readexactly(len(frame)), 10) == frame
            assert gate.reached.is_set()
            gate.open()
        assert await answer.content.read() == b""


async def test_stream_when_the_connection_is_reset_then_an_error_behind_what_came(
    client: Client, upstream: Upstream
) -> None:
    gate = Gate()
    frame = sse(delta("one"))[0]
    upstream.will(Reply(content_type="text/event-stream", body=[frame, gate, Die()]))
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Go"}]}
    async with client.session.post(f"{client.url}/v1/chat/completions", json=asked) as answer:
        assert await answer.content.readexactly(len(frame)) == frame
        gate.open()
        assert is_error_frame(await answer.content.read(), "upstream_failed")
    assert len(upstream.received) == 1
