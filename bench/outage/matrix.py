"""Takes the stores of a family away and back, makes every call of the table, and compares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from statistics import median

from bench.outage.expected import CACHES, CALLS, MODES, TABLE
from bench.outage.families import Family
from bench.outage.people import Calls, Person, seed, with_key_of_his_own, with_key_of_the_settings
from tests.system import System
from tests.upstream import UpstreamProcess

STORES = {"redis down": ("redis",), "qdrant down": ("qdrant",), "both down": ("redis", "qdrant")}
BACK_SECONDS = 40.0
AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One call of the table.

    Attributes:
        family: Of which stores.
        state: Which of them are down.
        mode: In which way.
        caches: What the server knew of the caller.
        call: What was called.
        expected: What the contract says.
        seen: What came.
        seconds: How long it took.
        first: What the first answer was, if another: it is asked once more, because disks and machines have their moods.
    """

    family: str
    state: str
    mode: str
    caches: str
    call: str
    expected: str
    seen: str
    seconds: float
    first: str = ""

    @property
    def equal(self) -> bool:
        """Whether it is as it should be."""
        return self.expected == self.seen


@dataclass(frozen=True, slots=True)
class Speed:
    """Chats with a hanging store, seconds.

    Attributes:
        family: Of which stores.
        state: Which of them hang.
        first: What the first chat took beyond one without memory, both before anything had noticed.
        thinks: How long the provider took to answer.
        p50: The median with memory, once the breaker was open.
        off: The median without memory, in turns with the others.
        up: The median with memory while both stores were up.
    """

    family: str
    state: str
    first: float
    thinks: float
    p50: float
    off: float
    up: float


class Matrix:
    """The table of one family.

    Args:
        name: Of the family, for the table.
        family: It, running.
        upstream: Its provider.
        caches: Which kinds of callers to try.
        modes: In which ways stores are taken away.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        upstream: UpstreamProcess,
        *,
        caches: Sequence[str] = CACHES,
        modes: Sequence[str] = MODES,
    ) -> None:
        self._name = name
        self._family = family
        self._system = family.system
        self._calls = Calls(family.system, upstream)
        self._caches = caches
        self._modes = modes
        # Each outage has people of its own: it is over for them before their short-term memory is full.
        self._people = {
            (state, mode, cache): self._person(cache, f"{cache} of {state}, {mode}")
            for state in STORES
            for mode in modes
            for cache in caches
        }
        self._regular = self._person("warm", "regular")
        for person in (self._regular, *self._people.values()):
            seed(self._system, person)
        wait_for(lambda: depth(self._system) == 0, 60, "the end of all work")
        # What the server knows from the seeding is forgotten with it.
        self._system.stop()
        self._system.start()
        for (_, _, cache), person in self._people.items():
            if cache == "warm":
                self._calls.make("retrieve", person)

    def _person(self, cache: str, name: str) -> Person:
        return with_key_of_the_settings(name) if cache == "cold" else with_key_of_his_own(self._system, name)

    def run(self) -> Iterator[Cell]:
        """Every cell, as it is seen."""
        for mode in self._modes:
            for state, stores in STORES.items():
                for store in stores:
                    self._family.take(store, mode)
                wait_for(partial(self._noticed, stores), 20, f"noticing: {state}")
                yield from self._column(state, mode, mode)
                for store in stores:
                    self._family.bring_back(store, mode)
                self._system.wait_ready(BACK_SECONDS)
                wait_for(self._whole, BACK_SECONDS, "working off what was queued")
                yield from self._column("back up", f"{mode}: {state}", mode, of=state)
                wait_for(self._whole, BACK_SECONDS, "the end of all work")
                for caches in self._caches:
                    person = self._people[state, mode, caches]
                    with suppress(TimeoutError):  # how much waits is looked at now and then: 0 may be of a while ago
                        wait_for(lambda person=person: not self._calls.missing(person), BACK_SECONDS, "what was queued")  # type: ignore[misc]  # a late default
                    missing = self._calls.missing(person)
                    yield Cell(
                        self._name,
                        "back up",
                        f"{mode}: {state}",
                        caches,
                        "what was queued",
                        "found",
                        f"{len(missing)} missing" if missing else "found",
                        0.0,
                    )

    def _whole(self) -> bool:
        answer = self._calls.make("retrieve", self._regular).line
        return "degraded" not in answer and depth(self._system) == 0

    def _column(self, state: str, shown: str, mode: str, *, of: str = "") -> Iterator[Cell]:
        for caches in self._caches:
            person = self._people[of or state, mode, caches]
            for call in CALLS:
                expected, first = TABLE[state, caches][call], ""
                seen = self._calls.make(call, person)
                if seen.line != expected:
                    first = f"{seen.line} ({seen.seconds * 1000:.0f} ms)"
                    time.sleep(AGAIN_SECONDS)
                    seen = self._calls.make(call, person)
                yield Cell(self._name, state, shown, caches, call, expected, seen.line, seen.seconds, first)

    def _noticed(self, stores: Sequence[str]) -> bool:
        health = self._system.get("/health/status")[1]
        return all(health.get(store) == "down" for store in stores) and set(stores) == open_breakers(self._system)

    def speed(
        self, calls: int, thinks: Sequence[float] = (0.0,), states: Sequence[str] = tuple(STORES)
    ) -> Iterator[Speed]:
        """How fast chats are while stores hang, for each time that the provider may think."""
        self.chats(10)
        up = [self.chats(calls, seconds)[0] for seconds in thinks]
        for state in states:
            alone = median(self._chat("off") for _ in range(10))
            for store in STORES[state]:
                self._family.take(store, "hanging")
            first = self._chat("")
            wait_for(partial(self._noticed, STORES[state]), 20, f"noticing: {state}")
            self.chats(5)
            measured = [self.chats(calls, seconds) for seconds in thinks]
            for store in STORES[state]:
                self._family.bring_back(store, "hanging")
            self._system.wait_ready(BACK_SECONDS)
            wait_for(self._whole, BACK_SECONDS, "working off what was queued")
            for seconds, (p50, off), before in zip(thinks, measured, up, strict=True):
                yield Speed(self._name, state, first - alone, seconds, p50, off, before)

    def chats(self, calls: int, thinks: float = 0.0) -> tuple[float, float]:
        """The medians of chats with and without memory, in turns."""
        both = [(self._chat("", thinks), self._chat("off", thinks)) for _ in range(calls)]
        return median(on for on, _ in both), median(off for _, off in both)

    def _chat(self, memory: str, thinks: float = 0.0) -> float:
        return self._calls.timed_chat(self._regular, memory, thinks)


def depth(system: System) -> int:
    """How much accepted work waits; -1 where that is not to be had."""
    return int(metric(system, "memoryos_queue_depth", 'kind="open"', missing=-1))


def open_breakers(system: System) -> set[str]:
    """The stores whose breakers are open."""
    return {
        store for store in ("redis", "qdrant") if metric(system, "memoryos_breaker_open", f'backend="{store}"') == 1.0
    }


def metric(system: System, name: str, label: str, *, missing: float = 0.0) -> float:
    """A value out of the metrics."""
    for line in str(system.get("/metrics")[1]).splitlines():
        if line.startswith(f"{name}{{") and label in line:
            return float(line.rsplit(" ", 1)[1])
    return missing


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns once a condition holds.

    Raises:
        TimeoutError: It does not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.05)
