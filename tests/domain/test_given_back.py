"""Changes that were given up and given back, on the real embedded stores: what was deleted since stays deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from memoryos_server.domain.core.faults import UpstreamRejected
from memoryos_server.domain.memory.deadletters import DeadLetters
from memoryos_server.domain.ports import Change, HeatState, Record, Subject
from tests.domain.pipeline_support import THEN, Opened, opened_at, record, until

LATER = THEN + timedelta(hours=1)


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened_at(tmp_path) as made:
        yield made


async def made(opened: Opened, change: Change) -> bool:
    async def make() -> Change:
        return change

    return await opened.pipeline.change(await opened.subject(), make)


async def given_up(opened: Opened, change: Change) -> str:
    """A change that fails until it is a dead letter, whose cause is mended then; gives the letter's id."""
    letters = DeadLetters(opened.redis.queue)
    before = {letter.id for letter in (await letters.state("default")).dead_letters}
    opened.indexer.refuses = {record.text: UpstreamRejected("refused", status=422) for record in change.put}
    await made(opened, change)
    await until(lambda: _dead(letters, len(before) + 1))
    opened.indexer.refuses = {}
    (new,) = {letter.id for letter in (await letters.state("default")).dead_letters} - before
    return new


async def _dead(letters: DeadLetters, count: int) -> bool:
    return (await letters.totals()).dead == count


async def give_back(opened: Opened, letter_id: str) -> None:
    await DeadLetters(opened.redis.queue).requeue(letter_id, "default")
    await until(lambda: _drained(opened))


async def _drained(opened: Opened) -> bool:
    return not await opened.redis.queue.depth()


async def texts(opened: Opened, subject: Subject, *records: Record) -> list[str]:
    return [one.text for one in await opened.vectors.records(subject, [one.id for one in records])]


async def test_edit_when_its_record_was_deleted_since_then_it_is_dropped(opened: Opened) -> None:
    subject = await opened.subject()
    first = record(subject, "one", "keeps herons")
    edit = replace(first, version=2, text="keeps storks", updated_at=LATER)
    await made(opened, Change(put=(first,)))
    letter = await given_up(opened, Change(put=(edit,)))
    await made(opened, Change(remove=(first.id,)))
    await give_back(opened, letter)
    assert await texts(opened, subject, first) == []
    assert (await DeadLetters(opened.redis.queue).totals()).dead == 0


async def test_change_when_one_of_its_records_was_deleted_since_then_the_others_are_kept(opened: Opened) -> None:
    subject = await opened.subject()
    first, second = record(subject, "one", "keeps herons"), record(subject, "two", "keeps owls")
    edits = [replace(one, version=2, text=f"{one.text} no more", updated_at=LATER) for one in (first, second)]
    heat = {one.id: HeatState(2.0, 3, THEN) for one in edits}
    await made(opened, Change(put=(first, second)))
    letter = await given_up(opened, Change(put=tuple(edits), heat=heat, embed=False))
    await made(opened, Change(remove=(first.id,)))
    await give_back(opened, letter)
    assert await texts(opened, subject, first, second) == ["keeps owls no more"]
    assert (await opened.redis.heat.get(subject, [one.id for one in edits])).keys() == {second.id}


async def test_edit_when_another_took_its_place_since_then_that_one_stays(opened: Opened) -> None:
    subject = await opened.subject()
    first = record(subject, "one", "keeps herons and a secret")
    edit = replace(first, version=2, text="keeps storks and a secret", updated_at=LATER)
    other = replace(first, version=2, text="keeps herons", updated_at=LATER + timedelta(seconds=1))
    await made(opened, Change(put=(first,)))
    letter = await given_up(opened, Change(put=(edit,)))
    await made(opened, Change(put=(other,)))
    await give_back(opened, letter)
    assert await texts(opened, subject, first) == ["keeps herons"]


@pytest.mark.parametrize("embed", [True, False])
async def test_change_when_nothing_came_between_then_it_is_done(opened: Opened, embed: bool) -> None:
    subject = await opened.subject()
    first = record(subject, "one", "keeps herons")
    edit = replace(first, version=2, text="keeps storks", updated_at=LATER)
    await made(opened, Change(put=(first,)))
    letter = await given_up(opened, Change(put=(edit, record(subject, "two", "keeps owls")), embed=embed))
    await give_back(opened, letter)
    assert set(await texts(opened, subject, first, record(subject, "two", ""))) == {"keeps storks", "keeps owls"}
