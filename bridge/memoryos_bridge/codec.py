"""Messages to JSON and back, compiled once per descriptor.

Protobuf's own JSON prints int64 as strings, hides zero values and is slow; here numbers stay numbers, zero values show,
absent optional fields are left out, and every reader says what it expected. The options `Field` and `EnumName` of the
protos are honoured; no message is known by name but the well-known types.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from memoryos.v1 import options_pb2
from memoryos_bridge.errors import BridgeError, invalid
from memoryos_bridge.scalars import RAW_JSON, Kind, Misfit, name_of, scalar

Writer = Callable[[Any, dict[str, Any]], None]
Reader = Callable[[Any, Any], None]

_SHOWN = 200
"""How many characters of a field's name an error shows; a client may send any."""


class FieldCodec:
    """One field.

    Attributes:
        name: What REST calls it.
        field: Its descriptor.
        kind: The kind of its single values, or of the values of its map; None for messages shown as objects.
        message: The codec of those messages, or None.
        form: The codec of the message that JSON text in it has the form of, or None.
        write: Puts the field of a message into a JSON object.
        read: Sets the field of a message from a JSON value that is not null. Raises Misfit.
    """

    __slots__ = ("field", "form", "kind", "message", "name", "read", "write")

    def __init__(self, codec: Codec, field: FieldDescriptor) -> None:
        """Compiles the field."""
        options = field.GetOptions().Extensions[options_pb2.field]
        self.field = field
        self.name: str = options.rest_name or field.name
        entry = field.message_type if self.is_map else None
        value: FieldDescriptor = entry.fields_by_name["value"] if entry is not None else field
        self.kind = scalar(value)
        self.message = codec.of(value.message_type) if self.kind is None and value.message_type is not None else None
        form = options.json_message
        self.form = codec.of(descriptor_pool.Default().FindMessageTypeByName(form)) if form else None
        if entry is not None:
            key = scalar(entry.fields_by_name["key"])
            assert key is not None  # noqa: S101 - protobuf has no other keys; for the type checker
            self.write, self.read = _map(self, key)
        elif field.is_repeated:
            self.write, self.read = _repeated(self)
        else:
            self.write, self.read = _single(self, options.null_when_absent)

    @property
    def is_map(self) -> bool:
        """Whether JSON shows an object of free keys."""
        message = self.field.message_type
        return message is not None and bool(message.GetOptions().map_entry)

    def parse(self, message: Any, texts: Sequence[str]) -> None:
        """Sets the field from the texts of a path or query parameter.

        Raises:
            Misfit: A text does not fit, or there are several for a single field.
        """
        kind = self.kind
        if kind is None or self.is_map:
            raise Misfit("is no query parameter", whole=True)
        if not self.field.is_repeated and len(texts) > 1:
            raise Misfit("may be given only once", whole=True)
        for text in texts:
            value = kind.parse(text)
            if self.field.is_repeated:
                getattr(message, self.field.name).append(value)
            elif self.field.message_type is not None:
                getattr(message, self.field.name).CopyFrom(value)
            else:
                setattr(message, self.field.name, value)


def _map(codec: FieldCodec, key: Kind) -> tuple[Writer, Reader]:
    attribute, name = codec.field.name, codec.name
    entries = codec.field.message_type
    copied = entries is not None and entries.fields_by_name["value"].message_type is not None
    if codec.message is not None:
        values = codec.message

        def write(message: Any, out: dict[str, Any]) -> None:
            out[name] = {_key(k): values.encode(v) for k, v in getattr(message, attribute).items()}
    else:
        assert codec.kind is not None  # noqa: S101 - one of the two is set; for the type checker
        show = codec.kind.show

        def write(message: Any, out: dict[str, Any]) -> None:
            out[name] = {_key(k): show(v) for k, v in getattr(message, attribute).items()}

    def read(message: Any, value: Any) -> None:
        if type(value) is not dict:
            raise Misfit(f"an object, not {name_of(value)}")
        target = getattr(message, attribute)
        for text, item in value.items():
            try:
                entry = key.parse(text)
                if codec.message is not None:
                    codec.message.fill(target[entry], item)
                elif codec.kind is not None:
                    if copied:
                        target[entry].CopyFrom(codec.kind.read(item))
                    else:
                        target[entry] = codec.kind.read(item)
            except Misfit as misfit:
                raise misfit.within(text) from None

    return write, read


def _key(key: Any) -> str:
    return ("true" if key else "false") if isinstance(key, bool) else str(key)


def _repeated(codec: FieldCodec) -> tuple[Writer, Reader]:
    attribute, name, kind, items = codec.field.name, codec.name, codec.kind, codec.message
    show = items.encode if items is not None else kind.show if kind is not None else None
    assert show is not None  # noqa: S101 - one of the two is set; for the type checker

    def write(message: Any, out: dict[str, Any]) -> None:
        out[name] = [show(item) for item in getattr(message, attribute)]

    def read(message: Any, value: Any) -> None:
        if type(value) is not list:
            raise Misfit(f"an array, not {name_of(value)}")
        target = getattr(message, attribute)
        index = 0
        try:
            if items is not None:
                for index, item in enumerate(value):  # noqa: B007 - named in errors below
                    items.fill(target.add(), item)
            elif kind is not None:
                for index, item in enumerate(value):  # noqa: B007 - named in errors below
                    target.append(kind.read(item))
        except Misfit as misfit:
            raise misfit.within(f"[{index}]") from None

    return write, read


def _single(codec: FieldCodec, null_when_absent: bool) -> tuple[Writer, Reader]:
    field, name, kind, inner = codec.field, codec.name, codec.kind, codec.message
    attribute = field.name
    show = inner.encode if inner is not None else kind.show if kind is not None else None
    assert show is not None  # noqa: S101 - one of the two is set; for the type checker

    if field.has_presence:

        def write(message: Any, out: dict[str, Any]) -> None:
            if message.HasField(attribute):
                out[name] = show(getattr(message, attribute))
            elif null_when_absent:
                out[name] = None
    else:

        def write(message: Any, out: dict[str, Any]) -> None:
            out[name] = show(getattr(message, attribute))

    oneof = field.containing_oneof
    choice = oneof.name if oneof is not None and len(oneof.fields) > 1 else ""

    def read(message: Any, value: Any) -> None:
        if choice:
            other = message.WhichOneof(choice)
            if other is not None and other != attribute:
                raise Misfit(f"excludes {other}: give one of the two", whole=True)
        if inner is not None:
            target = getattr(message, attribute)
            target.SetInParent()
            inner.fill(target, value)
        elif kind is not None:
            if field.message_type is not None:
                getattr(message, attribute).CopyFrom(kind.read(value))
            else:
                setattr(message, attribute, kind.read(value))

    return write, read


class MessageCodec:
    """One message.

    Attributes:
        descriptor: Its descriptor.
        fields: REST name -> field, in the order of the proto.
        by_proto: Proto name -> field.
        exact: Somewhere in it is JSON of others, whose numbers must not change.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        """Makes an empty codec; `compile` follows, so that messages may hold themselves."""
        self.descriptor = descriptor
        self.fields: dict[str, FieldCodec] = {}
        self.by_proto: dict[str, FieldCodec] = {}
        self._writers: tuple[Writer, ...] = ()

    def compile(self, codec: Codec) -> None:
        """Compiles the fields."""
        for field in self.descriptor.fields:
            made = FieldCodec(codec, field)
            self.fields[made.name] = self.by_proto[field.name] = made
        self._writers = tuple(field.write for field in self.fields.values())

    @property
    def exact(self) -> bool:
        """Whether it holds, at any depth, a field of JSON text."""
        return self._exact(set())

    def _exact(self, seen: set[str]) -> bool:
        if self.descriptor.full_name in seen:
            return False
        seen.add(self.descriptor.full_name)
        return any(
            f.kind is RAW_JSON or (f.message is not None and f.message._exact(seen)) for f in self.fields.values()
        )

    def encode(self, message: Message) -> dict[str, Any]:
        """What JSON shows of a message."""
        out: dict[str, Any] = {}
        for write in self._writers:
            write(message, out)
        return out

    def fill(self, message: Message, value: Any, *, leave_out: frozenset[str] = frozenset()) -> list[str]:
        """Sets the fields of a message from a JSON object; null is absent.

        Args:
            message: What is filled.
            value: The parsed JSON.
            leave_out: REST names that are not fields here.

        Returns:
            The proto names of the fields set.

        Raises:
            Misfit: It does not fit.
        """
        if type(value) is not dict:
            raise Misfit(f"an object, not {name_of(value)}")
        given = []
        for key, item in value.items():
            field = self.fields.get(key)
            if field is None or key in leave_out:
                known = ", ".join(name for name in self.fields if name not in leave_out)
                text = f"is not a field here; known: {known}" if known else "is not a field here; there are none"
                raise Misfit(text, whole=True).within(key)
            if item is None:
                continue
            try:
                field.read(message, item)
            except Misfit as misfit:
                raise misfit.within(key) from None
            given.append(field.field.name)
        return given

    def rest_path(self, path: str) -> str:
        """What REST calls a dotted path of proto names; what is not known stays."""
        head, dot, tail = path.partition(".")
        bare, bracket, index = head.partition("[")
        field = self.by_proto.get(bare)
        if field is None:
            return path
        rest = field.message.rest_path(tail) if field.message is not None and tail else tail
        return f"{field.name}{bracket}{index}{dot}{rest}"


class Codec:
    """The codecs of all messages, each compiled at its first use."""

    def __init__(self) -> None:
        """Starts with none."""
        self._made: dict[str, MessageCodec] = {}

    def of(self, descriptor: Descriptor) -> MessageCodec:
        """The codec of a message."""
        made = self._made.get(descriptor.full_name)
        if made is None:
            made = self._made[descriptor.full_name] = MessageCodec(descriptor)
            made.compile(self)
        return made


def loads(body: bytes, *, exact: bool = False) -> Any:
    """The JSON value of a body.

    Args:
        body: UTF-8 text.
        exact: Whole numbers beyond 64 bits stay exact, at the price of speed.

    Raises:
        BridgeError: It is not JSON (400).
    """
    try:
        value = orjson.loads(body)
        return json.loads(body) if exact else value
    except (ValueError, RecursionError) as error:
        syntax = isinstance(error, orjson.JSONDecodeError)
        reason = str(error) if syntax else "it is nested too deeply or has too long a number"
        raise BridgeError(400, "The body is not valid JSON", "invalid_argument", details=reason) from None


def refusal(misfit: Misfit) -> BridgeError:
    """The 400 of a value that does not fit."""
    if not misfit.path:
        return invalid(f"The body must be {misfit.expected}")
    param = misfit.param if len(misfit.param) <= _SHOWN else misfit.param[:_SHOWN] + "…"
    name = param or '""'
    return invalid(f"{name} {misfit.expected}" if misfit.whole else f"{name} must be {misfit.expected}", param)
