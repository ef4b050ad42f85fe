"""Between protobuf's values and the domain's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from memoryos.v1 import types_pb2
from memoryos_server.domain.core.faults import Invalid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def optional(message: Message, field: str) -> Any:
    """The field's value, or None if it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def aware(message: Message, field: str) -> datetime | None:
    """The field's time in UTC, or None if it is absent.

    Raises:
        Invalid: The Timestamp is out of range.
    """
    if not message.HasField(field):
        return None
    try:
        value: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"{field} is not a time between the years 1 and 9999", param=field) from None
    return value


def stamp(value: datetime) -> Timestamp:
    """The time as protobuf has it."""
    since = value - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def role_name(value: int) -> str:
    """Such as `user`; "" if unspecified or unknown."""
    if value == types_pb2.ROLE_UNSPECIFIED or value not in types_pb2.Role.values():
        return ""
    return types_pb2.Role.Name(types_pb2.Role.ValueType(value)).removeprefix("ROLE_").lower()


def role_value(name: str) -> types_pb2.Role.ValueType:
    """The enum value of `user`, `assistant` or `system`."""
    return types_pb2.Role.Value(f"ROLE_{name.upper()}")
