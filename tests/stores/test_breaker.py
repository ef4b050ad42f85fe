"""The breaker, on a clock of its own making where it can be, in real time where calls wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.core.patience import in_a_hurry
from memoryos_server.stores.breaker import DOUBT_SECONDS, OPEN_SECONDS, TRIAL_SECONDS, Breaker, probing


@pytest.fixture
def breaker() -> Breaker:
    return Breaker("it hangs", "it refuses")


async def answered(breaker: Breaker, after: float = 0.0) -> None:
    async with breaker.call(5.0) as call:
        await asyncio.sleep(after)
        call.heard()


async def silent(breaker: Breaker, deadline: float | None = 5.0, *, own: bool = False) -> None:
    async with breaker.call(deadline, own=own):
        await asyncio.sleep(60)


async def took(work: Awaitable[object], *errors: type[Exception]) -> float:
    began = time.monotonic()
    with pytest.raises(errors or (BackendDown, TimeoutError)):
        await work
    return time.monotonic() - began


async def until(condition: Callable[[], bool], seconds: float = 4.0) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def hang(breaker: Breaker) -> None:
    """Opens it as two callers do who wait in vain."""
    while not breaker.is_open:
        await took(silent(breaker, 0.6))


async def test_calls_when_they_are_slow_but_answered_then_nothing_opens(breaker: Breaker) -> None:
    await asyncio.gather(*(answered(breaker, 0.1 * number) for number in range(16)))
    assert not breaker.is_open
    assert not breaker.is_doubtful


async def test_call_when_nothing_comes_then_who_is_in_a_hurry_goes_without_and_others_wait(breaker: Breaker) -> None:
    patient = asyncio.create_task(answered(breaker, 0.5))
    with in_a_hurry():
        assert DOUBT_SECONDS * 0.8 < await took(silent(breaker), TimeoutError) < 0.3
        assert await took(silent(breaker), BackendDown) < 0.05  # it is not asked again
    assert breaker.is_doubtful
    assert not breaker.is_open
    await patient
    assert not breaker.is_doubtful
    with in_a_hurry():
        await answered(breaker)


async def test_calls_when_nothing_comes_for_long_then_those_under_way_end_and_others_fail_at_once(
    breaker: Breaker,
) -> None:
    under_way = asyncio.create_task(took(silent(breaker, 30.0), TimeoutError))
    long = asyncio.create_task(silent(breaker, 30.0, own=True))
    await asyncio.sleep(0.3)
    again = asyncio.create_task(took(silent(breaker, 30.0), TimeoutError))
    long.cancel()
    assert OPEN_SECONDS * 0.8 < await under_way < OPEN_SECONDS + 1
    await again
    assert breaker.is_open
    assert await took(silent(breaker), BackendDown) < 0.05


async def test_call_when_it_takes_long_by_its_nature_then_it_outlasts_the_opening(breaker: Breaker) -> None:
    long = asyncio.create_task(silent(breaker, 30.0, own=True))
    others = asyncio.gather(*(took(silent(breaker, 30.0)) for _ in range(3)))
    await asyncio.sleep(0.3)
    await took(silent(breaker, 0.4))
    assert not breaker.is_open  # what it does may be why nobody else is answered
    await until(lambda: breaker.is_open)
    await others
    assert not long.done()
    long.cancel()


async def test_open_when_a_probe_is_answered_then_closes_and_nobody_else_was_let_through(breaker: Breaker) -> None:
    changes: list[bool] = []
    breaker.follow(lambda: changes.append(breaker.is_open))
    await hang(breaker)
    with probing():
        await took(silent(breaker, 0.3), TimeoutError)
    await asyncio.sleep(TRIAL_SECONDS * 1.5)
    assert await took(answered(breaker), BackendDown) < 0.05
    with probing():
        await answered(breaker)
    await answered(breaker)
    assert changes[-2:] == [True, False]


async def test_open_when_nobody_probes_then_one_call_finds_out_now_and_then(breaker: Breaker) -> None:
    await hang(breaker)
    await asyncio.sleep(TRIAL_SECONDS * 1.2)
    first = asyncio.create_task(took(silent(breaker), TimeoutError))
    await asyncio.sleep(0)
    assert await took(silent(breaker), BackendDown) < 0.05  # one is enough
    assert await first < TRIAL_SECONDS * 2  # and it waits briefly
    await asyncio.sleep(TRIAL_SECONDS * 1.2)
    await answered(breaker)
    assert not breaker.is_open


async def test_open_when_connections_are_refused_then_at_once_and_closed_by_the_first_call_once_the_store_is_back(
    breaker: Breaker,
) -> None:
    async def refused() -> None:
        async with breaker.call(5.0) as call:
            call.refused()
            raise ConnectionRefusedError

    await took(refused(), ConnectionRefusedError)
    assert breaker.is_open
    await took(refused(), ConnectionRefusedError)
    with in_a_hurry(), pytest.raises(BackendDown, match="it refuses"):
        await answered(breaker)
    await answered(breaker)
    assert not breaker.is_open


async def test_open_when_refused_connections_begin_to_hang_then_calls_wait_briefly_and_then_not_at_all(
    breaker: Breaker,
) -> None:
    breaker.refused()
    assert await took(silent(breaker), TimeoutError) < TRIAL_SECONDS * 2
    assert await took(silent(breaker), BackendDown) < 0.05


async def test_refused_when_the_store_has_parts_then_nothing_opens() -> None:
    breaker = Breaker("it hangs", "it refuses", parts=True)
    async with breaker.call(5.0) as call:
        call.refused()
    assert not breaker.is_open


async def test_calls_when_they_are_cancelled_quickly_then_nothing_is_doubted(breaker: Breaker) -> None:
    for _ in range(30):
        task = asyncio.create_task(silent(breaker))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    assert not breaker.is_doubtful


async def test_calls_when_the_loop_itself_stood_still_then_nothing_is_doubted(breaker: Breaker) -> None:
    task = asyncio.create_task(answered(breaker, 0.02))
    await asyncio.sleep(0)
    time.sleep(DOUBT_SECONDS * 3)  # noqa: ASYNC251  # that is the point
    await task
    assert not breaker.is_doubtful
