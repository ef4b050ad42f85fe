"""From a response message to an HTTP answer: envelope, message, status and, for streams, one document in pieces."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.schema import Method, Route, SchemaError
from memoryos.v1 import options_pb2
from memoryos_bridge.codec import Codec
from memoryos_bridge.scalars import RAW_JSON, Misfit, show_time

_PLACE = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class _Stream:
    """A field that comes in pieces.

    Attributes:
        path: The REST names that lead to it.
        text: It is a string, else an array.
        raw: It is a string that holds JSON text, whose pieces are one JSON value together.
        outermost: The proto name of the first field of the path, if one can tell whether a message holds it; else "".
    """

    path: list[str]
    text: bool
    raw: bool
    outermost: str

    def take(self, shown: Any) -> bytes:
        """The piece of it that a message brings, as it stands between the quotes or brackets."""
        for name in self.path:
            shown = shown.get(name) if isinstance(shown, dict) else None
        if self.raw:
            # A piece by itself is JSON only by chance: else it is shown as text.
            return shown.encode() if isinstance(shown, str) else b"" if shown is None else orjson.dumps(shown)
        if self.text:
            return orjson.dumps(shown)[1:-1] if isinstance(shown, str) else b""
        return b",".join(orjson.dumps(item) for item in shown) if isinstance(shown, list) else b""


class Answer:
    """The shape of one route's answers.

    Attributes:
        success_false: Errors carry `"success": false`.
        codes: HTTP statuses of answers that are no errors of ours.
    """

    def __init__(self, codec: Codec, method: Method, route: Route) -> None:
        """Compiles the shape.

        Raises:
            SchemaError: The method's options name what is not there.
        """
        self._method = method
        self._rest = method.rest
        self._response = codec.of(method.descriptor.output_type)
        self._request = codec.of(method.descriptor.input_type)
        self._body = self._response.by_proto[route.response_body].name if route.response_body else ""
        envelope = method.rest.envelope
        self._data = envelope == options_pb2.ENVELOPE_SUCCESS_DATA
        self.success_false = self._data or method.rest.success_false
        self._head: dict[str, Any] = {}
        if envelope == options_pb2.ENVELOPE_STATUS_OK:
            self._head = {"status": "ok"}
        elif envelope in (options_pb2.ENVELOPE_SUCCESS, options_pb2.ENVELOPE_SUCCESS_DATA):
            self._head = {"success": True}
        self._success = int(method.rest.success_code) or 200
        self._when = [(self._response.by_proto[w.field].name, w.value, int(w.code)) for w in method.rest.status_when]
        self.codes = (self._success, *(code for _, _, code in self._when))
        for name in _PLACE.findall(method.rest.message):
            if name not in self._response.by_proto and name not in self._request.by_proto:
                raise SchemaError(f"{method.path}: rest.message names {{{name}}}, which neither message has")
        self._streams = [self._stream(path) for path in method.rest.stream]

    def _stream(self, path: str) -> _Stream:
        names, codec, text, raw, outermost = [], self._response, False, False, None
        for part in path.split("."):
            field = codec.by_proto[part]
            outermost = outermost or field.field
            names.append(field.name)
            text = not field.field.is_repeated
            raw = text and field.kind is RAW_JSON
            codec = field.message or codec
        if outermost is None or (self._body and names[0] != self._body):
            raise SchemaError(f"{self._method.path}: rest.stream is outside of response_body")
        return _Stream(names, text, raw, outermost.name if outermost.has_presence else "")

    def _message(self, shown: Mapping[str, Any], request: Message) -> dict[str, str]:
        template = self._rest.message
        if not template:
            return {}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name in self._response.by_proto:
                found = shown.get(self._response.by_proto[name].name)
            else:
                field = self._request.by_proto[name]
                found = self._request.encode(request).get(field.name)
            return found if isinstance(found, str) else orjson.dumps(found).decode()

        return {"message": _PLACE.sub(value, template)}

    def _wrap(self, shown: dict[str, Any], request: Message) -> Any:
        message = self._message(shown, request)
        if self._data:
            return self._head | {"data": shown[self._body] if self._body else shown} | message
        if self._body:
            return shown[self._body]
        # The envelope comes first; a field of the same name in the response wins, so that a partial outcome can say so.
        return self._head | message | shown

    def whole(self, response: Message, request: Message) -> tuple[int, bytes]:
        """Status and body of an answer."""
        shown = self._response.encode(response)
        status = self._success
        for field, value, code in self._when:
            found = shown.get(field)
            if (found if isinstance(found, str) else orjson.dumps(found).decode()) == value:
                status = code
        return status, orjson.dumps(self._wrap(shown, request))

    def unreachable(self) -> Message | None:
        """The response to give when the server cannot be reached; None if that is an error."""
        if not self._rest.when_unreachable:
            return None
        response = self._method.response_class()
        for item in self._rest.when_unreachable:
            field = self._response.by_proto[item.field]
            text = show_time_now() if item.value == "now" else item.value
            try:
                field.parse(response, [text])
            except Misfit as misfit:
                where = f"{self._method.path}: rest.when_unreachable: {item.field}"
                raise SchemaError(f"{where} must be {misfit.expected}") from None
        return response

    async def pieces(
        self, first: Message | None, rest: AsyncIterator[Message], request: Message
    ) -> AsyncGenerator[bytes, None]:
        """A stream as one JSON document: the first message's fields, then the named field's value as it comes."""
        message = first if first is not None else self._method.response_class()
        shown = self._response.encode(message)
        stream = next((s for s in self._streams if s.outermost and message.HasField(s.outermost)), self._streams[0])
        path = stream.path
        if self._body:
            opened, closed = self._open(shown, path[1:] if len(path) > 1 else [], bare=len(path) == 1)
        else:
            head = self._head | self._message(shown, request)
            # As in `_wrap`: the response's own field wins.
            document = head | ({"data": shown} if self._data else shown)
            opened, closed = self._open(document, ["data", *path] if self._data else path)
        begin, end, between = (b'"', b'"', b"") if stream.text else (b"[", b"]", b",")
        if stream.raw:
            begin = end = b""
        piece = stream.take(shown)
        yield opened + begin + piece
        empty = not piece
        async for response in rest:
            piece = stream.take(self._response.encode(response))
            if piece:
                yield (b"" if empty else between) + piece
                empty = False
        yield end + closed

    def _open(self, document: dict[str, Any], path: list[str], *, bare: bool = False) -> tuple[bytes, bytes]:
        """What stands before and after the named field's value: at every level the field is moved to the end."""
        if bare:
            return b"", b""
        opened, closed = b"", b""
        level: dict[str, Any] = document[self._body] if self._body else document
        for depth, name in enumerate(path):
            inner = level.get(name)
            others = {key: value for key, value in level.items() if key != name}
            text = orjson.dumps(others)[:-1]
            opened += text + (b"," if others else b"") + orjson.dumps(name) + b":"
            closed += b"}"
            if depth < len(path) - 1:
                level = inner if isinstance(inner, dict) else {}
        return opened, closed


def show_time_now() -> str:
    """The present time as JSON shows it, in whole seconds."""
    return show_time(Timestamp(seconds=int(datetime.now(UTC).timestamp())))
