from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from memoryos_server.domain.core.faults import BackendDown
from memoryos_server.domain.ports import IndexedTurn, SearchQuery, Subject
from memoryos_server.stores import edge_engine
from memoryos_server.stores.edge_client import EdgeClient, EdgeError
from memoryos_server.stores.edge_engine import Engine
from memoryos_server.stores.edge_rows import candidates
from memoryos_server.stores.edge_shards import Shards
from memoryos_server.stores.embedded import ChildState
from memoryos_server.stores.points import pieces, point, sparse
from memoryos_server.stores.qdrant_link import QdrantRefused
from memoryos_server.stores.sealing import Sealer
from memoryos_server.stores.vectors_edge import EdgeVectors
from tests.stores.embedded_fixtures import Keys, indexed, kill, subject, turn, until
from tests.stores.embedded_fixtures import opened as embedded
from tests.stores.qdrant_fixtures import Opened

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def runtime_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Owners that a test kills leave their sockets behind.
    with tempfile.TemporaryDirectory(prefix="mos-") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        yield


def question(
    terms: Mapping[str, float], small: Sequence[float] | None = None, limit: int = 50, until: datetime | None = None
) -> SearchQuery:
    return SearchQuery({"lexical": terms}, {} if small is None else {"small": small}, limit, until)


def lexical(limit: int = 50, until: datetime | None = None, **terms: float) -> SearchQuery:
    return question(terms, None, limit, until)


async def scores(vectors: EdgeVectors, who: Subject, query: SearchQuery) -> dict[str, dict[str, float]]:
    return {c.id: dict(c.scores) for c in await vectors.search(who, query)}


async def test_insert_when_it_returned_then_every_read_sees_the_turn_unchanged(opened: Opened, tmp_path: Path) -> None:
    ann = subject()
    said = turn('茶 tea "quoted" 🫖\n', session="", when=datetime(1969, 12, 31, 23, 59, 59, 999999, UTC))
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(said, small=[0, 3, 0, 4])])
        found = list(await vectors.search(ann, question({"tea": 1.0}, [0, 0, 0, 1], 5)))
        assert [(c.id, c.seq, c.session, c.at) for c in found] == [(said.id, 1, "", said.timestamp.timestamp())]
        assert set(found[0].scores) == {"lexical", "small"}
        assert found[0].scores["small"] == pytest.approx(0.8, abs=1e-3)  # a cosine
        assert await vectors.get(ann, [said.id, str(uuid4()), said.id]) == [said]
        assert await vectors.owner(said.id) == ann.id
        assert await vectors.owner(str(uuid4())) is None
        assert await vectors.count() == await vectors.count(ann) == 1


async def test_search_when_legs_find_different_turns_then_their_union_is_given_with_the_scores_of_each(
    opened: Opened, tmp_path: Path
) -> None:
    ann, word, near, other = subject(), turn("tea"), turn("warm drink"), turn("stone")
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(
            ann, [indexed(word), indexed(near, small=[1, 0, 0, 0]), indexed(other, small=[0, 1, 0, 0])]
        )
        found = await scores(vectors, ann, question({"tea": 1.0}, [1, 0, 0, 0], 1))
    assert {memory_id: set(legs) for memory_id, legs in found.items()} == {word.id: {"lexical"}, near.id: {"small"}}


async def test_search_when_there_are_several_legs_of_words_then_each_scores_by_itself(
    opened: Opened, tmp_path: Path
) -> None:
    ann, one, two = subject(), turn("tea cup"), turn("milk")
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(one), indexed(two)])
        legs = {"words": {"tea": 1.0}, "window": {"tea": 1.0, "cup": 1.0, "milk": 1.0}, "none": {}}
        found = {c.id: c.scores for c in await vectors.search(ann, SearchQuery(legs, {}, 5))}
    assert {memory_id: set(scores) for memory_id, scores in found.items()} == {
        one.id: {"words", "window"},
        two.id: {"window"},
    }
    assert found[one.id]["window"] == pytest.approx(2 * found[one.id]["words"])


async def test_search_when_legs_are_parts_then_they_score_only_what_another_leg_found(
    opened: Opened, tmp_path: Path
) -> None:
    ann, one, two, near = subject(), turn("tea cup"), turn("cup"), turn("warm drink")
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(one), indexed(two), indexed(near, small=[1, 0, 0, 0])])
        legs = {"words0": {"tea": 1.0}, "words1": {"cup": 1.0}, "lexical": {"tea": 1.0}}
        parts = frozenset({"words0", "words1"})
        found = await scores(vectors, ann, SearchQuery(legs, {"small": [1, 0, 0, 0]}, 5, parts=parts))
        assert {memory_id: set(of) for memory_id, of in found.items()} == {
            one.id: {"lexical", "words0", "words1"},
            near.id: {"small"},
        }
        whole = await scores(vectors, ann, SearchQuery(legs, {"small": [1, 0, 0, 0]}, 5))
        assert set(whole) == {one.id, two.id, near.id}
        assert {memory_id: whole[memory_id] for memory_id in found} == found


async def test_search_when_turns_have_names_hints_and_sessions_then_candidates_tell_them_apart(
    opened: Opened, tmp_path: Path
) -> None:
    ann = subject()
    plain = turn("tea", session="", seq=2**40, when=NOON)
    made = [
        IndexedTurn(turn("tea", session="s1", seq=1), {"tea": 1.0}, {}, ("mary", "ann"), (0.5, -2.0)),
        IndexedTurn(turn("tea", session="s1", seq=2), {"tea": 1.0}, {}, ("bob",), (1.0, 3.0)),
        IndexedTurn(turn("tea", session="s2", seq=3), {"tea": 1.0}, {}, (), ()),
        IndexedTurn(plain, {"tea": 1.0}, {}),
    ]
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, made)
        for _ in range(2):  # read from the files, and kept
            asked = SearchQuery({"lexical": {"tea": 1.0}}, {}, 9, None, frozenset({"ann", "zoe"}))
            first, second, third, fourth = sorted(await vectors.search(ann, asked), key=lambda c: c.seq)
            assert [c.named for c in (first, second, third, fourth)] == [True, False, False, False]
            assert [c.hints for c in (first, second, third, fourth)] == [(0.5, -2.0), (1.0, 3.0), (), ()]
            assert first.session == second.session not in ("", third.session)
            assert (fourth.id, fourth.session, fourth.at, fourth.seq) == (plain.id, "", NOON.timestamp(), 2**40)
        assert not any(c.named for c in await vectors.search(ann, lexical(tea=1.0)))


def test_search_when_few_rows_are_kept_then_none_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The engine in this process, where ids are UUIDs.
    monkeypatch.setattr(edge_engine, "_ROWS_KEPT", 10)
    engine, sealer, ann = Engine(Shards.open(tmp_path, {}, "")), Sealer(bytes(32), "default", "0" * 32), subject()
    said = [turn("tea", seq=i) for i in range(40)]
    made = (point(ann, indexed(one), sealer, 1) for one in said)
    for piece in pieces(made, 7, 10**6):
        engine.insert(piece)
    leg = ("lexical", *sparse({"tea": 1.0}, sealer))
    for limit in (3, 9, 40, 3, 25):
        rows, legs = engine.search([], ann.id, [leg], {}, limit, None)
        found = candidates(rows, legs, ())
        assert len(found) == len({c.id for c in found}) == limit
        assert {(c.id, c.seq) for c in found} <= {(one.id, one.seq) for one in said}
    engine.close()


async def test_search_when_the_query_has_nothing_then_nothing_is_found(opened: Opened, tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(subject(), [indexed(turn("tea"))])
        assert not len(await vectors.search(subject(), question({}, None, 5)))
        assert not len(await vectors.search(subject(), lexical(0, tea=1.0)))


async def test_insert_when_the_turn_is_there_then_it_stays_as_it_is(opened: Opened, tmp_path: Path) -> None:
    ann, first = subject(), turn("first")
    second = turn("second", id=first.id)
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(first), indexed(second)])  # also within one call
        await vectors.insert(ann, [indexed(second, small=[1, 0, 0, 0])])
        assert await vectors.get(ann, [first.id]) == [first]
        assert await vectors.count() == 1
        assert not len(await vectors.search(ann, question({"second": 1.0}, [1, 0, 0, 0], 5)))
        assert await scores(vectors, ann, lexical(first=1.0)) != {}


async def test_reads_when_subjects_share_a_key_and_words_then_none_sees_the_others(
    opened: Opened, tmp_path: Path
) -> None:
    ann, bob = subject("ann"), subject("bob")
    # One key and no sealing, so that nothing but the filters keeps them apart.
    keys = Keys(shared=os.urandom(32), sealing=False)
    hers = [turn(f"tea {i}") for i in range(20)]
    his = [turn(f"tea {i}") for i in range(20)]
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(t, small=[1, i, 0, 0]) for i, t in enumerate(hers)])
        await vectors.insert(bob, [indexed(t, small=[1, i, 0, 0]) for i, t in enumerate(his)])
        for who, own in ((ann, hers), (bob, his)):
            query = question({"tea": 1.0, "3": 1.0}, [1, 1, 0, 0], 100)
            assert set(await scores(vectors, who, query)) == {t.id for t in own}
            assert {t.id for t in await vectors.get(who, [t.id for t in hers + his])} == {t.id for t in own}
        assert not len(await vectors.search(subject("eve"), question({"tea": 1.0}, [1, 1, 0, 0], 100)))
        await vectors.delete_subject(ann)
        assert await vectors.count(ann) == 0
        assert await vectors.count(bob) == 20


async def test_lexical_scores_when_another_subject_writes_then_they_do_not_change(
    opened: Opened, tmp_path: Path
) -> None:
    ann, bob, keys = subject("ann"), subject("bob"), Keys(shared=os.urandom(32))
    said = [turn("tea cup"), turn("tea"), turn("milk")]
    async with opened(tmp_path, keys) as (_, vectors):
        await vectors.insert(ann, [indexed(t) for t in said])
        query = lexical(tea=1.0, cup=2.0)
        before = await scores(vectors, ann, query)
        await vectors.insert(bob, [indexed(turn("tea cup")) for _ in range(40)])
        assert await scores(vectors, ann, query) == before

    def idf(matching: int) -> float:
        return math.log(1 + (3 - matching + 0.5) / (matching + 0.5))

    assert before[said[0].id]["lexical"] == pytest.approx(idf(2) + 2 * idf(1), rel=1e-5)
    assert before[said[1].id]["lexical"] == pytest.approx(idf(2), rel=1e-5)


async def test_search_when_until_is_given_then_later_turns_are_left_out_and_idf_stays(
    opened: Opened, tmp_path: Path
) -> None:
    ann = subject()
    said = [turn("tea", when=NOON + timedelta(seconds=i)) for i in range(-2, 3)]
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(t, small=[1, 0, 0, 0]) for t in said])
        everything = await scores(vectors, ann, question({"tea": 1.0}, [1, 0, 0, 0], 9))
        found = await scores(vectors, ann, question({"tea": 1.0}, [1, 0, 0, 0], 9, NOON))
    assert found == {t.id: everything[t.id] for t in said[:3]}


def test_terms_when_their_hashes_collide_then_their_weights_add_up() -> None:
    sealer = Sealer(bytes(32), "default", "0" * 32)
    seen: dict[int, str] = {}
    for i in range(1_000_000):
        word = f"word{i}"
        other = seen.setdefault(sealer.term(word), word)
        if other != word:
            break
    else:
        pytest.fail("no two of a million terms collide")
    indices, values = sparse({other: 1.0, "x": 4.0, word: 2.0}, sealer)
    assert dict(zip(indices, values, strict=True)) == {sealer.term(word): 3.0, sealer.term("x"): 4.0}
    assert indices == sorted(indices)


@pytest.mark.parametrize("sealing", [True, False])
async def test_files_when_sealing_is_on_then_no_text_is_in_them_and_when_off_it_is(
    tmp_path: Path, sealing: bool
) -> None:
    # Payloads are compressed: four characters that came before would hide a text. In base64 they do not by chance,
    # except where a text meets the same quotes as another; so its ends are left out.
    ann = subject(secrets.token_urlsafe(24))
    words = [[secrets.token_urlsafe(24) for _ in range(4)] for _ in range(20)]
    said = [turn(" ".join(three), session=session) for *three, session in words]
    async with embedded(tmp_path, Keys(sealing=sealing)) as (_, vectors):
        await vectors.insert(ann, [indexed(t) for t in said])
        await vectors.flush()
        files = {path: path.read_bytes() for path in (tmp_path / "vectors").rglob("*") if path.is_file()}
    texts = {text[4:-4] for four in words for text in four}
    found = {text for text in texts if any(text.encode() in raw for raw in files.values())}
    # That some met the same four characters elsewhere, as some do by chance, proves nothing.
    assert not found if sealing else len(found) > 0.9 * len(texts)
    assert not any(ann.user_id.encode() in raw for raw in files.values())
    assert any(ann.id.encode() in raw for raw in files.values())  # the search looks where the data is


async def test_read_when_the_key_is_another_then_the_turn_is_not_given(tmp_path: Path) -> None:
    ann, said = subject(), turn("tea")
    async with embedded(tmp_path) as (stores, vectors):
        await vectors.insert(ann, [indexed(said)])
        async with EdgeVectors(stores.vectors_socket, Keys()) as other:
            assert await other.get(ann, [said.id]) == []


async def test_insert_when_there_are_thousands_of_large_turns_then_all_arrive(opened: Opened, tmp_path: Path) -> None:
    ann = subject()
    said = [turn(secrets.token_hex(20_000)) for _ in range(300)]
    async with opened(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(t, {}) for t in said])
        assert await vectors.count(ann) == 300
        assert sorted(await vectors.get(ann, [t.id for t in said]), key=lambda t: t.id) == sorted(
            said, key=lambda t: t.id
        )


@pytest.mark.parametrize("bad", ["", "7", "not-a-uuid", "../x"])
async def test_reads_when_an_id_is_no_uuid_then_there_is_no_such_turn(opened: Opened, tmp_path: Path, bad: str) -> None:
    async with opened(tmp_path) as (_, vectors):
        assert await vectors.get(subject(), [bad]) == []
        assert await vectors.owner(bad) is None


async def test_insert_when_a_vector_has_another_dimension_then_it_is_an_error_and_nothing_is_written(
    opened: Opened, tmp_path: Path
) -> None:
    ann = subject()
    async with opened(tmp_path) as (_, vectors):
        with pytest.raises((EdgeError, QdrantRefused), match="no vector 'small' of 3 dimensions"):
            await vectors.insert(ann, [indexed(turn()), indexed(turn(), small=[1, 2, 3])])
        assert await vectors.count() == 0


async def test_flush_when_the_process_died_since_a_write_then_its_incarnation_differs_from_the_writes(
    tmp_path: Path,
) -> None:
    ann, kept, lost = subject(), turn(), turn()
    async with embedded(tmp_path) as (stores, vectors):
        first = await vectors.insert(ann, [indexed(kept)])
        assert await vectors.flush() == first == await vectors.insert(ann, [])
        assert await vectors.insert(ann, [indexed(lost)]) == first
        kill(stores.pids()["vectors"])
        await until(lambda: stores.states()["vectors"] is not ChildState.UP)
        await until(lambda: stores.states()["vectors"] is ChildState.UP)
        assert await vectors.get(ann, [kept.id]) == [kept]
        second = await vectors.flush()
        assert second != first
        assert await vectors.insert(ann, [indexed(lost)]) == second  # what replaying the ledger does
        assert await vectors.flush() == second
        kill(stores.pids()["vectors"])
        await until(lambda: stores.states()["vectors"] is not ChildState.UP)
        await until(lambda: stores.states()["vectors"] is ChildState.UP)
        assert sorted(t.id for t in await vectors.get(ann, [kept.id, lost.id])) == sorted([kept.id, lost.id])


async def test_call_when_there_is_no_process_then_the_backend_is_down_at_once(tmp_path: Path) -> None:
    async with EdgeVectors(tmp_path / "none.sock", Keys(), deadline=60) as vectors, asyncio.timeout(2):
        for call in (vectors.ping(), vectors.flush(), vectors.get(subject(), [str(uuid4())])):
            with pytest.raises(BackendDown, match="not reachable"):
                await call


async def test_call_when_the_process_hangs_then_the_backend_is_down_in_time_and_later_calls_get_their_own_answers(
    tmp_path: Path,
) -> None:
    ann, said = subject(), turn("tea")
    async with embedded(tmp_path) as (stores, _), EdgeVectors(stores.vectors_socket, Keys(), deadline=0.2) as vectors:
        await vectors.insert(ann, [indexed(said)])
        os.kill(stores.pids()["vectors"], signal.SIGSTOP)
        try:
            with pytest.raises(BackendDown, match="in time"):
                await vectors.owner(said.id)
        finally:
            os.kill(stores.pids()["vectors"], signal.SIGCONT)
        assert await vectors.count() == 1
        assert await vectors.owner(said.id) == ann.id


async def test_calls_when_many_run_at_once_and_some_are_cancelled_then_the_others_get_their_own_answers(
    opened: Opened, tmp_path: Path
) -> None:
    ann = subject()
    said = [turn() for _ in range(60)]
    async with opened(tmp_path) as (_, vectors):
        await asyncio.gather(*(vectors.insert(ann, [indexed(t)]) for t in said))
        calls = [asyncio.create_task(vectors.get(ann, [t.id])) for t in said]
        await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    for i, (t, answer) in enumerate(zip(said, answers, strict=True)):
        if i % 3 == 0:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == [t]


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">I", 100) + b"torn",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 1) + b"\x05",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_process_when_a_client_sends_a_torn_or_malformed_frame_then_others_are_served(
    tmp_path: Path, raw: bytes
) -> None:
    async with embedded(tmp_path) as (stores, vectors):
        await vectors.ping()
        pid = stores.pids()["vectors"]
        _, writer = await asyncio.open_unix_connection(stores.vectors_socket)
        writer.write(raw)
        await writer.drain()
        await vectors.ping()
        writer.close()
        await vectors.ping()
        assert stores.pids()["vectors"] == pid


@pytest.mark.parametrize(("operation", "arguments"), [("drop", []), ("get", []), ("get", ["s", ["no-uuid"]])])
async def test_process_when_a_request_is_wrong_then_it_says_so_and_goes_on(
    tmp_path: Path, operation: str, arguments: list[object]
) -> None:
    async with embedded(tmp_path) as (stores, _):
        client = EdgeClient(stores.vectors_socket)
        with pytest.raises(EdgeError) as caught:
            await client.call(operation, *arguments, timeout=5)
        assert caught.value.kind == "invalid"
        assert (await client.call("ping", timeout=5))["pid"] == stores.pids()["vectors"]
        await client.close()


async def test_search_when_very_many_wait_for_their_vectors_at_once_then_each_is_answered(tmp_path: Path) -> None:
    ann, said, made = subject(), turn("tea"), asyncio.Event()

    async def later() -> Mapping[str, Sequence[float]]:
        await made.wait()
        return {"small": [1.0, 0.0, 0.0, 0.0]}

    async with embedded(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(said, small=[1, 0, 0, 0])])
        asked = [asyncio.create_task(vectors.search(ann, lexical(tea=1.0), later())) for _ in range(600)]
        await asyncio.sleep(1.0)
        made.set()
        answers = await asyncio.gather(*asked)
    assert {(c.id, *sorted(c.scores)) for found in answers for c in found} == {(said.id, "lexical", "small")}
    assert {len(found) for found in answers} == {1}


async def test_search_when_the_connection_breaks_while_vectors_are_made_then_words_are_found_all_the_same(
    tmp_path: Path,
) -> None:
    ann, said = subject(), turn("tea")
    async with embedded(tmp_path) as (_, vectors):
        await vectors.insert(ann, [indexed(said, small=[1, 0, 0, 0])])

        async def later() -> Mapping[str, Sequence[float]]:
            await asyncio.sleep(0.3)  # the words are looked up by then
            await vectors.close()
            return {"small": [1.0, 0.0, 0.0, 0.0]}

        (found,) = await vectors.search(ann, lexical(tea=1.0), later())
    assert (found.id, sorted(found.scores)) == (said.id, ["lexical", "small"])
