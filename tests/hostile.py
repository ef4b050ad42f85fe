"""What a hostile client sends: requests of any RPC that are malformed, or well-formed and absurd. Made from a seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from memoryos.schema import Method
from memoryos.v1 import options_pb2

DEEP = 50_000
"""How deep JSON is nested where it is deep."""

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "\x00",
    "a\x00b\x1b[31m\r\n\x7f\u0085",
    "\u202egnp.exe\u200b\ufeff",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 20,
    "e\u0301" * 400 + "\u0300" * 3000,
    "\ud7ff\ue000\uffff\U0010ffff",
    "我喜欢喝咖啡" * 50,
    "../../../../etc/passwd",
    "{p000}:*",
    "%00%ff%zz%",
    "'; DROP TABLE users; -- {{7*7}} ${jndi:ldap://x} %s%n",
    "x" * 100_000,
    "x" * 100_001,
    "word " * 20_000,
    "9" * 5000,
    "-1",
    "1e999",
    "NaN",
    "null",
    "true",
    "2026-13-45T99:99:99Z",
    "2026-02-01",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999999Z",
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    '{"messages":' + "[" * DEEP,
    '{"model":"memoryos/recall","messages":[{"role":"user","content":"hello"}]}',
    '{"model":"memoryos/recall","messages":[{"role":"user","content":"\\ud800"}],"stream":true}',
    '{"model":"memoryos/recall","messages":[{"role":"user","content":[{"type":"text","text":7}]}],"n":1e400}',
    '{"model":"memoryos/recall","messages":"hello","messages":[],"temperature":"\\u0000"}',
    '{"model":7,"messages":[null,[],{},{"role":"user"},{"role":[],"content":{}}]}',
    '{"model":"memoryos/recall","input":[{"type":"message","role":"user","content":[{"type":"input_text"}]}]}',
    '{"input":"hello","model":"minilm","dimensions":-1,"encoding_format":[]}',
    '{"input":[[1,2,3]],"model":"minilm"}',
    '{"a":' + "9" * 5000 + "}",
    "user",
    "assistant",
    "session-1",
    "*",
)
_TIMES = ("google.protobuf.Timestamp", "google.protobuf.Duration")
WHOLE = (0, 1, -1, 2, 7, 100, 101, 1000, 1001, 2**31 - 1, -(2**31))
BROKEN = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan)
SECONDS = (0, 1, -1, 1_770_000_000, 253_402_300_799, 253_402_300_800, -62_135_596_801, 2**62, -(2**63), 2**63 - 1)

DOCUMENTS: dict[str, tuple[str, ...]] = {
    "body_json": (
        '{"model":"memoryos/recall","messages":[{"role":"system","content":"Be brief."},{"role":"user","name":"ann",'
        '"content":[{"type":"text","text":"What do I drink?"},{"type":"image_url","image_url":{"url":"http://x/y.png"}}]},'
        '{"role":"assistant","content":null,"tool_calls":[{"id":"t","type":"function","function":{"name":"f",'
        '"arguments":"{}"}}]},{"role":"tool","tool_call_id":"t","content":"42"},{"role":"user","content":"And now?"}],'
        '"temperature":0.5,"max_tokens":50,"n":1,"stop":["x"],"tools":[{"type":"function","function":{"name":"f",'
        '"parameters":{}}}],"response_format":{"type":"json_object"},"logit_bias":{"5":1},"user":"ann","metadata":{}}',
        '{"model":"memoryos/recall","input":[{"type":"message","role":"user","content":[{"type":"input_text",'
        '"text":"What do I drink?"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},'
        '{"type":"function_call_output","call_id":"c","output":"1"}],"instructions":"Be brief.","store":false,'
        '"previous_response_id":null,"max_output_tokens":20,"tools":[],"text":{"format":{"type":"text"}}}',
        '{"model":"memoryos/recall","input":"What do I drink?"}',
    ),
    "input_json": ('"I take my coffee black."', '["a","b"]', "[[1,2],[3]]"),
    "data_json": ('{"source":"a","weights":[1,2.5]}',),
    "message_json": ('{"role":"user","content":"What do I drink?"}',),
    "extra_json": ('{"top_p":0.5,"tools":[],"stream_options":{"include_usage":true}}',),
}
"""Fields that hold JSON, as it should be."""

SANE: dict[str, tuple[str, ...]] = {
    "user_id": ("ann", "ann", ""),
    "content": ("I take my coffee black.", "I moved to Porto on 3 May 2024.", "我喜欢喝咖啡。"),
    "text": ("I take my coffee black. I am a nurse.",),
    "query": ("What does Ann drink?", "咖啡", "where did I live in May 2024"),
    "model": ("memoryos/recall", "memoryos/recall", "minilm", "minilm"),
    "page_token": ("",),
    "session_id": ("s1",),
    "tenant_id": ("", "default"),
    "key_id": ("",),
    "from_day": ("2026-01-01", ""),
    "to_day": ("", "2026-12-31"),
    "tags": ("coffee", "home"),
    "role": ("user",),
    "summary": ("Ann takes her coffee black.", "Ann moved to Porto."),
    "paths": ("content", "importance"),
    "name": ("Ann",),
}
"""What fields hold in a request that is all right."""

JSONS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e308,
    2**70,
    "",
    "\x00",
    "a" * 100_001,
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"type": []},
    [{"type": 7}],
    "coffee",
)
BREAKS = ("\\ud800", "\\u0000", "NaN", "1e999", "-", "9" * 5000, "[" * DEEP, '"', "\x00", "]")
"""What a JSON text is broken with, at any place."""

METADATA: tuple[tuple[tuple[str, str | bytes], ...], ...] = (
    (),
    (("x-user-id", "ann"),),
    (("x-user-id", ""),),
    (("x-user-id", "%FF%FE"),),
    (("x-user-id", "%ED%A0%80"),),
    (("x-user-id", "%"), ("x-user-id", "bob")),
    (("x-user-id", "%00"),),
    (("x-user-id", "u" * 4000),),
    (("x-tenant-id", "../.."),),
    (("x-tenant-id", "*"),),
    (("x-tenant-id", "t" * 65), ("x-user-id", "ann")),
    (("authorization", "Bearer"),),
    (("authorization", "Bearer " + "k" * 4000),),
    (("authorization", "Basic \x7f".replace("\x7f", "~")),),
    (("x-request-id", "r" * 5000),),
    (("traceparent", "00-" + "z" * 32 + "-1-1"), ("tracestate", "=" * 600)),
    (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-ff"),),
    (("memoryos-client-address", "not an address"), ("memoryos-bridge-secret", "guess")),
    (("memoryos-quiet", "2"), ("memoryos-status", "degraded")),
    (("grpc-status-details-bin", b"\xff\xfe\x00"), ("x-user-id-bin", b"\xc3\x28")),
    (("idempotency-key", "~" * 300),),
)
"""Metadata of calls. Bytes that HTTP/2 itself forbids no client of gRPC sends: `frames` has those."""


def requests(
    method: Method, seed: int, count: int, known: Mapping[str, Sequence[str]] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Requests of an RPC, each with the name of its kind.

    Args:
        method: The RPC.
        seed: What they are made from.
        count: How many.
        known: Field -> values that lead somewhere, such as ids of what is there.
    """
    sane = {**SANE, **(known or {})}
    dice = random.Random(f"{method.path} {seed}")  # noqa: S311  # guards nothing
    kinds: tuple[tuple[str, int, Callable[[], bytes]], ...] = (
        ("nearly", 10, lambda: _nearly(method, dice, sane).SerializeToString()),
        ("absurd", 3, lambda: _absurd(method, dice).SerializeToString()),
        ("random", 1, lambda: dice.randbytes(dice.choice((0, 1, 2, 5, 20, 300, 5000)))),
        ("flipped", 2, lambda: _flipped(_nearly(method, dice, sane).SerializeToString(), dice)),
        ("cut", 1, lambda: _cut(_nearly(method, dice, sane).SerializeToString(), dice)),
        ("wire", 2, lambda: _wire(method.request_class.DESCRIPTOR, dice)),
        ("nested", 1, lambda: _nested(dice)),
    )
    weights = [weight for _, weight, _ in kinds]
    for _ in range(count):
        ((name, _, make),) = dice.choices(kinds, weights)
        yield name, make()


def _nearly(method: Method, dice: random.Random, sane: Mapping[str, Sequence[str]]) -> Message:
    """A request that is all right but for one or two fields, or for none."""
    made: Message = method.request_class()
    _tidy(made, dice, sane, 0)
    for _ in range(dice.choice((0, 1, 1, 1, 2))):
        _spoil(made, dice)
    return made


def _tidy(message: Message, dice: random.Random, sane: Mapping[str, Sequence[str]], depth: int) -> None:
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.seconds = 1_770_000_000  # type: ignore[attr-defined]
        return
    chosen = {oneof.name: dice.choice(oneof.fields).name for oneof in message.DESCRIPTOR.oneofs}
    whole = "body_json" in message.DESCRIPTOR.fields_by_name and dice.random() < 0.7
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if (oneof is not None and chosen[oneof.name] != field.name) or depth > 4 or _is_map(field):
            continue
        # A whole body stands in place of all other fields.
        if (field.name == "body_json") != whole and "body_json" in message.DESCRIPTOR.fields_by_name:
            continue
        rare = 0.05 if field.name in sane or field.name in DOCUMENTS else 0.4
        if not _is_required(field) and dice.random() < rare:
            continue
        for _ in range(dice.choice((1, 2)) if field.is_repeated else 1):
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = getattr(message, field.name)
                _tidy(inner.add() if field.is_repeated else inner, dice, sane, depth + 1)
                continue
            value: Any = dice.choice((1, 2, 5))
            if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                value = dice.choice(sane.get(field.name) or DOCUMENTS.get(field.name) or ("coffee",))
                if field.GetOptions().Extensions[options_pb2.field].made_id and dice.random() < 0.9:
                    value = f"event-{dice.random()}"
                if field.name in DOCUMENTS and dice.random() < 0.7:
                    value = _bent(value, dice)
                value = value.encode() if field.type == FieldDescriptor.TYPE_BYTES else value
            elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
                value = dice.random() < 0.5
            elif field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
                value = 0.5
            elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
                value = dice.choice(field.enum_type.values[1:]).number
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


def _spoil(message: Message, dice: random.Random) -> None:
    """Puts something absurd into one field, at any depth."""
    fields = [field for field in message.DESCRIPTOR.fields if not _is_map(field)]
    if not fields:
        return
    field = dice.choice(fields)
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        value = _value(field, dice, short=field.is_repeated)
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
        return
    inner = getattr(message, field.name)
    if field.is_repeated:
        inner = dice.choice(inner) if len(inner) else inner.add()
    if inner.DESCRIPTOR.full_name in _TIMES:
        _fill(inner, dice, 0)
    else:
        _spoil(inner, dice)


def _bent(text: str, dice: random.Random) -> str:
    """A JSON document with another value somewhere in it, or broken somewhere."""
    if dice.random() < 0.2:
        at = dice.randrange(len(text))
        return text[:at] + dice.choice(BREAKS) + text[at:]
    document = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    if not places:
        return json.dumps(dice.choice(JSONS))
    for _ in range(dice.choice((1, 1, 2))):
        where, key = dice.choice(places)
        where[key] = dice.choice(JSONS)
    return json.dumps(document, ensure_ascii=dice.random() < 0.5)


def _is_required(field: FieldDescriptor) -> bool:
    return field_behavior_pb2.REQUIRED in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _is_map(field: FieldDescriptor) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _absurd(method: Method, dice: random.Random) -> Message:
    made: Message = method.request_class()
    _fill(made, dice, 0)
    return made


def _fill(message: Message, dice: random.Random, depth: int) -> None:
    if message.DESCRIPTOR.full_name in _TIMES:
        message.seconds = dice.choice(SECONDS)  # type: ignore[attr-defined]
        message.nanos = dice.choice((0, 1, -1, 999_999_999, 2**31 - 1))  # type: ignore[attr-defined]
        return
    # Either sparse or full: some code is only reached once everything required is there.
    share = dice.choice((0.3, 0.7, 1.0))
    for field in message.DESCRIPTOR.fields:
        if dice.random() > share or depth > 4:
            continue
        if _is_map(field):
            continue
        if field.is_repeated:
            for _ in range(dice.choice((0, 1, 2, 3, 65))):
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    _fill(getattr(message, field.name).add(), dice, depth + 2)
                else:
                    getattr(message, field.name).append(_value(field, dice, short=True))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            _fill(getattr(message, field.name), dice, depth + 1)
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _value(field, dice))


def _value(field: FieldDescriptor, dice: random.Random, *, short: bool = False) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = dice.choice(TEXTS) if dice.random() < 0.7 else dice.choice(("ann", "fact", "coffee in Porto", "s1"))
        text = text[:500] if short else text
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        value = dice.choice(BROKEN)
        return value if kind == FieldDescriptor.CPPTYPE_DOUBLE or abs(value) < 3e38 else math.inf
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return dice.choice((0, 1, 2, 3, 99, -1, 2**31 - 1))
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return abs(dice.choice(WHOLE)) & 0x7FFFFFFF if dice.random() < 0.9 else 2**32 - 1
    return dice.choice(WHOLE)


def _flipped(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data[:2000] or b"\x0a\x01a")
    for _ in range(dice.choice((1, 1, 3, 20))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))] if data else b"\x0a"


def _wire(descriptor: Descriptor, dice: random.Random) -> bytes:
    """Fields of the message with wrong types on the wire, text that is no UTF-8, lengths that lie, unknown numbers."""
    parts = []
    numbers = [field.number for field in descriptor.fields] + [99, 536_870_911]
    for _ in range(dice.randrange(1, 5)):
        number = dice.choice(numbers)
        kind = dice.choice((0, 1, 2, 2, 2, 3, 4, 5, 7))
        parts.append(_varint(number << 3 | kind))
        if kind == 0:
            parts.append(dice.choice((b"\x01", b"\xff" * 9 + b"\x01", b"\xff" * 11)))
        elif kind == 1:
            parts.append(dice.randbytes(8))
        elif kind == 5:
            parts.append(dice.randbytes(4))
        elif kind == 2:
            text = dice.choice((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"ok", b""))
            claimed = dice.choice((len(text), len(text), 2**31 - 1, 2**35, len(text) + 1))
            parts.append(_varint(claimed) + text)
    return b"".join(parts)


def _nested(dice: random.Random) -> bytes:
    """A message in a message in a message, or groups, deeper than any reader goes."""
    number = dice.randrange(1, 12)
    if dice.random() < 0.5:
        return _varint(number << 3 | 3) * dice.choice((50, 200, 20_000))
    data = b""
    for _ in range(dice.choice((50, 150, 1000))):
        data = _varint(number << 3 | 2) + _varint(len(data)) + data
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)
