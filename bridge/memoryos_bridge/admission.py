"""How many requests may be under way: more are told at once to come later, so that those that are in are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from memoryos_bridge.errors import BridgeError
from memoryos_bridge.exchange import Exchange
from memoryos_bridge.metrics import Metrics

RETRY_SECONDS = 1


class Admission:
    """Lets requests in while there is room.

    Args:
        most: Requests at once; 0 is any number.
        share: The part of them that one place of the network may have, 0..1; it may always have one.
        place: From which place of the network an exchange comes, "" for one that may have all of them.
        metrics: Counts what is refused.
    """

    def __init__(self, most: int, share: float, place: Callable[[Exchange], str], metrics: Metrics) -> None:
        self._most = most
        self._most_of_one = min(most, max(1, int(most * share)))
        self._place = place
        self._metrics = metrics
        self._under_way = 0
        self._of_one: dict[str, int] = {}
        """Place -> its requests under way; those that have none are not in it."""

    @contextmanager
    def enter(self, exchange: Exchange, public: bool) -> Iterator[None]:
        """Holds room for a request; what is public (probes, metrics, documentation) needs none.

        Raises:
            BridgeError: There is no room, or the client's address has its share of it (429). Nothing of the body was read.
        """
        if public or self._most <= 0:
            yield
            return
        if self._most <= self._under_way:
            self._metrics.refuse()
            raise _later("The bridge has too much to do")
        place = self._place(exchange) if self._most_of_one < self._most else ""
        if place and self._most_of_one <= self._of_one.get(place, 0):
            self._metrics.refuse_address()
            raise _later(
                f"This address has {self._most_of_one} requests under way, which is as many as one may have",
                "Proxies that many clients stand behind are named in bridge.trusted_proxies; bridge.address_share says "
                "how much one address may have",
            )
        self._under_way += 1
        if place:
            self._of_one[place] = self._of_one.get(place, 0) + 1
        try:
            yield
        finally:
            self._under_way -= 1
            if place:
                self._leave(place)

    def _leave(self, place: str) -> None:
        left = self._of_one[place] - 1
        if left:
            self._of_one[place] = left
        else:
            del self._of_one[place]


def _later(message: str, details: str | None = None) -> BridgeError:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return BridgeError(429, message, "too_many_requests", details=details, headers=headers)
