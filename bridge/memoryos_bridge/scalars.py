"""How single values look in JSON: one converter per kind of field, made from its descriptor.

A reader takes a parsed JSON value, a parser takes the text of a parameter, a shower gives what JSON shows.
Readers are strict: what they do not expect is a `Misfit` that says what they did.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.v1 import options_pb2

Show = Callable[[Any], Any]
Read = Callable[[Any], Any]


class Misfit(Exception):
    """A value does not fit its field.

    Attributes:
        expected: What would have fitted, such as `a string`; or the whole sentence after the field's name.
        path: The field's name from the outside in, gathered while the exception passes.
        whole: `expected` is the whole message.
    """

    def __init__(self, expected: str, *, whole: bool = False) -> None:
        """Keeps what was expected."""
        super().__init__(expected)
        self.expected = expected
        self.whole = whole
        self.path: list[str] = []

    def within(self, name: str) -> Misfit:
        """This, seen from one level further out."""
        self.path.insert(0, name)
        return self

    @property
    def param(self) -> str:
        """Such as `parts[1].count`."""
        return "".join(part if part.startswith("[") else f".{part}" for part in self.path).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Attributes:
        show: The field's value -> what JSON shows.
        read: A JSON value, not null -> the field's value. Raises Misfit.
        parse: The text of a parameter -> the field's value. Raises Misfit.
        schema: Its JSON Schema.
    """

    show: Show
    read: Read
    parse: Callable[[str], Any]
    schema: dict[str, Any]


def name_of(value: Any) -> str:
    """What a JSON value is called in messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (int, float)):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"


def same(value: Any) -> Any:
    """The value itself."""
    return value


def _misfit(expected: str, value: Any) -> Misfit:
    return Misfit(f"{expected}, not {name_of(value)}")


def _read_bool(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise _misfit("true or false", value)


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise Misfit("true or false")


def _read_string(value: Any) -> str:
    if type(value) is str:
        return value
    raise _misfit("a string", value)


def _integer(low: int, high: int) -> Kind:
    expected = f"a whole number from {low} to {high}"

    def read(value: Any) -> int:
        if type(value) is int:
            number = value
        elif type(value) is float and value.is_integer():
            number = int(value)
        elif type(value) is float:
            raise Misfit(expected)
        else:
            raise _misfit(expected, value)
        if not low <= number <= high:
            raise Misfit(expected)
        return number

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text):
            raise Misfit(expected)
        return read(int(text))

    return Kind(same, read, parse, {"type": "integer", "minimum": low, "maximum": high})


_FLOAT_MAX = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]


def _read_double(value: Any) -> float:
    if type(value) is not float and type(value) is not int:
        raise _misfit("a number", value)
    try:
        number = float(value)
    except OverflowError:
        raise Misfit("a finite number") from None
    if not math.isfinite(number):
        raise Misfit("a finite number")
    return number


def _read_float(value: Any) -> float:
    number = _read_double(value)
    if abs(number) > _FLOAT_MAX:
        raise Misfit("a number of single precision")
    return number


def _parse_number(read: Read) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            raise Misfit("a number")
        return float(read(float(text)))

    return parse


def _show_double(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _show_float(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    # The shortest text that is the same number in single precision: 0.1, not 0.10000000149011612.
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return float(f"{value:.9g}")


def _show_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _read_bytes(value: Any) -> bytes:
    if type(value) is not str:
        raise _misfit("base64 text", value)
    plain = value.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Misfit("base64 text") from None


def plain(name: str) -> str:
    """An enum's spelling without case, blanks and separators: `FaqCandidate` and `faq_candidate` are the same."""
    return name.replace("_", "").replace("-", "").replace(" ", "").lower()


def enum(descriptor: EnumDescriptor) -> Kind:
    """An enum: lower snake case without its prefix, unless the proto names it otherwise."""
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", descriptor.name).upper() + "_"
    shown: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for value in descriptor.values:
        short = value.name.removeprefix(prefix).lower()
        name = value.GetOptions().Extensions[options_pb2.enum_name].rest_name or short
        shown.setdefault(value.number, name)
        for spelling in (short, name):
            numbers[plain(spelling)] = value.number
    choices = [name for number, name in shown.items() if number != 0 or plain(name) != "unspecified"]
    expected = "one of " + ", ".join(choices)

    def show(value: int) -> str | int:
        # A number that is not known here comes from a newer server and is better shown than lost.
        return shown.get(value, value)

    def read(value: Any) -> int:
        if type(value) is not str:
            raise _misfit(expected, value)
        number = numbers.get(plain(value))
        if number is None:
            raise Misfit(expected)
        return number

    return Kind(show, read, read, {"type": "string", "enum": choices})


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)  # noqa: UP017 - `timezone` is needed for offsets anyway
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)
_TIME_EXPECTED = "an RFC 3339 time such as 2026-01-31T12:00:00Z"


def show_time(value: Timestamp) -> str:
    """RFC 3339 in UTC; microseconds only if there are any."""
    moment = _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    return moment.replace(tzinfo=None).isoformat() + "Z"


def _read_time(value: Any) -> Timestamp:
    if type(value) is not str:
        raise _misfit(_TIME_EXPECTED, value)
    match = _TIME.fullmatch(value)
    if match is None:
        raise Misfit(_TIME_EXPECTED)
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset = timedelta()
    if match[9]:
        if int(match[10]) > 23 or int(match[11]) > 59:
            raise Misfit(_TIME_EXPECTED)
        offset = timedelta(hours=int(match[10]), minutes=int(match[11])) * (-1 if match[9] == "-" else 1)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc) - offset  # noqa: UP017 - as above
    except (ValueError, OverflowError):
        raise Misfit(_TIME_EXPECTED) from None
    span = moment - _EPOCH
    return Timestamp(seconds=span.days * 86400 + span.seconds, nanos=int((match[7] or "").ljust(9, "0")))


def _parse_time(text: str) -> Timestamp:
    # An unescaped + of an offset arrives as a blank.
    return _read_time(re.sub(r" (\d\d:\d\d)$", r"+\1", text))


def _show_duration(value: Duration) -> str:
    total = value.seconds * 10**9 + value.nanos
    whole, nanos = divmod(abs(total), 10**9)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{'-' if total < 0 else ''}{whole}{fraction}s"


def _read_duration(value: Any) -> Duration:
    expected = 'a span of seconds such as "1.5s"'
    if type(value) is not str:
        raise _misfit(expected, value)
    match = re.fullmatch(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s", value, re.ASCII)
    if match is None or int(match[2]) > 315_576_000_000:
        raise Misfit(expected)
    sign = -1 if match[1] else 1
    return Duration(seconds=sign * int(match[2]), nanos=sign * int((match[3] or "").ljust(9, "0")))


def _read_mask(value: Any) -> FieldMask:
    if type(value) is not str:
        raise _misfit("field names joined by commas", value)
    return FieldMask(paths=[part for part in value.split(",") if part])


def _show_json(value: str) -> Any:
    if not value:
        return None
    try:
        orjson.loads(value)
    except orjson.JSONDecodeError:
        return value  # not JSON: shown as the text it is, so that the answer stays JSON
    return orjson.Fragment(value)


def _read_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _parse_json(text: str) -> str:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Misfit("JSON") from None
    return text


RAW_JSON = Kind(_show_json, _read_json, _parse_json, {})
"""A string field that holds JSON text: REST shows and takes the JSON value itself."""

_STRING = Kind(same, _read_string, same, {"type": "string"})
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_F = FieldDescriptor
_SCALARS: dict[int, Kind] = {
    _F.TYPE_STRING: _STRING,
    _F.TYPE_BOOL: Kind(same, _read_bool, _parse_bool, {"type": "boolean"}),
    _F.TYPE_BYTES: Kind(_show_bytes, _read_bytes, _read_bytes, _BASE64),
    _F.TYPE_DOUBLE: Kind(_show_double, _read_double, _parse_number(_read_double), {"type": "number"}),
    _F.TYPE_FLOAT: Kind(_show_float, _read_float, _parse_number(_read_float), {"type": "number"}),
    **{t: _integer(-(2**31), 2**31 - 1) for t in (_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32)},
    **{t: _integer(0, 2**32 - 1) for t in (_F.TYPE_UINT32, _F.TYPE_FIXED32)},
    **{t: _integer(-(2**63), 2**63 - 1) for t in (_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64)},
    **{t: _integer(0, 2**64 - 1) for t in (_F.TYPE_UINT64, _F.TYPE_FIXED64)},
}

MESSAGES: dict[str, Kind] = {
    "google.protobuf.Timestamp": Kind(show_time, _read_time, _parse_time, {"type": "string", "format": "date-time"}),
    "google.protobuf.Duration": Kind(_show_duration, _read_duration, _read_duration, {"type": "string"}),
    "google.protobuf.FieldMask": Kind(lambda mask: ",".join(mask.paths), _read_mask, _read_mask, {"type": "string"}),
}
"""Messages that JSON shows as one string."""


def scalar(field: FieldDescriptor) -> Kind | None:
    """The kind of a field's single value; None for a message that JSON shows as an object."""
    if field.message_type is not None:
        return MESSAGES.get(field.message_type.full_name)
    if field.enum_type is not None:
        return enum(field.enum_type)
    if field.type == FieldDescriptor.TYPE_STRING and field.GetOptions().Extensions[options_pb2.field].raw_json:
        return RAW_JSON
    return _SCALARS[field.type]
