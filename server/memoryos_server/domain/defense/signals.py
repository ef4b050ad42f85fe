"""What places do without a valid key, counted within a window until it is too much."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MOST_PLACES = 50_000
"""Places of which a kind of signal is remembered; beyond it the one seen longest ago is forgotten."""


class Signals:
    """Counts signals. A window begins with a place's first signal of a kind.

    Args:
        limits: Kind of signal -> how many of a place are too many within a window; 0: any number is fine.
        window: Seconds.
        most: `MOST_PLACES`.
    """

    def __init__(self, limits: Mapping[str, int], window: float, *, most: int = MOST_PLACES) -> None:
        self._limits = dict(limits)
        self._window = window
        self._most = most
        # Place -> when its window began, how many signals, and which different things they were about.
        self._seen: dict[str, OrderedDict[str, tuple[float, int, set[bytes]]]] = {
            kind: OrderedDict() for kind in limits
        }

    def note(self, kind: str, place: str, now: float, about: bytes | None = None) -> bool:
        """Counts a signal; returns whether there are too many now, and then begins anew.

        Args:
            kind: One of the kinds.
            place: Whose signal.
            now: Seconds.
            about: Of a kind that counts different things, what it is about; the same again counts nothing.
        """
        limit = self._limits[kind]
        if limit <= 0:
            return False
        seen = self._seen[kind]
        began, count, things = seen.get(place, (now, 0, set()))
        if now - began >= self._window:
            began, count, things = now, 0, set()
        if about is None or about not in things:
            count += 1
            if about is not None:
                things.add(about)
        if count >= limit:
            seen.pop(place, None)
            return True
        seen[place] = began, count, things
        seen.move_to_end(place)
        if len(seen) > self._most:
            seen.popitem(last=False)
        return False

    def forget(self, place: str) -> None:
        """Forgets what a place did."""
        for seen in self._seen.values():
            seen.pop(place, None)
