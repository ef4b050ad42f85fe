from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from scratch.v1 import scratch_service_pb2 as pb

from memoryos_bridge.codec import Codec, loads, refusal
from memoryos_bridge.errors import BridgeError
from memoryos_bridge.scalars import MESSAGES, Misfit, show_time

CODEC = Codec()


def shown(message: Any) -> Any:
    return orjson.loads(orjson.dumps(CODEC.of(message.DESCRIPTOR).encode(message)))


def read(cls: Any, value: Any) -> Any:
    message = cls()
    CODEC.of(cls.DESCRIPTOR).fill(message, value)
    return message


def refused(cls: Any, value: Any) -> BridgeError:
    with pytest.raises(Misfit) as caught:
        read(cls, value)
    error = refusal(caught.value)
    assert error.status == 400
    assert error.code == "invalid_argument"
    return error


def test_encode_when_message_is_empty_then_zero_values_show_and_absent_ones_do_not() -> None:
    assert shown(pb.Thing()) == {
        "id": "",
        "name": "",
        "owner": "",
        "kind": "unspecified",
        "tags": [],
        "parts": [],
        "sizes": {},
        "config": None,
        "from": "",
        "error": None,
        "live": False,
        "blob": "",
    }


def test_encode_when_message_is_full_then_each_field_has_its_rest_shape() -> None:
    thing = pb.Thing(
        kind=pb.THING_KIND_BIG_ONE,
        weight=0.0,
        parts=[pb.Part(label="x", count=4294967295)],
        main_part=pb.Part(),
        sizes={"a": -1},
        created_at=Timestamp(seconds=1772020800),
        config_json='{"n": 123456789012345678901234567890, "b": [1.0, 1]}',
        from_place="there",
        error="it",
        blob=b"\x00\xff",
    )
    text = orjson.dumps(CODEC.of(thing.DESCRIPTOR).encode(thing)).decode()
    assert '"config":{"n": 123456789012345678901234567890, "b": [1.0, 1]}' in text
    value = orjson.loads(text)
    assert value["kind"] == "big_one"
    assert value["weight"] == 0
    assert value["parts"] == [{"label": "x", "count": 4294967295}]
    assert value["main_part"] == {"label": "", "count": 0}
    assert value["sizes"] == {"a": -1}
    assert value["created_at"] == "2026-02-25T12:00:00Z"
    assert value["from"] == "there"
    assert value["error"] == "it"
    assert value["blob"] == "AP8="


def test_encode_when_enum_value_is_unknown_then_its_number_shows() -> None:
    assert shown(pb.Thing(kind=77))["kind"] == 77  # type: ignore[arg-type]  # as a newer server would send


def test_encode_when_raw_json_is_broken_then_the_answer_stays_json() -> None:
    assert shown(pb.Thing(config_json='{"a":'))["config"] == '{"a":'


def test_encode_when_double_is_not_finite_then_null() -> None:
    assert shown(pb.Thing(weight=math.nan))["weight"] is None


@pytest.mark.parametrize("text", ["big_one", "BIG_ONE", "BigOne", "bigOne", "big-one"])
def test_decode_when_enum_is_spelt_in_any_way_then_taken(text: str) -> None:
    assert read(pb.CreateThingRequest, {"kind": text}).kind == pb.THING_KIND_BIG_ONE


@pytest.mark.parametrize("text", ["Faq", "faq", "FAQ"])
def test_decode_when_enum_has_a_rest_name_then_taken(text: str) -> None:
    assert read(pb.CreateThingRequest, {"kind": text}).kind == pb.THING_KIND_FAQ


def test_encode_when_enum_has_a_rest_name_then_shown() -> None:
    assert shown(pb.Thing(kind=pb.THING_KIND_FAQ))["kind"] == "Faq"


def test_decode_when_null_then_absent() -> None:
    message = read(
        pb.CreateThingRequest, {"weight": None, "tags": None, "main_part": None, "config": None, "kind": None}
    )
    assert message == pb.CreateThingRequest()


def test_decode_when_float_is_integral_then_taken_as_integer() -> None:
    assert read(pb.CreateThingRequest, {"parts": [{"count": 3.0}]}).parts[0].count == 3


def test_decode_when_integer_is_given_for_a_double_then_taken() -> None:
    assert read(pb.CreateThingRequest, {"weight": 3}).weight == 3.0


def test_decode_when_raw_json_holds_great_integers_then_exact() -> None:
    body = loads(b'{"config": {"n": 123456789012345678901234567890, "f": 1.5, "s": "\xc3\xa4"}}', exact=True)
    message = read(pb.CreateThingRequest, body)
    assert message.config_json == '{"n":123456789012345678901234567890,"f":1.5,"s":"ä"}'


@pytest.mark.parametrize(
    ("value", "param", "expected"),
    [
        ({"nope": 1}, "nope", "known: name, owner"),
        ({"parts": [{"count": 1}, {"count": True}]}, "parts[1].count", "a whole number from 0 to 4294967295, not true"),
        ({"parts": [{"count": -1}]}, "parts[0].count", "a whole number from 0 to 4294967295"),
        ({"parts": [{"count": 1.5}]}, "parts[0].count", "a whole number"),
        ({"parts": [{"count": "1"}]}, "parts[0].count", "not a string"),
        ({"parts": [{"colour": 1}]}, "parts[0].colour", "known: label, count"),
        ({"parts": [None]}, "parts[0]", "an object, not null"),
        ({"parts": {}}, "parts", "an array, not an object"),
        ({"main_part": []}, "main_part", "an object, not an array"),
        ({"main_part": {"label": 5}}, "main_part.label", "a string, not a number"),
        ({"tags": ["a", 1]}, "tags[1]", "a string, not a number"),
        ({"tags": [None]}, "tags[0]", "a string, not null"),
        ({"tags": "a"}, "tags", "an array, not a string"),
        ({"sizes": {"a": 2147483648}}, "sizes.a", "a whole number from -2147483648 to 2147483647"),
        ({"sizes": []}, "sizes", "an object, not an array"),
        ({"weight": True}, "weight", "a number, not true"),
        ({"weight": "1"}, "weight", "a number, not a string"),
        ({"weight": 10**400}, "weight", "a finite number"),
        ({"live": 1}, "live", "true or false, not a number"),
        ({"kind": "huge"}, "kind", "one of big_one, Faq"),
        ({"kind": 1}, "kind", "one of big_one, Faq, not a number"),
        ({"created_at": "yesterday"}, "created_at", "an RFC 3339 time"),
        ({"created_at": 5}, "created_at", "an RFC 3339 time"),
        ({"blob": "@@"}, "blob", "base64 text"),
        ({"config_json": "{}"}, "config_json", "is not a field here"),
        ({"from_place": "x"}, "from_place", "is not a field here"),
        ([], None, "an object, not an array"),
        ("x", None, "an object, not a string"),
    ],
)
def test_decode_when_a_value_does_not_fit_then_the_error_names_field_and_expectation(
    value: Any, param: str | None, expected: str
) -> None:
    error = refused(pb.CreateThingRequest, value)
    assert error.param == param
    assert expected in error.message


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("2026-02-25T12:00:00Z", 1772020800, 0),
        ("2026-02-25t12:00:00z", 1772020800, 0),
        ("2026-02-25 12:00:00Z", 1772020800, 0),
        ("2026-02-25T20:00:00+08:00", 1772020800, 0),
        ("2026-02-25T06:30:00.5-05:30", 1772020800, 500_000_000),
        ("2026-02-25T12:00:00.123456789Z", 1772020800, 123_456_789),
        ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
        ("0001-01-01T00:00:00Z", -62135596800, 0),
    ],
)
def test_decode_when_time_has_any_rfc3339_form_then_taken(text: str, seconds: int, nanos: int) -> None:
    stamp = read(pb.CreateThingRequest, {"created_at": text}).created_at
    assert (stamp.seconds, stamp.nanos) == (seconds, nanos)


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-25",
        "2026-02-25T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-02-25T24:00:00Z",
        "2026-02-25T12:00:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "2026-02-25T12:00:00+24:00",
        "2026-02-25T12:00:00.Z",
        "２０２６-02-25T12:00:00Z",
        " 2026-02-25T12:00:00Z",
        "",
    ],
)
def test_decode_when_time_is_malformed_then_refused(text: str) -> None:
    assert refused(pb.CreateThingRequest, {"created_at": text}).param == "created_at"


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "1970-01-01T00:00:00Z"),
        (0, 1_000, "1970-01-01T00:00:00.000001Z"),
        (0, 999, "1970-01-01T00:00:00Z"),
        (-1, 500_000_000, "1969-12-31T23:59:59.500000Z"),
    ],
)
def test_encode_when_time_has_microseconds_then_only_then_they_show(seconds: int, nanos: int, text: str) -> None:
    assert show_time(Timestamp(seconds=seconds, nanos=nanos)) == text


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [(1, 500_000_000, "1.5s"), (-1, -1, "-1.000000001s"), (0, 0, "0s"), (3600, 0, "3600s")],
)
def test_duration_when_shown_then_read_back(seconds: int, nanos: int, text: str) -> None:
    kind = MESSAGES["google.protobuf.Duration"]
    duration = Duration(seconds=seconds, nanos=nanos)
    assert kind.show(duration) == text
    assert kind.read(text) == duration


def test_loads_when_not_json_then_400() -> None:
    for body in (b"{", b"\xff", b'{"a": NaN}', b'"\\ud800"', b"[" * 2000, b"1e999"):
        with pytest.raises(BridgeError) as caught:
            loads(body, exact=True)
        assert caught.value.status == 400


def odd_class() -> Any:
    """A message with what the scratch service has not: all scalars, maps of other keys, a oneof, itself."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="odd.proto", package="odd", syntax="proto3")
    message = file.message_type.add(name="Odd")
    for number, kind in enumerate(("FLOAT", "INT64", "UINT64", "SINT32", "FIXED64", "SFIXED32", "BYTES"), 1):
        message.field.add(
            name=kind.lower(), number=number, type=getattr(kinds, f"TYPE_{kind}"), label=kinds.LABEL_REPEATED
        )
    message.field.add(name="self", number=20, type=kinds.TYPE_MESSAGE, type_name=".odd.Odd", label=kinds.LABEL_OPTIONAL)
    message.oneof_decl.add(name="choice")
    for number, name in ((21, "left"), (22, "right")):
        message.field.add(name=name, number=number, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL, oneof_index=0)
    entry = message.nested_type.add(name="ByNumberEntry", options=descriptor_pb2.MessageOptions(map_entry=True))
    entry.field.add(name="key", number=1, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".odd.Odd", label=kinds.LABEL_OPTIONAL)
    message.field.add(
        name="by_number",
        number=23,
        type=kinds.TYPE_MESSAGE,
        type_name=".odd.Odd.ByNumberEntry",
        label=kinds.LABEL_REPEATED,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("odd.Odd"))


ODD = odd_class()


def test_encode_when_float_is_single_precision_then_shortest_text() -> None:
    assert CODEC.of(ODD.DESCRIPTOR).encode(ODD(float=[0.1, 16777216.0, 1e-45, 3.4028235e38]))["float"] == [
        0.1,
        16777216.0,
        1.4013e-45,
        3.4028235e38,
    ]


def test_decode_when_int64_is_a_number_then_a_number_again() -> None:
    value = {"int64": [-(2**63), 2**63 - 1], "uint64": [2**64 - 1]}
    message = read(ODD, value)
    encoded = CODEC.of(ODD.DESCRIPTOR).encode(message)
    assert encoded["int64"] == value["int64"]
    assert encoded["uint64"] == value["uint64"]


def test_decode_when_two_of_a_oneof_are_given_then_refused() -> None:
    error = refused(ODD, {"left": "a", "right": "b"})
    assert error.param == "right"
    assert "left" in error.message


def test_decode_when_a_message_holds_itself_then_any_depth_is_read() -> None:
    value = {"self": {"by_number": {"true": {"left": ""}}}}
    message = read(ODD, value)
    assert message.self.by_number[True].left == ""
    assert message.self.by_number[True].HasField("left")
    assert refused(ODD, {"self": {"by_number": {"maybe": {}}}}).param == "self.by_number.maybe"
    assert refused(ODD, {"float": [3.5e38]}).param == "float[0]"


def test_rest_path_when_the_server_names_a_field_then_rest_name() -> None:
    codec = CODEC.of(pb.CreateThingRequest.DESCRIPTOR)
    assert codec.rest_path("config_json") == "config"
    assert codec.rest_path("parts[1].count") == "parts[1].count"
    assert codec.rest_path("X-Tenant-ID") == "X-Tenant-ID"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PARTS = st.builds(pb.Part, label=TEXTS, count=st.integers(0, 2**32 - 1))
STAMPS = st.builds(
    Timestamp, seconds=st.integers(-62135596800, 253402300799), nanos=st.integers(0, 999_999).map(lambda n: n * 1000)
)


@st.composite
def requests(draw: st.DrawFn) -> pb.CreateThingRequest:
    message = pb.CreateThingRequest(
        name=draw(TEXTS),
        owner=draw(TEXTS),
        kind=draw(st.sampled_from([0, 1, 2])),  # type: ignore[arg-type]
        tags=draw(st.lists(TEXTS, max_size=3)),
        parts=draw(st.lists(PARTS, max_size=3)),
        sizes=draw(st.dictionaries(TEXTS, st.integers(-(2**31), 2**31 - 1), max_size=3)),
        from_place=draw(TEXTS),
        live=draw(st.booleans()),
        blob=draw(st.binary(max_size=20)),
    )
    if draw(st.booleans()):
        message.weight = draw(st.floats(allow_nan=False, allow_infinity=False))
    if draw(st.booleans()):
        message.main_part.CopyFrom(draw(PARTS))
    if draw(st.booleans()):
        message.created_at.CopyFrom(draw(STAMPS))
    if draw(st.booleans()):
        value = draw(JSON.filter(lambda v: v is not None))
        message.config_json = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return message


@settings(max_examples=200, deadline=None)
@given(requests())
def test_codec_when_any_message_goes_to_json_and_back_then_it_is_the_same(message: pb.CreateThingRequest) -> None:
    codec = CODEC.of(message.DESCRIPTOR)
    body = orjson.dumps(codec.encode(message))
    assert read(pb.CreateThingRequest, loads(body, exact=True)) == message


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(list(CODEC.of(pb.CreateThingRequest.DESCRIPTOR).fields)) | TEXTS, JSON))
def test_codec_when_any_json_comes_then_it_is_read_or_refused_by_name(value: Any) -> None:
    params: list[str | None] = [""]
    try:
        read(pb.CreateThingRequest, value)
    except Misfit as misfit:
        params = [refusal(misfit).param]
    assert None not in params
