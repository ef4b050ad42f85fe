"""W3C trace context, carried from hop to hop; and spans of our own, where a collector is named.

Carrying needs nothing: what came in as `traceparent` goes out unchanged. With `telemetry.endpoint` set, the spans of
`memoryos.spans` step in between. Nothing here imports OpenTelemetry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Protocol

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]*)?")
_LONGEST_STATE = 512

Value = str | int
"""What an attribute may be here: names, codes and numbers; never content, a key, a user or a tenant."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a call stands in its trace.

    Attributes:
        parent: The `traceparent` for the next hop.
        state: The `tracestate` for the next hop, or "".
        recorded: A span of this process stands behind it that is exported.
    """

    parent: str
    state: str = ""
    recorded: bool = False

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return self.parent[3:35]


_hop: ContextVar[Hop | None] = ContextVar("memoryos_hop", default=None)


def received(parent: str, state: str = "") -> Hop | None:
    """What a caller sent; None if it is malformed, and then nobody is told of it."""
    found = _PARENT.fullmatch(parent)
    if found is None or (found[2] and parent.startswith("00")):
        return None
    kept = state if len(state) <= _LONGEST_STATE and state.isascii() and state.isprintable() else ""
    return Hop(parent, kept)


def current() -> Hop | None:
    """Where the present call stands; None if it has no trace."""
    return _hop.get()


def enter(hop: Hop | None) -> Token[Hop | None]:
    """Sets where the present call stands, until `leave`."""
    return _hop.set(hop)


def leave(token: Token[Hop | None]) -> None:
    """Undoes an `enter` of the same task."""
    _hop.reset(token)


def outgoing() -> dict[str, str]:
    """The headers, or metadata, for the next hop; empty without a trace."""
    hop = _hop.get()
    if hop is None:
        return {}
    return {TRACEPARENT: hop.parent, TRACESTATE: hop.state} if hop.state else {TRACEPARENT: hop.parent}


class Span(Protocol):
    """A piece of work that is measured."""

    def rename(self, name: str) -> None:
        """Gives it another name, once that is known."""

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Adds attributes."""

    def fail(self, kind: str) -> None:
        """Says that it failed, and how (`error.type`)."""

    def excuse(self) -> None:
        """Says that what ends it is no failure of whoever does the work."""


class _NoSpan:
    def rename(self, name: str) -> None:
        """Nothing."""

    def note(self, attributes: Mapping[str, Value]) -> None:
        """Nothing."""

    def fail(self, kind: str) -> None:
        """Nothing."""

    def excuse(self) -> None:
        """Nothing."""


class Spans:
    """Makes spans. This one makes none; `memoryos.spans` has one that does.

    Attributes:
        on: Whether spans are made: who asks first need not prepare attributes in vain.
    """

    on = False

    def server(self, name: str, attributes: Mapping[str, Value]) -> AbstractContextManager[Span]:
        """A span for what a caller asked of us; its parent is the present hop."""
        return _NOTHING

    def client(
        self, name: str, attributes: Mapping[str, Value], *, within: bool = False
    ) -> AbstractContextManager[Span]:
        """A span for what we ask of somebody; until its end it is the present hop. With `within`, only in a recorded trace."""
        return _NOTHING


_NOTHING: AbstractContextManager[Span] = nullcontext(_NoSpan())

NO_SPANS = Spans()
"""What is used while no collector is named."""
