"""The fitting code: that it learns, that it leaves out what it says, that its exact search is the stores' search."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.recall.__main__ import main
from bench.recall.engine import EngineMemory, subject_of
from bench.recall.exact import ExactVectors
from bench.recall.fit import Case, calibrate, fit, gather, left_out, tallies, weights_of
from bench.recall.report import Row, picture, table
from bench.recall.scorer import Tally
from bench.recall.sets import Asked, Conversation, Line, load
from bench.recall.systems import in_process
from memoryos_server.domain.ports import SearchQuery
from memoryos_server.domain.recall.features import FEATURES, GROUP, LEXICAL, Measured
from memoryos_server.domain.recall.scoring import Weights
from memoryos_server.tools.embed.identity import NoEmbedder

START = datetime(2024, 2, 1, tzinfo=UTC)
WORDS = ("anvil", "birch", "cobalt", "dune", "ember", "fjord", "gravel", "hazel", "indigo", "jasper", "kelp", "linen")


def conversation(name: str, turns: int = 24) -> dict[str, object]:
    said = [
        {
            "id": f"{name}-{n}",
            "session": f"s{n // 6}",
            "time": (START + timedelta(minutes=n)).isoformat(),
            "speaker": "Ann" if n % 2 else "Bob",
            "text": f"Our {WORDS[n % 12]} is kept in the {WORDS[(n * 5 + len(name)) % 12]} shed.",
        }
        for n in range(turns)
    ]
    questions = [
        {"id": f"q{n}", "question": f"Where is the {WORDS[n]} kept?", "category": "one", "evidence": [f"{name}-{n}"]}
        for n in range(8)
    ]
    return {"id": name, "language": "en", "turns": said, "questions": questions}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = {"name": "made", "conversations": [conversation("x" * n) for n in range(1, 6)]}
    (tmp_path / "made.json").write_text(json.dumps(made))
    return tmp_path


def synthetic(question: int, rng: np.random.Generator, *, fold: int = 0) -> Case:
    """Thirty candidates of which the one with the largest `session` is the evidence."""
    x = rng.random((30, len(FEATURES)))
    right = int(np.argmax(x[:, FEATURES.index("session")]))
    n = np.arange(30)
    ids = np.array([bytes([place]) * 16 for place in n], "V16")
    measured = Measured(ids, n + 1, np.zeros(30), x.T, np.where(n == right, 0.5, 0.1), np.full(30, 0.5))
    lines = [Line(f"e{n}", "s", "user", "", "t", START) for n in range(30)]
    held = Conversation("c", "en", False, lines, [Asked("?", "one", frozenset({f"e{right}"}))])
    return Case("made", fold, held, 0, measured, x, np.where(np.arange(30) == right, 0, -1))


def test_fit_when_one_feature_tells_then_finds_it_and_ranks_by_it() -> None:
    rng = np.random.default_rng(7)
    asked = [synthetic(n, rng, fold=n % 5) for n in range(60)]
    weights = weights_of(fit(asked))
    assert max(weights.values, key=lambda name: weights.values[name]) == "session"
    assert tallies(asked, weights)["made"].at5 > 57
    assert left_out(asked)["made"].at5 > 55


def test_calibrate_when_evidence_leads_then_is_surer_of_what_leads() -> None:
    rng = np.random.default_rng(7)
    asked = [synthetic(n, rng) for n in range(60)]
    found = calibrate(asked, Weights({"session": 20.0}))
    assert found.lag > 0.1
    assert found.score(0.0, 0.0) > found.score(0.0, 3.0)


async def test_gather_when_read_then_has_every_question_and_strays_that_nothing_answers(directory: Path) -> None:
    asked = await gather(directory, NoEmbedder("no model"), ["made"])
    own, strays = [one for one in asked if not one.stray], [one for one in asked if one.stray]
    assert (len(own), len(strays)) == (40, 40)
    assert all((one.evidence >= 0).sum() == 1 for one in own)
    assert all((one.evidence < 0).all() for one in strays)
    assert {one.fold for one in own} == {0, 1, 2, 3, 4}


async def test_exact_search_when_asked_then_agrees_with_the_vector_process(directory: Path, tmp_path: Path) -> None:
    lines = load(directory, "made")[2].lines
    async with in_process(tmp_path, model="none") as real:
        exact = EngineMemory(ExactVectors(), NoEmbedder("no model"))
        assert isinstance(real, EngineMemory)
        for memory in (real, exact):
            await memory.add("ann", lines)
        for text in ("Where is the cobalt kept by Ann?", "the ember shed", "2024-02-01"):
            question = real.analysis.question(text)
            legs = {LEXICAL: question.terms} | {f"{GROUP}{n}": g for n, g in enumerate(question.groups)}
            query = SearchQuery(legs, {}, 50, None, question.names)
            one, other = [
                {c.id: c for c in await memory.vectors.search(subject_of("ann"), query)} for memory in (real, exact)
            ]
            assert one.keys() == other.keys()
            for memory_id, candidate in one.items():
                twin = other[memory_id]
                assert (candidate.seq, candidate.named, candidate.at) == (twin.seq, twin.named, twin.at)
                assert candidate.hints == pytest.approx(twin.hints)
                assert candidate.scores == pytest.approx(dict(twin.scores), rel=1e-3)


def test_main_when_asked_for_everything_then_writes_a_table_and_a_picture(directory: Path) -> None:
    out = directory / "out"
    args = [str(directory), "--in-process", "--model", "none", "--no-budgets", "--ablate", "--loco", "--out", str(out)]
    assert main(args) == 0
    text = (out / "recall.md").read_text()
    for system in ("plain BM25", "memoryos", "memoryos, left out", "without the window", "words alone"):
        assert f"| made | {system} | 40 |" in text
    picture_of = ElementTree.parse(out / "recall.svg").getroot()  # noqa: S314  # written just now
    assert picture_of.tag.endswith("svg")


def test_table_when_budgets_differ_then_leaves_cells_empty() -> None:
    one, other = Tally(questions=2, at5=1, at10=2, ndcg=1), Tally(questions=2)
    one.budgets[50] = 1.0
    text = table([Row("s", "a", one, drawn=True), Row("s", "b", other)])
    assert "| s | a | 2 | 50.0 | 100.0 | 50.0 | 50.0 |  |" in text
    assert "| s | b | 2 | 0.0 | 0.0 | 0.0 |  |  |" in text


def test_picture_when_names_hold_markup_then_stays_well_formed() -> None:
    drawn = picture([Row("<s>", "a & b", Tally(questions=1, at10=0.5), drawn=True)])
    assert "a &amp; b" in drawn
    ElementTree.fromstring(drawn)  # noqa: S314  # our own
