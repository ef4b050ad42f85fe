"""What every request is checked for before a handler sees it: required fields are there, enum values exist.

Ranges and formats are the domain's. What has to be looked at is compiled once per message type, so that a request
without such fields costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from memoryos.schema import Method, required_fields
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.rpc.wrap import Call


@dataclass(slots=True)
class _Plan:
    """What to look at in a message type.

    Attributes:
        required: Fields that must be there.
        enums: Fields whose value must be one of the proto's.
        inner: Message fields to look into, with their plans.
    """

    required: list[FieldDescriptor] = field(default_factory=list)
    enums: list[tuple[FieldDescriptor, frozenset[int]]] = field(default_factory=list)
    inner: list[tuple[FieldDescriptor, _Plan]] = field(default_factory=list)


class Required:
    """The interceptor `required`."""

    def __init__(self, methods: Iterable[Method]) -> None:
        """Compiles the plans of the methods' requests."""
        plans: dict[str, _Plan] = {}
        self._plans = {method.path: _plan(method.descriptor.input_type, plans) for method in methods}

    def __call__(self, call: Call) -> None:
        """Checks the request.

        Raises:
            Invalid: A required field is missing, or an enum has a value that the proto does not know.
        """
        _check(call.request, self._plans[call.method.path], "")


def _plan(message: Descriptor, plans: dict[str, _Plan]) -> _Plan:
    if message.full_name in plans:
        return plans[message.full_name]
    plan = plans[message.full_name] = _Plan()  # before the fields: a message may hold itself
    plan.required = list(required_fields(message))
    for each in message.fields:
        if each.enum_type is not None:
            plan.enums.append((each, frozenset(each.enum_type.values_by_number)))
        elif each.message_type is not None and not _is_map(each) and _matters(each.message_type, set()):
            plan.inner.append((each, _plan(each.message_type, plans)))
    return plan


def _matters(message: Descriptor, seen: set[str]) -> bool:
    """Whether there is anything to check in a message or below it."""
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(True for _ in required_fields(message)) or any(
        each.enum_type is not None
        or (each.message_type is not None and not _is_map(each) and _matters(each.message_type, seen))
        for each in message.fields
    )


def _is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and bool(each.message_type.GetOptions().map_entry)


def _check(message: Message, plan: _Plan, prefix: str) -> None:
    for each in plan.required:
        if _missing(message, each):
            raise Invalid(f"{prefix}{each.name} is required", param=f"{prefix}{each.name}")
    for each, known in plan.enums:
        value = getattr(message, each.name)
        for number in value if each.is_repeated else (value,):
            if number not in known:
                raise Invalid(f"{prefix}{each.name} has the unknown value {number}", param=f"{prefix}{each.name}")
    for each, inner in plan.inner:
        for path, item in _items(message, each, prefix):
            _check(item, inner, f"{path}.")


def _missing(message: Message, each: FieldDescriptor) -> bool:
    value: Any = getattr(message, each.name)
    if each.is_repeated:
        return len(value) == 0
    if each.has_presence and not message.HasField(each.name):
        return True
    if each.enum_type is not None:
        return bool(value == 0)
    # Without presence, an empty text is a missing one; a zero or false may be meant.
    return not each.has_presence and isinstance(value, str | bytes) and not value


def _items(message: Message, each: FieldDescriptor, prefix: str) -> Iterable[tuple[str, Message]]:
    value: Any = getattr(message, each.name)
    path = f"{prefix}{each.name}"
    if not each.is_repeated:
        return [(path, value)] if message.HasField(each.name) else []
    return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
