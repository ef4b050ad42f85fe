"""What was read while the searchable side lacked something."""

from __future__ import annotations

import asyncio

import pytest

from memoryos_server.domain.core.faults import BackendDown, NotFound
from memoryos_server.domain.core.level import Level
from memoryos_server.domain.core.patience import in_a_hurry


async def test_lacked_since_when_it_fell_and_was_made_good_between_then_it_is_told() -> None:
    level = Level()
    mark = level.mark()
    assert not level.lacked_since(mark)
    level.fall()
    level.reach()
    assert not level.behind
    assert level.lacked_since(mark)
    assert not level.lacked_since(level.mark())


async def test_mark_when_taken_behind_then_what_is_read_lacks_something_though_it_is_made_good_meanwhile() -> None:
    level = Level()
    level.fall()
    mark = level.mark()
    level.reach()
    assert level.lacked_since(mark)


async def test_read_when_the_first_reading_notices_a_restart_then_it_reads_again() -> None:
    level = Level()
    answers = iter((0, 5))

    async def read() -> int:
        answer = next(answers)
        if not answer:
            level.fall()
            asyncio.get_running_loop().call_soon(level.reach)
        return answer

    assert await level.read(read) == (5, False)


async def test_read_when_nothing_is_found_twice_and_something_may_be_missing_then_it_is_not_called_unknown() -> None:
    level = Level(down=lambda: True)
    level.fall()

    async def read() -> int:
        raise NotFound("There is no such memory", param="id")

    with pytest.raises(BackendDown):
        await level.read(read)
    level.reach()
    with pytest.raises(NotFound):
        await level.read(read)


async def test_sure_when_it_stays_behind_then_refused_and_nobody_in_a_hurry_waits() -> None:
    level = Level()
    level.fall()

    async def read() -> int:
        return 5

    with in_a_hurry():
        async with asyncio.timeout(1):
            assert await level.read(read) == (5, True)
            with pytest.raises(BackendDown):
                await level.sure(read)
