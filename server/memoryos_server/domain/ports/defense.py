"""Bans and the whitelist of addresses, shared by all servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

PERMANENT = 0.0
"""The end of a ban that has none."""


@dataclass(frozen=True, slots=True)
class Ban:
    """What is known of a place that was banned; it is kept for a while after its end, for the next one.

    Attributes:
        place: An IPv4 address, or an IPv6 network of 64 bits.
        reason: `auth_failures`, `flood` or `scraping`.
        offence: Its number among the bans of the place, from 1.
        banned_at: When it began, Unix seconds.
        until: When it ends, Unix seconds; `PERMANENT`: never.
    """

    place: str
    reason: str
    offence: int
    banned_at: float
    until: float

    def holds(self, now: float) -> bool:
        """Whether it holds at a time."""
        return self.until == PERMANENT or self.until > now


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of the whitelist.

    Attributes:
        network: An address, or a network as `address/length`, in its shortest form.
        reason: Why, for people.
        added_at: Since when, Unix seconds.
        added_by: The id of the key that added it, or `operator`.
    """

    network: str
    reason: str
    added_at: float
    added_by: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what is shared. The newest of one kind and name is what counts.

    Attributes:
        kind: `ban` or `list`.
        name: The place, or the network.
        value: What is there now; None: nothing.
    """

    kind: str
    name: str
    value: Ban | Listed | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What servers took and stopped, ever.

    Attributes:
        requests: Calls that reached a server.
        blocked: Those that were stopped.
    """

    requests: int = 0
    blocked: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.requests + other.requests, self.blocked + other.blocked)


class DefenseStore(Protocol):
    """What all servers share of the defense."""

    async def load(self) -> tuple[Sequence[Ban], Sequence[Listed]]:
        """Everything that is kept."""

    async def put(self, change: Change) -> None:
        """Keeps a change and tells the other servers."""

    async def count(self, writer: str, batch: int, counts: Counts) -> None:
        """Adds to the counts. A batch given again, after an error, counts once, if nothing newer of its writer did."""

    async def counts(self) -> Counts:
        """The counts of all servers."""

    def follow(self, heard: Callable[[Change], None], missed: Callable[[], None]) -> None:
        """Has `heard` called with what other servers change, and `missed` when such changes may have been missed."""
