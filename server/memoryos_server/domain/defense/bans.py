"""Bans: how long each next one is, and which hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from memoryos_server.domain.ports.defense import PERMANENT, Ban

MOST_BANS = 100_000
"""Bans kept; beyond it the temporary one that ends first makes room."""


class Bans:
    """The bans of places, those included that ended not long ago.

    Args:
        seconds: How long the first, second... ban of a place is; the one after the last is permanent.
        forget: How many seconds after its end a ban no longer counts for the next one.
        most: `MOST_BANS`.
    """

    def __init__(self, seconds: Sequence[float], forget: float, *, most: int = MOST_BANS) -> None:
        self._seconds = tuple(seconds)
        self._forget = forget
        self._most = most
        self._bans: dict[str, Ban] = {}

    def get(self, place: str, now: float) -> Ban | None:
        """The ban of a place that holds, or None."""
        ban = self._bans.get(place)
        return ban if ban is not None and ban.holds(now) else None

    def holding(self, now: float) -> Iterator[Ban]:
        """Every ban that holds, in no order."""
        return (ban for ban in self._bans.values() if ban.holds(now))

    def known(self) -> Iterator[str]:
        """Every place of which a ban is kept."""
        return iter(self._bans)

    def impose(self, place: str, reason: str, now: float) -> Ban | None:
        """Bans a place for longer than the last time; None if it is banned already."""
        last = self._bans.get(place)
        if last is not None and last.holds(now):
            return None
        counts = last is not None and now - last.until < self._forget
        offence = last.offence + 1 if last is not None and counts else 1
        until = now + self._seconds[offence - 1] if offence <= len(self._seconds) else PERMANENT
        ban = Ban(place, reason, offence, now, until)
        self.put(ban)
        return ban

    def put(self, ban: Ban) -> None:
        """Takes a ban as it is."""
        if ban.place not in self._bans and len(self._bans) >= self._most:
            self._make_room()
        self._bans[ban.place] = ban

    def remove(self, place: str) -> None:
        """Forgets a place."""
        self._bans.pop(place, None)

    def replace(self, bans: Iterable[Ban]) -> None:
        """Takes these and no others."""
        self._bans = {ban.place: ban for ban in bans}

    def forgotten(self, now: float) -> list[str]:
        """The places whose last ban no longer counts."""
        return [ban.place for ban in self._bans.values() if ban.until != PERMANENT and now - ban.until >= self._forget]

    def _make_room(self) -> None:
        temporary = [ban for ban in self._bans.values() if ban.until != PERMANENT]
        # With nothing but permanent ones the oldest goes: what is kept must be bounded.
        goes = min(temporary, key=lambda ban: ban.until) if temporary else next(iter(self._bans.values()))
        del self._bans[goes.place]
