"""JSON text with the places of its members, so that a part can be changed and every other character stays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memoryos_server.domain.core.faults import Invalid

_BLANK = re.compile(r"[ \t\n\r]*")
_MARK = re.compile(r'["{}\[\]]')
_TOKEN = re.compile(r'["{}\[\]]|[0-9-][0-9.eE+-]*')


class Member(NamedTuple):
    """A member of an object, or an element of an array.

    Attributes:
        name: Its name; "" in an array.
        value: Its value, parsed.
        at: Where it begins in the text, with its name.
        start: Where its value begins.
        end: Where its value ends.
    """

    name: str
    value: Any
    at: int
    start: int
    end: int


def members(text: str, param: str | None = None) -> list[Member]:
    """The members of a JSON object, in their order.

    Args:
        text: The text, with nothing but the object.
        param: What the text is, for errors; None: the body.

    Raises:
        Invalid: It is no JSON object.
    """
    what = param or "The body"
    try:
        found = list(_scan(text, "{", 0))
        end = found[-1].end if found else _skip(text, 0) + 1
        end = _skip(text, end)
        if text[end : end + 1] != "}" or _skip(text, end + 1) != len(text):
            raise ValueError("there is more behind the object")
    except TypeError:
        raise Invalid(f"{what} must be a JSON object", param=param) from None
    except (ValueError, StopIteration) as error:
        raise Invalid(f"{what} is not valid JSON", details=_where(error), param=param) from None
    except RecursionError:
        raise Invalid(f"{what} is nested too deeply", param=param) from None
    return found


def inner_members(text: str, start: int) -> list[Member]:
    """The members of an object that begins at `start` in a text known to be sound."""
    return list(_scan(text, "{", start))


def elements(text: str, start: int) -> list[Member]:
    """The elements of an array that begins at `start` in a text known to be sound."""
    return list(_scan(text, "[", start))


def strings(text: str, start: int, end: int) -> Iterator[tuple[Sequence[str], Member]]:
    """The texts within a value, however deeply nested, in a text known to be sound, each with the names that lead to it.

    An element of an array is named as the array is.
    """
    names: list[str | None] = [None]
    at = start
    while (mark := _MARK.search(text, at, end)) is not None:
        at = mark.end()
        if mark[0] in "{[":
            names.append(None)
        elif mark[0] in "}]":
            names.pop()
        else:
            value, at = _DECODER.raw_decode(text, mark.start())
            behind = _skip(text, at)
            if text[behind : behind + 1] == ":":
                names[-1] = value
            else:
                path = [name for name in names if name is not None]
                yield path, Member(path[-1] if path else "", value, mark.start(), mark.start(), at)


class Scalar(NamedTuple):
    """A text or a number in JSON text.

    Attributes:
        name: The name of the member that it is the value of, or is in an array of; "" for none.
        text: The text; a number as it is written.
        kind: `name` for the name of a member, else `text` or `number`.
        start: Where it begins.
        end: Where it ends.
    """

    name: str
    text: str
    kind: str
    start: int
    end: int


def scalars(text: str) -> Iterator[Scalar]:
    """The texts, numbers and names within an object or array, however deeply nested, in a text known to be sound."""
    names = [""]
    at = 0
    while (mark := _TOKEN.search(text, at)) is not None:
        at = mark.end()
        if mark[0] in "{[":
            names.append(names[-1])
        elif mark[0] in "}]":
            names.pop()
        elif mark[0] != '"':
            yield Scalar(names[-1], mark[0], "number", mark.start(), at)
        else:
            value, at = _DECODER.raw_decode(text, mark.start())
            behind = _skip(text, at)
            if text[behind : behind + 1] == ":":
                names[-1] = value
                yield Scalar("", value, "name", mark.start(), at)
            else:
                yield Scalar(names[-1], value, "text", mark.start(), at)


def is_compound(text: str) -> bool:
    """Whether a text is an object or an array in JSON."""
    at = _skip(text, 0)
    if text[at : at + 1] not in ("{", "["):
        return False
    try:
        _, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return False
    return _skip(text, end) == len(text)


Edit = tuple[int, int, str]
"""From where, to where, and what stands there instead."""


def without(among: Sequence[Member], dropped: Sequence[int]) -> list[Edit]:
    """The edits that take members out of an object, or elements out of an array, with the commas that are then too many.

    Args:
        among: All members.
        dropped: The indexes of those that go.
    """
    gone = set(dropped)
    last = max((at for at in range(len(among)) if at not in gone), default=None)
    edits = []
    for at in sorted(gone):
        one = among[at]
        if last is not None and at > last:
            edits.append((among[at - 1].end, one.end, ""))
        elif at + 1 < len(among):
            edits.append((one.at, among[at + 1].at, ""))
        else:
            edits.append((one.at, one.end, ""))
    return edits


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The text after edits that do not overlap."""
    pieces, done = [], 0
    for start, end, instead in sorted(edits):
        pieces += [text[done:start], instead]
        done = end
    return "".join([*pieces, text[done:]])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    # Python refuses integers of more than 4,300 digits; such a number is only compared, never printed.
    return int(text) if len(text) < 4000 else float("-inf" if text.startswith("-") else "inf")


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer)


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _where(error: Exception) -> str | None:
    # A decoder error's own text holds no content, only what was expected and where.
    return str(error) if isinstance(error, json.JSONDecodeError) else None


def _scan(text: str, opening: str, at: int) -> Iterator[Member]:
    """Walks the members of the object, or elements of the array, that starts at `at`.

    Raises:
        TypeError: Something else stands there.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    at = _skip(text, at)
    if text[at : at + 1] != opening:
        _DECODER.raw_decode(text, at)
        raise TypeError
    closing = "}" if opening == "{" else "]"
    at = _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return
    while True:
        name, began = "", at
        if opening == "{":
            key, at = _DECODER.raw_decode(text, at)
            if not isinstance(key, str):
                raise ValueError("a member's name is no string")
            name = key
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
            at = _skip(text, at + 1)
        value, end = _DECODER.raw_decode(text, at)
        yield Member(name, value, began, at, end)
        at = _skip(text, end)
        following = text[at : at + 1]
        if following == closing:
            return
        if following != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip(text, at + 1)
