"""What a failed attempt means: wait and try again, or give up.

An outage is nobody's fault and is never counted: whoever meets one waits. Anything else is counted against the entry that
failed, which after a few attempts becomes a dead letter, so that what comes behind it goes on. A provider that fails is
counted only while it serves others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from memoryos_server.domain.core.faults import BackendDown, DeadlineExceeded, Fault, TooMany, Upstream

MOST_ATTEMPTS = 5
"""How often an entry may fail before it becomes a dead letter."""

MOST_SECONDS = 30.0
"""The longest wait between two attempts."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """A subject whose next entry failed: its later entries wait, so that their order is kept.

    Attributes:
        until: When the next attempt is due, in the loop's time.
        tries: How often it failed here, outages of a provider included.
        successes: How much work had succeeded in this process when it last failed.
    """

    until: float
    tries: int
    successes: int


def is_outage(error: Exception) -> bool:
    """Whether a store is down: everything waits."""
    return isinstance(error, BackendDown)


def counts(error: Exception, before: Blocked | None, successes: int) -> bool:
    """Whether a failure is the entry's own.

    Args:
        error: The failure.
        before: Its last failure, or None.
        successes: How much work succeeded in this process so far.
    """
    if isinstance(error, (Upstream, DeadlineExceeded, TooMany)):
        return before is not None and successes > before.successes
    return True


def pause(tries: int, base: float) -> float:
    """Seconds until the next attempt: twice as long each time, bounded, spread so that not all come at once."""
    longest = min(MOST_SECONDS, base * 2.0 ** min(tries, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing


def reason_of(error: Exception) -> str:
    """Why it failed, without any content: the fault's reason and sentence, or the error's name."""
    return f"{error.reason}: {error.message}" if isinstance(error, Fault) else type(error).__name__
