"""OpenAI's Responses interface: its requests, answers and streams, and where memory stands in them.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from memoryos_server.domain.chat.builtin import RECALL_MODEL, Rendering, pieces_of, usage_of
from memoryos_server.domain.chat.form import Form, Said
from memoryos_server.domain.chat.jsontext import Member, edited, elements, members
from memoryos_server.domain.chat.request import ChatBody, check_stream, check_temperature, model_of
from memoryos_server.domain.chat.sse import Piece, SseEvent, Tee, message_of, text_of
from memoryos_server.domain.core.faults import Invalid

_WAITING = (  # no set: what is compared with them is anything that JSON can say
    "function_call", "custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "mcp_approval_request",
)  # fmt: skip
"""What an answer holds if the client is to do something before the turn ends."""

_ENDS = ("response.completed", "response.incomplete", "response.failed")


class ResponsesBody(ChatBody):
    """A request body, checked. Its `messages` are the items of `input`; a plain text is one of the user's."""

    @property
    def texts(self) -> list[str]:
        """As `ChatBody.texts`, with the instructions."""
        return [text_of(self.params.get("instructions")), *super().texts]

    @property
    def turn(self) -> str | None:
        """As `ChatBody.turn`. Where the provider keeps the conversation, the request does not say what came before.

        An answer that is asked for again follows the same response; a conversation has one name from beginning to end.
        """
        if self.params.get("conversation"):
            return None
        return f"{self.params.get('previous_response_id') or ''}:{super().turn}"

    @property
    def _is_chained(self) -> bool:
        return bool(self.params.get("previous_response_id") or self.params.get("conversation"))

    def with_system_message(self, content: str) -> str:
        """The JSON text with a developer message right before the last user message; every other character stays.

        Where the provider keeps the conversation it would keep that message, too, and every one of the turns to come. So it
        stands at the end of the instructions there, which count for one answer.
        """
        if self.question is None:
            return self.text
        if self._is_chained:
            return self._with_instructions(content)
        start, end = self.spans[self.question]
        message = json.dumps({"role": "developer", "content": content}, ensure_ascii=False)
        if isinstance(self.params["input"], str):
            asked = f'{{"role":"user","content":{self.text[start:end]}}}'
            return edited(self.text, [(start, end, f"[{message},{asked}]")])
        return edited(self.text, [(start, start, f"{message},")])

    def _with_instructions(self, content: str) -> str:
        named = members(self.text)
        whole = json.dumps(content, ensure_ascii=False)
        for one in reversed(named):
            if one.name == "instructions":
                added = json.dumps(f"\n\n{content}", ensure_ascii=False)[1:]
                edit = (one.end - 1, one.end, added) if one.value else (one.start, one.end, whole)
                return edited(self.text, [edit])
        end = named[-1].end
        return edited(self.text, [(end, end, f',"instructions":{whole}')])


class ResponsesTee(Tee):
    """As `Tee`, of the events of a response."""

    def __init__(self) -> None:
        """Starts before the first event."""
        super().__init__()
        self._end: int | None = None
        self._whole = False

    @property
    def done(self) -> bool:
        """Whether the last event was seen."""
        return self._end is not None

    @property
    def done_at(self) -> int | None:
        """Offset in the stream of the data of its last event, or None."""
        return self._end

    @property
    def finished(self) -> bool:
        """Whether the response is whole."""
        return self._whole

    @property
    def complete(self) -> bool:
        """Whether the response came to its end, be it cut by a bound on its length."""
        return self._whole or (self.done and self.overflowed)

    def _read_event(self, event: SseEvent, value: dict[str, Any], text: str) -> Piece:
        kind = value.get("type")
        if kind == "error" or value.get("error"):
            self.error = message_of(value.get("error") or value)
        delta = value.get("delta")
        content = delta if kind == "response.output_text.delta" and isinstance(delta, str) else ""
        heard, content = content, self._joined(content, last=kind in _ENDS)
        self._collect(content)
        if isinstance(delta, str) and not heard:
            self._collect_unsaid([delta])
        response = value.get("response")
        if kind in _ENDS and isinstance(response, dict):
            usage = response.get("usage")
            self.usage = usage if isinstance(usage, dict) else self.usage
            said = said_in(response)
            self._whole, self.goes_on = kind != "response.failed", said.goes_on
            if self._whole:
                self._end = event.start
            else:
                self.error = message_of(response.get("error"))
            return Piece(content, said.reason, text)
        return Piece(content, "", text)


class ResponsesForm(Form):
    """The Responses interface, as `Form` has it."""

    path = "/responses"
    asked = "input"

    def parse(self, body: str, *, stream: bool) -> ChatBody:
        """As `Form.parse`."""
        named = members(body)
        params = {one.name: one.value for one in named}
        model = model_of(params)
        check_temperature(params)
        asked = params.get("input")
        if asked is not None and not isinstance(asked, (str, list)):
            raise Invalid("input must be text or an array of items", param="input")
        if not isinstance(params.get("instructions"), str | None):
            raise Invalid("instructions must be text", param="instructions")
        text = check_stream(body, named, stream=stream)
        messages, spans = _items(body, next((one for one in reversed(named) if one.name == "input"), None))
        questions = [at for at, one in enumerate(messages) if one.get("role") == "user"]
        user = params.get("user")
        return ResponsesBody(
            text=text,
            model=model,
            messages=messages,
            spans=spans,
            question=questions[-1] if questions else None,
            stream=stream,
            user=user if isinstance(user, str) else "",
            params=params | {"stream": stream},
        )

    def tee(self, body: ChatBody) -> Tee:
        """As `Form.tee`."""
        return ResponsesTee()

    def said(self, value: dict[str, Any]) -> Said:
        """As `Form.said`."""
        return said_in(value)

    def as_json(self, text: str, how: Rendering) -> bytes:
        """As `Form.as_json`."""
        return json.dumps(_response(how, text, "completed"), ensure_ascii=False).encode()

    def as_sse(self, text: str, how: Rendering, *, include_usage: bool) -> Iterator[bytes]:
        """As `Form.as_sse`; a response always has its usage."""
        item, part = _item(how, text), _part(text)
        where = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        events: list[tuple[str, dict[str, Any]]] = [
            ("created", {"response": _response(how, "", "in_progress")}),
            ("in_progress", {"response": _response(how, "", "in_progress")}),
            ("output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
            ("content_part.added", {**where, "part": _part("")}),
            *[("output_text.delta", {**where, "delta": piece, "logprobs": []}) for piece in pieces_of(text)],
            ("output_text.done", {**where, "text": text, "logprobs": []}),
            ("content_part.done", {**where, "part": part}),
            ("output_item.done", {"output_index": 0, "item": item}),
            ("completed", {"response": _response(how, text, "completed")}),
        ]
        for number, (kind, event) in enumerate(events):
            value = {"type": f"response.{kind}", "sequence_number": number, **event}
            yield f"event: response.{kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def said_in(response: dict[str, Any]) -> Said:
    """What a response says."""
    listed = response.get("output")
    items = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    content = "\n".join(text for one in items if one.get("type") == "message" and (text := text_of(one.get("content"))))
    calls = [one for one in items if one.get("type") in _WAITING]
    unsaid = [
        str(one[name]) for one in items for name in ("name", "arguments", "input") if isinstance(one.get(name), str)
    ]
    status = response.get("status")
    return Said(
        content=content,
        reason="tool_calls" if calls else {"completed": "stop", "incomplete": "length"}.get(str(status), ""),
        ends=status in ("completed", "incomplete") and not calls,
        goes_on=bool(calls),
        usage=response.get("usage"),
        generated="".join([content, *unsaid]),
    )


def _items(body: str, given: Member | None) -> tuple[Sequence[dict[str, Any]], list[tuple[int, int]]]:
    """The items of the input, and where each stands."""
    if given is None or given.value is None:
        return [], []
    if isinstance(given.value, str):
        return [{"role": "user", "content": given.value}], [(given.start, given.end)]
    found = elements(body, given.start)
    for at, one in enumerate(found):
        if not isinstance(one.value, dict):
            raise Invalid(f"input[{at}] must be an object", param=f"input[{at}]")
    return [one.value for one in found], [(one.start, one.end) for one in found]


def _response(how: Rendering, text: str, status: str) -> dict[str, Any]:
    done = status == "completed"
    costs = usage_of(text, how)
    usage = {
        "input_tokens": costs["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": costs["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": costs["total_tokens"],
    }
    return {
        "id": how.id.replace("chatcmpl-", "resp_"),
        "object": "response",
        "created_at": how.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": RECALL_MODEL,
        "output": [_item(how, text)] if done else [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": usage if done else None,
    }


def _item(how: Rendering, text: str) -> dict[str, Any]:
    number = how.id.replace("chatcmpl-", "msg_")
    return {"id": number, "type": "message", "status": "completed", "role": "assistant", "content": [_part(text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


RESPONSES: Form = ResponsesForm()
