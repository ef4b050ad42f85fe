from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryos_server.domain.chat.passing import MOST_HELD_BYTES, Held
from memoryos_server.domain.chat.responses import ResponsesTee, said_in
from memoryos_server.domain.chat.sse import SseSplitter, Tee, text_of
from tests.upstream import delta, sse

HOSTILE = (
    b"\xef\xbb\xbf: ping\r\n\r\n"
    b"event: message\rdata: one\r\r"
    b"data:two\r\ndata:  three\r\n\r\n"
    b": comment\n: another\n\n"
    b"data\n\n" + "data: 你好 🙂\r\n\r\n".encode() + b"id: 7\nretry: 5\ndata: [DONE]\r\n\r\n"
)
EXPECTED = [b"one", b"two\n three", b"", "你好 🙂".encode(), b"[DONE]"]


def split(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(c % (len(stream) + 1) for c in cuts), len(stream)]
    return [stream[a:b] for a, b in pairwise(places)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_splitter_when_cut_anywhere_then_same_events_and_offsets(cuts: list[int]) -> None:
    splitter = SseSplitter()
    events = [event for piece in split(HOSTILE, cuts) for event in splitter.feed(piece)]
    assert [event.data for event in events] == EXPECTED
    assert HOSTILE[events[0].start :].startswith(b"data: one")
    assert splitter.done_at == HOSTILE.index(b"data: [DONE]")
    assert splitter.finish() == []


def test_splitter_when_one_byte_chunks_then_same_events() -> None:
    splitter = SseSplitter()
    assert [e.data for i in range(len(HOSTILE)) for e in splitter.feed(HOSTILE[i : i + 1])] == EXPECTED


def test_splitter_when_event_is_too_long_then_passes_it_over_in_bounded_memory() -> None:
    splitter = SseSplitter(max_event_bytes=100)
    assert splitter.feed(b"data: ") == []
    for _ in range(1000):
        assert splitter.feed(b"x" * 100) == []
        assert len(splitter._line) <= 100
    assert [e.data for e in splitter.feed(b"\n\ndata: ok\n\n")] == [b"ok"]
    assert splitter.overflowed


def test_splitter_when_done_line_ends_then_known_before_the_blank_line() -> None:
    splitter = SseSplitter()
    splitter.feed(b"data: x\n\ndata: [DONE]")
    assert splitter.done_at is None
    splitter.feed(b"\n")
    assert splitter.done_at == 9


def test_tee_when_answer_ends_then_has_text_finish_and_usage() -> None:
    tee = Tee()
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    other = {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]}
    stream = b"".join(sse({"choices": []}, delta("He"), other, delta("llo"), delta(None, "stop"), usage))
    pieces = [p for i in range(0, len(stream), 7) for p in tee.feed(stream[i : i + 7])]
    assert (tee.content, tee.finished, tee.usage, tee.done) == ("Hello", True, {"total_tokens": 3}, True)
    assert "".join(p.content for p in pieces) == "Hello"
    assert json.loads(pieces[1].chunk_json) == delta("He")


@pytest.mark.parametrize(
    "odd", [b"data: nope\n\n", b"data: [1]\n\n", b'data: {"choices": 5}\n\n', b"data: \xff\xfe\n\n", b"data: null\n\n"]
)
def test_tee_when_event_is_odd_then_passes_it_over(odd: bytes) -> None:
    tee = Tee()
    tee.feed(odd)
    tee.feed(b"".join(sse(delta("fine"), delta(None, "stop"))))
    assert (tee.content, tee.finished, tee.broken) == ("fine", True, False)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(ANYTHING, ANYTHING)
def test_text_when_a_message_holds_anything_that_json_can_say_then_never_raises(kind: object, said: object) -> None:
    parts = [{"type": kind, "text": said}, {"type": "text", "text": "fine"}]
    assert text_of(parts).endswith("fine")
    text_of(said)
    found = said_in(
        {"status": kind, "output": [{"type": kind, "content": said}, {"type": "message", "content": parts}]}
    )
    assert found.content.endswith("fine")
    for tee in (ResponsesTee(), Tee()):
        tee.feed(b"".join(sse({"type": kind, "delta": said, "response": said, "choices": said, "error": None})))
        assert not tee.broken


def test_tee_when_error_event_then_keeps_its_message() -> None:
    tee = Tee()
    tee.feed(b"".join(sse({"error": {"message": "overloaded"}}, done=False)))
    assert tee.error == "overloaded"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_tee_when_fed_garbage_then_never_raises(chunks: list[bytes]) -> None:
    tee = Tee()
    for chunk in chunks:
        tee.feed(chunk)
    tee.finish()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_splitter_when_cut_anywhere_then_whole_events_lie_before_whole_to(cuts: list[int]) -> None:
    splitter = SseSplitter()
    at, seen = 0, 0
    for piece in split(HOSTILE, cuts):
        seen += len(splitter.feed(piece))
        at += len(piece)
        assert splitter.whole_to <= at
        # What lies before holds the events that were given, and nothing of the next.
        alone = SseSplitter()
        assert len(alone.feed(HOSTILE[: splitter.whole_to])) == seen
        assert alone.finish() == []
    assert splitter.whole_to == len(HOSTILE)


def test_held_when_an_event_is_long_then_it_goes_before_it_is_whole() -> None:
    tee = Tee()
    held = Held(tee)
    first, long = b"data: {}\n\n", b"data: " + b"x" * MOST_HELD_BYTES
    given_on = []
    for chunk in (first + long[:10], long[10:], b"\n", b"\ndata: [DO", b"NE]\n\n"):
        tee.feed(chunk)
        held.add(chunk)
        given_on.append(held.due())
    assert given_on == [first, long, b"\n", b"\n", b""]
    held.release()
    assert held.due() == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("choices", "frames", "finished", "complete"),
    [
        (1, [delta("a")], False, False),
        (1, [delta("a"), delta(None, "stop")], True, True),
        (2, [delta("a"), delta(None, "stop")], False, True),
        (2, [{"choices": [{"index": 1, "finish_reason": "stop"}]}, delta("a")], False, False),
        (2, [{"choices": [{"index": 1, "finish_reason": "stop"}]}, delta("a", "stop")], True, True),
        (1, [{"choices": [{"delta": {}, "finish_reason": "stop"}]}], True, True),
        (1, [{"choices": []}], False, False),
    ],
)
def test_tee_when_choices_end_then_done_only_says_that_there_are_no_more(
    choices: int, frames: list[object], finished: bool, complete: bool
) -> None:
    tee = Tee(choices)
    tee.feed(b"".join(sse(*frames, done=False)))
    assert (tee.finished, tee.complete) == (finished, finished)
    tee.feed(b"data: [DONE]\n\n")
    assert (tee.finished, tee.complete) == (finished, complete)


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        (["hi \ud83d", "\ude00 there"], "hi \U0001f600 there"),
        (["\ud83d", "", "\ude00"], "\U0001f600"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a\ud83d"], "a\ufffd"),
        (["\ude00"], "\ufffd"),
    ],
)
def test_tee_when_a_character_is_cut_in_two_then_it_is_read_whole(texts: list[str], read: str) -> None:
    tee = Tee()
    frames = b"".join(
        b"data: " + json.dumps(one).encode() + b"\n\n" for one in (*map(delta, texts), delta(None, "stop"))
    )
    pieces = tee.feed(frames)
    assert tee.content == read
    assert "".join(piece.content for piece in pieces) == read


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_held_when_events_follow_done_then_they_are_dropped(ending: bytes, size: int) -> None:
    stream = b"".join(sse(delta("a"), delta(None, "stop"))).replace(b"\n", ending)
    after = b"".join(sse(delta("more")))
    tee = Tee()
    held = Held(tee)
    given = b""
    pieces = []
    for at in range(0, len(stream + after), size):
        chunk = (stream + after)[at : at + size]
        pieces += tee.feed(chunk)
        held.add(chunk)
        given += held.due()
        if tee.done:
            held.release()
            given += held.due()
    assert given == stream
    assert len(held._bytes) == 0
    assert tee.content == "a"
    assert len(pieces) == 2
