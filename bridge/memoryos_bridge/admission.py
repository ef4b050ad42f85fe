"""How many requests may be under way: more are told at once to come later, so that those that are in are answered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memoryos_bridge.errors import BridgeError
from memoryos_bridge.metrics import Metrics

RETRY_SECONDS = 1


class Admission:
    """Lets requests in while there is room.

    Args:
        most: Requests at once; 0 is any number.
        metrics: Counts what is refused.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._metrics = metrics
        self._under_way = 0

    @contextmanager
    def enter(self, public: bool) -> Iterator[None]:
        """Holds a place for a request; what is public (probes, metrics, documentation) needs none.

        Raises:
            BridgeError: There is no room (429). Nothing of the body was read.
        """
        if public:
            yield
            return
        if 0 < self._most <= self._under_way:
            self._metrics.refuse()
            raise BridgeError(
                429, "The bridge has too much to do", "too_many_requests", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
