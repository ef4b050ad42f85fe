from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.recall.__main__ import main, measure
from bench.recall.scorer import PlainBm25, Tally, folded, ndcg
from bench.recall.sets import Asked, Conversation, Line, load, samples
from bench.recall.systems import in_process

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def made(pairs: bool = False) -> dict[str, object]:
    turns = [
        {
            "id": "d#0/u",
            "session": "d",
            "time": "2024-01-01T00:00:00Z",
            "speaker": "user",
            "text": "I grow black tulips",
        },
        {"id": "d#0/a", "session": "d", "time": "2024-01-01T00:00:00Z", "speaker": "assistant", "text": "Splendid."},
        {
            "id": "d#1/u",
            "session": "d",
            "time": "2024-01-01T00:00:00Z",
            "speaker": "user",
            "text": "",
            "image_caption": "a cat",
        },
        {"id": "d#1/a", "session": "d", "time": "2024-01-01T00:00:00Z", "speaker": "assistant", "text": " "},
    ]
    questions = [
        {
            "id": "q0",
            "question": "Which tulip is grown?",
            "category": "single",
            "evidence": ["d#0" if pairs else "d#0/u"],
        },
        {"id": "q1", "question": "Nothing", "category": "single", "evidence": []},
    ]
    one = {"id": "c", "language": "en", "pairs": pairs, "turns": turns, "questions": questions}
    return {"name": "made", "conversations": [one]}


def test_load_when_read_then_captions_are_lines_and_empty_turns_and_questions_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text(json.dumps(made()))
    (conversation,) = load(tmp_path, "made")
    assert [line.id for line in conversation.lines] == ["d#0/u", "d#0/a", "d#1/u"]
    assert conversation.lines[2].text == "\n[image: a cat]"
    assert [line.role for line in conversation.lines] == ["user", "assistant", "user"]
    assert conversation.lines[0].time == WHEN
    assert [asked.text for asked in conversation.questions] == ["Which tulip is grown?"]


def test_tally_when_evidence_is_found_late_then_counts_as_the_protocol_says() -> None:
    tally = Tally()
    tally.add(Asked("?", "kind", frozenset({"a", "b"})), ["x", "a", "y", "z", "v", "w", "b"])
    assert (tally.at5, tally.at10) == (0.5, 1.0)
    ideal = 1 + 1 / math.log2(3)
    assert tally.ndcg == pytest.approx((1 / math.log2(3) + 1 / math.log2(8)) / ideal)
    assert "recall@5  50.0" in tally.line()
    assert tally.detail() == "kind 100.0 (n=1)"


def test_ndcg_when_all_evidence_leads_then_is_one() -> None:
    assert ndcg(frozenset({"a", "b"}), ["b", "a", "c"]) == pytest.approx(1.0)


def test_folded_when_pairs_then_first_occurrence_counts() -> None:
    pairs = Conversation("c", "en", True, [], [])
    assert folded(pairs, ["d#1/a", "d#0/u", "d#1/u"]) == ["d#1", "d#0"]
    assert folded(Conversation("c", "en", False, [], []), ["d#1/a"]) == ["d#1/a"]


def test_plain_bm25_when_asked_then_ranks_by_rarity_without_stems() -> None:
    texts = ["The red fox runs", "the dog runs", "the dog sleeps"]
    bm25 = PlainBm25([Line(str(n), "s", "user", "", text, WHEN) for n, text in enumerate(texts)])
    assert bm25.rank("fox runs")[0] == "0"
    assert bm25.rank("sleep") == []


async def test_measure_when_run_on_the_engine_then_prints_ours_beside_plain_bm25(tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text(json.dumps(made(pairs=True)))
    async with in_process(tmp_path, model="none") as memory:
        result = await measure(memory, load(tmp_path, "made"), [50])
    assert (result.ours.questions, result.ours.at5, result.ours.budgets) == (1, 1.0, {50: 1.0})
    assert (result.plain.questions, result.plain.at5) == (1, 0.0)  # "tulip" is not "tulips", nothing else is shared
    assert len(result.retrieve) == 1


def test_main_when_the_directory_is_missing_then_says_so_and_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 0
    assert "nothing measured" in capsys.readouterr().out


def test_samples_when_the_directory_is_missing_then_there_are_none(tmp_path: Path) -> None:
    assert samples(tmp_path / "nowhere") == []
