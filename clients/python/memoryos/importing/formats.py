"""The formats, and how a file's is told from its beginning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from memoryos.importing import chatgpt, jsonl, mem0
from memoryos.importing.items import Item, Unreadable
from memoryos.importing.streams import Source, elements

READERS: Mapping[str, Callable[[Source], Iterator[Item]]] = MappingProxyType(
    {"mem0": mem0.read, "chatgpt": chatgpt.read, "jsonl": jsonl.read}
)
"""Name -> reader."""


def detect(source: Source) -> str:
    """The name of a file's format.

    Raises:
        Unreadable: It is none of them.
    """
    first = _first_line(source)
    if isinstance(first, dict) and "role" in first:
        return "jsonl"
    try:
        element = _first_element(source)
    except Unreadable as error:
        raise Unreadable(f"its format is not known ({error}); name it with --format") from None
    if isinstance(element, dict) and "mapping" in element:
        return "chatgpt"
    if isinstance(element, dict) and isinstance(element.get("memory"), str):
        return "mem0"
    raise Unreadable("its format is not known; name it with --format")


def _first_line(source: Source) -> Any:
    with source.parts() as files:
        for file in files:
            # An array on one line may be the whole file: what does not end soon is no line of a conversation.
            line = file.readline(1 << 20)
            while line and not line.strip():
                line = file.readline(1 << 20)
            try:
                return json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                return None
    return None


def _first_element(source: Source) -> Any:
    with source.parts() as files:
        for file in files:
            for element in islice(elements(file, (*mem0.LISTS, "conversations")), 1):
                return element
    raise Unreadable("it is empty")
