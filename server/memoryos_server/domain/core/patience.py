"""Who would rather go without an answer than wait for one.

A chat has a few hundredths of a second for its memory. What is done for it says so here, and a store that has not
answered anybody for a moment is then not asked at all; everybody else waits for such a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_hurried: ContextVar[bool] = ContextVar("memoryos_hurried", default=False)


@contextmanager
def in_a_hurry() -> Iterator[None]:
    """What is asked within the block, and by tasks begun in it, is not to wait for a store that seems to hang."""
    token = _hurried.set(True)
    try:
        yield
    finally:
        _hurried.reset(token)


def hurried() -> bool:
    """Whether the present call would rather go without."""
    return _hurried.get()
