"""Reads a copy of a server-sent event stream while the client gets the bytes themselves.

The splitter follows the WHATWG event stream format and takes pieces of any size. Nothing here can touch, delay or fail what
the client gets: `Tee.feed` never raises, and both bound their memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.chat.answer import goes_on
from memoryos_server.domain.core.text import sound

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""The longest event that is read, such as a picture in one delta; a longer one is passed over."""

MAX_CONTENT_CHARS = 4_000_000
"""The longest answer that is collected."""

MAX_UNSAID_CHARS = 1_000_000
"""Of what only costs are estimated by, so much is collected."""

_END_OF_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event.

    Attributes:
        data: Its `data` lines, joined by line feeds.
        start: Offset in the stream of the line its data began with.
    """

    data: bytes
    start: int


class SseSplitter:
    """Splits a byte stream into events, whatever the pieces it comes in.

    Attributes:
        overflowed: An event was longer than the bound and was passed over.
        whole_to: Offset in the stream up to which it holds whole events, and comments between them.
        done_at: Offset in the stream of the line `data: [DONE]`, known as soon as that line ends; None before.
        done_to: Offset in the stream of what follows the event `[DONE]`; None before its end.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.overflowed = False
        self.whole_to = 0
        self.done_at: int | None = None
        self.done_to: int | None = None
        self._max = max_event_bytes
        self._line = bytearray()
        self._line_start = 0
        self._offset = 0
        self._after_cr = False
        self._first_line = True
        self._data: list[bytes] = []
        self._size = 0
        self._event_start = 0
        self._begun = False
        self._skipping = False
        self._spoiled = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that end in `chunk`, in order."""
        events: list[SseEvent] = []
        position = 0
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[0] == 0x0A:
                position = 1
                self._line_start = self._offset + 1
                if self.whole_to == self._offset:
                    self.whole_to += 1
                if self.done_to == self._offset:
                    self.done_to += 1
        for match in _END_OF_LINE.finditer(chunk, position):
            self._append(chunk[position : match.start()])
            position = match.end()
            self._end_line(events)
            self._line_start = self._offset + position
            if not self._begun:
                self.whole_to = self._line_start
                if self.done_at is not None and self.done_to is None:
                    self.done_to = self.whole_to
        if position < len(chunk):
            self._append(chunk[position:])
        self._after_cr = chunk.endswith(b"\r") if chunk else self._after_cr
        self._offset += len(chunk)
        return events

    def finish(self) -> list[SseEvent]:
        """The event that the end of the stream cut off before its blank line, if there is one."""
        events: list[SseEvent] = []
        if self._line or self._skipping:
            self._end_line(events)
        self._dispatch(events)
        return events

    def _append(self, piece: bytes) -> None:
        if self._skipping:
            return
        if self._size + len(self._line) + len(piece) > self._max:
            self._skipping = self._spoiled = self.overflowed = True
            self._line.clear()
            return
        self._line += piece

    def _end_line(self, events: list[SseEvent]) -> None:
        if self._skipping:
            self._skipping = False
            self._first_line = False
            self._begun = True
            return
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        self._begun = self._begun or bool(name)
        if name != b"data":
            return
        value = value.removeprefix(b" ")
        if not self._data:
            self._event_start = self._line_start
            if value.strip() == b"[DONE]" and self.done_at is None:
                self.done_at = self._line_start
        self._data.append(value)
        self._size += len(value) + 1

    def _dispatch(self, events: list[SseEvent]) -> None:
        if self._data and not self._spoiled:
            events.append(SseEvent(b"\n".join(self._data), self._event_start))
        self._data.clear()
        self._size = 0
        self._begun = False
        self._spoiled = False


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of an answer.

    Attributes:
        content: Choice 0's next text, "" if the chunk brings none.
        finish_reason: Choice 0's, "" until its last chunk.
        chunk_json: The whole chunk as JSON text.
    """

    content: str
    finish_reason: str
    chunk_json: str


class Tee:
    """Collects what memory needs from an answer that streams by, and tells whether it came to its end.

    Args:
        choices: How many choices were asked for.

    Attributes:
        usage: The last `usage` object seen, or None.
        goes_on: The turn goes on after this answer.
        error: The message of an error event inside the stream, or None.
        broken: The copy of the text is not whole: nothing is to be remembered of it.
        blind: The stream cannot be read any further; nothing here says anything about what follows.
    """

    def __init__(self, choices: int = 1) -> None:
        self.goes_on = False
        self.usage: dict[str, object] | None = None
        self.error: str | None = None
        self.broken = False
        self.blind = False
        self._splitter = SseSplitter()
        self._choices = choices
        self._ended: dict[int, bool] = {}
        self._content: list[str] = []
        self._size = 0
        self._half = ""
        self._over = False
        self._unsaid: list[str] = []
        self._unsaid_size = 0

    @property
    def done(self) -> bool:
        """Whether `[DONE]` was seen."""
        return self._splitter.done_at is not None

    @property
    def done_at(self) -> int | None:
        """Offset in the stream of the line `data: [DONE]`, or None."""
        return self._splitter.done_at

    @property
    def done_to(self) -> int | None:
        """Offset in the stream of what follows the event `[DONE]`, or None."""
        return self._splitter.done_to

    @property
    def whole_to(self) -> int:
        """Offset in the stream up to which it holds whole events."""
        return self._splitter.whole_to

    @property
    def overflowed(self) -> bool:
        """Whether an event was too long to be read."""
        return self._splitter.overflowed

    @property
    def content(self) -> str:
        """Choice 0's text so far."""
        return "".join(self._content)

    @property
    def generated(self) -> str:
        """All text that the provider wrote so far, reasoning, calls of tools and other choices included."""
        return "".join((*self._content, *self._unsaid))

    @property
    def finished(self) -> bool:
        """Whether every choice that was asked for has its finish reason."""
        return len(self._ended) >= self._choices and all(self._ended.values())

    @property
    def complete(self) -> bool:
        """Whether the answer came to its end, as far as can be told: `[DONE]` alone does not say it.

        Some providers give fewer choices than were asked for. A finish reason may stand in an event that was too long.
        """
        return self.finished or (self.done and (self.overflowed or (bool(self._ended) and all(self._ended.values()))))

    def feed(self, chunk: bytes) -> list[Piece]:
        """The chunks of the answer that end in `chunk`. Never raises; what cannot be read is passed over."""
        return [] if self.blind else self._guarded(lambda: self._splitter.feed(chunk))

    def finish(self) -> list[Piece]:
        """The chunk that the end of the stream cut off before its blank line, if there is one. Never raises."""
        return [] if self.blind else self._guarded(self._splitter.finish)

    def _guarded(self, split: Callable[[], list[SseEvent]]) -> list[Piece]:
        try:
            return self._read(split())
        except Exception:  # the client's bytes must flow whatever this copy is made of
            self.broken = self.blind = True
            return []

    def _read(self, events: list[SseEvent]) -> list[Piece]:
        if self._splitter.overflowed:
            self.broken = True
        pieces = []
        for event in events:
            if event.data.strip() == b"[DONE]":
                self._over = True
            if self._over:
                continue
            try:
                text = event.data.decode("utf-8", "replace")
                value = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                pieces.append(self._read_event(event, value, text))
        return pieces

    def _read_event(self, event: SseEvent, value: dict[str, Any], text: str) -> Piece:
        error = value.get("error")
        if error:
            self.error = message_of(error)
        usage = value.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        self._note_ends(value.get("choices"))
        choice = first_choice(value)
        delta = choice.get("delta")
        content = said_of(delta) if isinstance(delta, dict) else ""
        finish = choice.get("finish_reason")
        reason = finish if isinstance(finish, str) else ""
        self.goes_on = self.goes_on or goes_on(reason, delta)
        content = self._joined(content, last=bool(reason))
        self._collect(content)
        self._note_unsaid(value.get("choices"), choice)
        return Piece(content, reason, text)

    def _joined(self, content: str, *, last: bool) -> str:
        """The text, with the half of a character that the one before ended with; its own waits, unless it is the last."""
        content, self._half = self._half + content, ""
        if not last and "\ud800" <= content[-1:] <= "\udbff":
            content, self._half = content[:-1], content[-1]
        return sound(content)

    def _collect(self, content: str) -> None:
        self._size += len(content)
        if self._size > MAX_CONTENT_CHARS:
            self.broken = True
        elif content:
            self._content.append(content)

    def _collect_unsaid(self, texts: Sequence[str]) -> None:
        if self._unsaid_size <= MAX_UNSAID_CHARS:
            self._unsaid += texts
            self._unsaid_size += sum(map(len, texts))

    def _note_ends(self, choices: object) -> None:
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = choice.get("index", 0)
                number = index if isinstance(index, int) else 0
                self._ended[number] = bool(choice.get("finish_reason")) or self._ended.get(number, False)

    def _note_unsaid(self, choices: object, said: dict[str, object]) -> None:
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                self._collect_unsaid(unsaid_of(delta) if choice is said else [said_of(delta), *unsaid_of(delta)])


def first_choice(value: dict[str, object]) -> dict[str, object]:
    """Choice 0 of an answer or chunk, or an empty object."""
    choices = value.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                return choice
    return {}


_TEXTS = ("text", "input_text", "output_text")  # no set: what is compared with them is anything that JSON can say


def text_of(content: object) -> str:
    """The text of a message's content: a string, or the text parts of an array, joined by line feeds."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type", "text") in _TEXTS]
        return "\n".join(t for t in texts if isinstance(t, str))
    return ""


def said_of(message: dict[str, object]) -> str:
    """The text of an answer's message or delta: its content, or else what it says aloud."""
    text = text_of(message.get("content"))
    audio = message.get("audio")
    if not text and isinstance(audio, dict) and isinstance(audio.get("transcript"), str):
        return str(audio["transcript"])
    return text


def unsaid_of(message: dict[str, object]) -> list[str]:
    """What else was written for an answer's message or delta: reasoning, refusals, and calls of tools."""
    texts = [message.get(name) for name in ("reasoning_content", "reasoning", "refusal")]
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            texts += [function.get("name"), function.get("arguments")]
    return [text for text in texts if isinstance(text, str)]


def generated_of(value: dict[str, object]) -> str:
    """All text that a whole answer holds, of every choice."""
    choices = value.get("choices")
    texts: list[str] = []
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict):
            texts += [said_of(message), *unsaid_of(message)]
    return "".join(texts)


def message_of(error: object) -> str:
    """The message of an OpenAI-shaped error value, or a text that says there is none."""
    if isinstance(error, str):
        return error
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return "The provider gave no message"
