"""The proof, at the write, that whoever writes derived memory may still do so.

Facts and segments are written by whoever holds the subject's partition. A process that was stopped for a while may have lost
it without knowing: what writes asks here first, and the work of the partition says how that is found out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar

_check: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("fence", default=None)


@contextlib.contextmanager
def fenced(check: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Has `still_ours` ask `check` within the block, and in tasks that it starts."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


async def still_ours() -> None:
    """Returns if what is about to be written may be; where nothing is fenced, it may.

    Raises:
        Stale: Somebody else has the partition now.
        BackendDown: That cannot be found out.
    """
    if check := _check.get():
        await check()
