"""A circuit breaker: calls of a store that does not answer fail at once instead of waiting one after another.

It goes by silence, not by the time of single calls: a store that answers anybody is not down, however long somebody's own
answer takes. Three states:

- closed: calls pass;
- doubtful: nothing came for `DOUBT_SECONDS` though something is owed. Who is in a hurry goes without; everybody else waits,
  because disks stall and engines tidy up. Whoever follows the breaker is told, to look at once;
- open: still nothing after its patience (`OPEN_SECONDS`), though it was asked again meanwhile, or it refuses connections. Calls fail at
  once, those under way too. A probe, or where nobody probes one call now and then, is let through; so is whoever is in no
  hurry while connections are refused, for as long as that is what happens. Any answer closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.patience import hurried

DOUBT_SECONDS = 0.12
"""Silence after which who is in a hurry waits no longer: less than a chat has for its memory."""

OPEN_SECONDS = 2.0
"""Silence after which nobody waits: a disk that others keep busy may well stall for one."""

LOCAL_SECONDS = 4.0
"""The same of a store on this machine, which syncs each write to a disk that everything else here shares, and whose death
shows at once as a refused connection."""

BUSY_SECONDS = 1.0
"""How much longer it may be while something is under way that takes long by its nature, behind which others may have to wait."""

TRIAL_SECONDS = 0.3
"""How long a call waits that finds out whether the store is back; and how far apart such calls are where nobody probes."""

_ASKED_AGAIN = 0.25
_PROBED = 3.0

_probing: ContextVar[bool] = ContextVar("memoryos_probing", default=False)


@contextmanager
def probing() -> Iterator[None]:
    """Calls within the block find out whether a store is back: an open breaker lets them through."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


class Call:
    """One call under way, as an async context manager. Whoever makes it says what came: `heard` or `refused`.

    Leaving it without either means that no answer came. It raises `BackendDown` at once if the store is not to be asked,
    and `TimeoutError` when the time is over or the breaker opens meanwhile.
    """

    __slots__ = ("_breaker", "_timer", "began", "hurried", "own", "probe", "trial")

    def __init__(self, breaker: Breaker, deadline: float | None, own: bool) -> None:
        self._breaker = breaker
        self.probe = _probing.get()
        self.hurried = hurried() and not self.probe
        self.own = own
        self.began = breaker.clock()
        self.trial = False
        self.trial = breaker.admit(self)
        if self.trial or (breaker.overdue and not self.probe):
            deadline = TRIAL_SECONDS if deadline is None else min(deadline, TRIAL_SECONDS)
        self._timer = asyncio.timeout(deadline)

    async def __aenter__(self) -> Self:
        await self._timer.__aenter__()
        self._breaker.begin(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._breaker.end(self)
        await self._timer.__aexit__(kind, error, trace)

    def heard(self) -> None:
        """The store answered, whatever it said."""
        self._breaker.heard()

    def refused(self) -> None:
        """There is nobody to connect to."""
        self._breaker.refused()

    def give_up(self) -> None:
        """Ends it with `TimeoutError`."""
        with contextlib.suppress(RuntimeError):  # it is ending already
            self._timer.reschedule(asyncio.get_running_loop().time())


class Breaker:
    """The breaker of one store.

    Args:
        hangs: What is said of a store that does not answer.
        refuses: What is said of one that cannot be reached.
        parts: Whether the store has parts that fail alone, as a cluster has: then a refused connection opens nothing.
        patience: Seconds of silence after which it opens.
        clock: Seconds.
    """

    def __init__(
        self,
        hangs: str,
        refuses: str,
        *,
        parts: bool = False,
        patience: float = OPEN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._said = {False: hangs, True: refuses}
        self._parts = parts
        self._patience = patience
        self._open = False
        self._refuses = False
        self._doubted_at: float | None = None
        self._silent_since = 0.0
        self._asked_again = False
        self._tried_at = self._probed_at = float("-inf")
        self._calls: dict[Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._followers: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once."""
        return self._open

    @property
    def is_doubtful(self) -> bool:
        """Whether the store owes an answer for longer than who is in a hurry waits; also while it is open."""
        return self._open or self._doubted_at is not None

    @property
    def overdue(self) -> bool:
        """Whether it is silent for so long that a call waits only briefly."""
        most = self._patience + (BUSY_SECONDS if any(call.own for call in self._calls) else 0.0)
        return self._doubted_at is not None and self.clock() - self._silent_since >= most

    def follow(self, follower: Callable[[], None]) -> None:
        """Has `follower` called after each change of state."""
        self._followers.append(follower)

    def call(self, deadline: float | None = None, *, own: bool = False) -> Call:
        """A call, to be entered.

        Args:
            deadline: Seconds, or None for as long as it takes.
            own: It takes long by its nature: it goes on when the breaker opens.

        Raises:
            BackendDown: The store is not to be asked now.
        """
        return Call(self, deadline, own)

    def admit(self, call: Call) -> bool:
        """Whether a call is one that finds out if the store is back; False if the store is asked as ever.

        Raises:
            BackendDown: It is not to be asked.
        """
        if call.probe:
            self._probed_at = call.began
            return False
        if not self.is_doubtful:
            return False
        if call.hurried:
            raise BackendDown(self._said[self._refuses])
        if not self._open:
            return False
        if self._refuses:
            return True  # which costs nothing while it does, and finds it back at once
        nobody_probes = call.began - self._probed_at > _PROBED
        due = nobody_probes and call.began - self._tried_at >= TRIAL_SECONDS
        if not due or any(other.trial for other in self._calls):
            raise BackendDown(self._said[self._refuses])
        return True

    def begin(self, call: Call) -> None:
        """Counts a call as owed an answer."""
        self._calls[call] = None
        if self._timer is None:
            self._look_in(DOUBT_SECONDS)

    def end(self, call: Call) -> None:
        """Counts a call as over, however it ended."""
        self._calls.pop(call, None)
        if call.trial or (call.probe and self._open):
            self._tried_at = self.clock()
        if self._doubted_at is not None and call.began >= self._doubted_at and self._waited(call):
            self._asked_again = True
            if call.probe or call.trial:
                self._refuses = False
            self._judge()

    def heard(self) -> None:
        """The store answered somebody."""
        self._silent_since = self.clock()
        if not self.is_doubtful:
            return
        self._open = self._refuses = self._asked_again = False
        self._doubted_at = None
        self._tell()

    def refused(self) -> None:
        """The store does not take connections."""
        if self._parts:
            return
        self._refuses = True
        self._tried_at = self.clock()
        self._to_open()

    def _waited(self, call: Call) -> bool:
        return self.clock() - max(call.began, self._silent_since) >= _ASKED_AGAIN

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._look, loop.time() + seconds)

    def _look(self, due: float) -> None:
        self._timer = None
        if not self._calls or self._open:
            return
        # If we ourselves did not get to run, an answer may lie there unread.
        late = asyncio.get_running_loop().time() - due > DOUBT_SECONDS / 2
        if self._doubted_at is not None:
            if not late:
                self._asked_again |= any(c.began >= self._doubted_at and self._waited(c) for c in self._calls)
                self._judge()
        else:
            oldest = max(self._silent_since, next(iter(self._calls)).began)
            left = oldest + DOUBT_SECONDS - self.clock()
            if left > 0.001:
                self._look_in(left)
                return
            if not late:
                self._doubt(oldest)
        if not self._open:
            self._look_in(DOUBT_SECONDS / 2)

    def _doubt(self, since: float) -> None:
        self._silent_since = since
        self._doubted_at = self.clock()
        for call in list(self._calls):
            if call.hurried:
                call.give_up()
        self._tell()

    def _judge(self) -> None:
        if self._asked_again and self.overdue:
            self._to_open()

    def _to_open(self) -> None:
        if self._open:
            return
        self._open = True
        self._tried_at = self.clock()
        if self._doubted_at is None:
            self._doubted_at = self._tried_at
        for call in list(self._calls):
            # Refused: those under way find out by themselves, and may be answered all the same.
            if not (call.probe or call.own or self._refuses):
                call.give_up()
        self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            follower()
