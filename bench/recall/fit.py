"""`python -m bench.recall.fit DIRECTORY`: fits the weights of recall and its calibration, and says how well they carry over.

The model is linear: softmax over a question's candidates, each piece of evidence against all that is none. The same
weights serve all sets. Each set of the directory counts as its number of questions, but no set less than `LEAST` of the
largest, so that a small one is neither drowned nor fitted to. Leave-one-conversation-out (LOCO) figures come from weights that never saw
the conversation they are measured on; they, not the in-sample ones, are to be compared.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.recall.engine import EngineMemory, subject_of
from bench.recall.exact import ExactVectors
from bench.recall.scorer import Tally, folded
from bench.recall.sets import Conversation, available, load
from bench.recall.systems import local_embedder
from memoryos_server.domain.ports import Embedder, SearchQuery
from memoryos_server.domain.ports.candidates import texts
from memoryos_server.domain.recall.engine import CANDIDATES
from memoryos_server.domain.recall.features import FEATURES, GROUP, LEXICAL, Measured, measure
from memoryos_server.domain.recall.scoring import Calibration, Weights, rank

LEAST = 0.3
"""What the smallest set counts at least, against the largest."""

FOLDS = 5
"""Conversations are left out in this many groups."""

L2 = 1e-3
STEPS = 250
HEAD = 30
"""The best candidates of a question that calibration learns from."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question with its candidates in numbers.

    Attributes:
        set: The set's name.
        fold: Which fold leaves it out.
        conversation: Its conversation.
        question: Its place there.
        measured: The candidates.
        x: Their features, one row each.
        evidence: For each candidate the number of the evidence it belongs to, or -1.
        stray: The question is another conversation's: nothing here answers it.
    """

    set: str
    fold: int
    conversation: Conversation
    question: int
    measured: Measured
    x: Any
    evidence: Any
    stray: bool = False


async def gather(
    directory: Path, embedder: Embedder, sets: Sequence[str], most: int | None = None, *, strays: bool = True
) -> list[Case]:
    """Every question of the sets, with candidates from an exact search.

    Args:
        directory: Where the sets are.
        embedder: Meaning.
        sets: Their names.
        most: Only the first conversations of each.
        strays: Also each conversation is asked the questions of the next.
    """
    memory = EngineMemory(ExactVectors(), embedder)
    found = []
    for name in sets:
        conversations = load(directory, name, most)
        for fold, conversation in enumerate(conversations):
            await memory.add(conversation.id, conversation.lines)
            other = conversations[(fold + 1) % len(conversations)]
            for place, asked in enumerate(conversation.questions):
                found.append(await _asked(memory, name, fold % FOLDS, conversation, place, asked.text))
            for asked in other.questions if strays and len(conversations) > 1 else ():
                found.append(await _asked(memory, name, fold % FOLDS, conversation, -1, asked.text))
    return found


async def _asked(memory: EngineMemory, name: str, fold: int, conversation: Conversation, place: int, text: str) -> Case:
    question = memory.analysis.question(text)
    (dense,) = await memory.embedder.embed([text])
    legs = {LEXICAL: question.terms} | {f"{GROUP}{n}": group for n, group in enumerate(question.groups)}
    query = SearchQuery(legs, dense, CANDIDATES, None, question.names)
    measured = measure(await memory.vectors.search(subject_of(conversation.id), query), question, tuple(dense))
    events = folded_each(conversation, measured)
    wanted = sorted(conversation.questions[place].evidence) if place >= 0 else []
    evidence = np.array([wanted.index(e) if e in wanted else -1 for e in events])
    x = measured.values.T
    return Case(name, fold, conversation, place, measured, x, evidence, stray=place < 0)


def folded_each(conversation: Conversation, measured: Measured) -> list[str]:
    """The candidates' event ids, as the evidence names them."""
    events = [conversation.lines[seq - 1].id for seq in measured.seq.tolist()]
    return [event.rsplit("/", 1)[0] for event in events] if conversation.pairs else events


def fit(asked: Sequence[Case]) -> Any:
    """The weights in the order of `FEATURES`."""
    asked = [one for one in asked if not one.stray and (one.evidence >= 0).any()]
    x = np.concatenate([one.x for one in asked])
    spread = x.std(0) + 1e-9
    x = x / spread
    question = np.repeat(np.arange(len(asked)), [len(one.x) for one in asked])
    starts = np.flatnonzero(np.diff(question, prepend=-1))
    evidence = np.concatenate([one.evidence for one in asked])
    counted = _counted(asked)
    # A piece of evidence may be two turns (a pair): either will do.
    keys = sorted({(int(q), int(e)) for q, e in zip(question, evidence, strict=True) if e >= 0})
    number = {key: n for n, key in enumerate(keys)}
    rows = np.flatnonzero(evidence >= 0)
    piece = np.array([number[int(question[r]), int(evidence[r])] for r in rows])
    home = np.array([q for q, _ in keys])
    weight = counted[home] / np.bincount(home, minlength=len(asked))[home]
    other = evidence < 0
    w, mean, square = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for step in range(1, STEPS + 1):  # Adam, with a falling rate
        z = x @ w
        e = np.exp(z - np.maximum.reduceat(z, starts)[question])
        rest = np.add.reduceat(e * other, starts)
        mine = np.bincount(piece, e[rows], len(keys))
        total = mine + rest[home]
        slope = e * other * np.bincount(home, weight / total, len(asked))[question]
        slope[rows] += e[rows] * (weight * (1 / total - 1 / np.maximum(mine, 1e-12)))[piece]
        gradient = x.T @ slope + 2 * L2 * w
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        rate = 0.2 * (1 - step / STEPS) + 0.01
        w -= rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return w / spread


def _counted(asked: Sequence[Case]) -> Any:
    """What each question counts."""
    sizes = {name: sum(one.set == name for one in asked) for name in {one.set for one in asked}}
    shares = {name: max(LEAST, size / max(sizes.values())) for name, size in sizes.items()}
    counted = np.array([shares[one.set] / sizes[one.set] for one in asked])
    return counted / counted.sum()


def weights_of(row: Any) -> Weights:
    """Fitted numbers as weights."""
    return Weights({name: round(float(value), 2) for name, value in zip(FEATURES, row, strict=True)})


def calibrate(asked: Sequence[Case], weights: Weights) -> Calibration:
    """Log odds by logistic regression over the heads of rankings, strays as examples of nothing to be found."""
    xs, ys, ws = [], [], []
    counted = _counted(asked)
    for one, count in zip(asked, counted, strict=True):
        if not len(one.measured):
            continue
        scored = rank(one.measured, weights)[:HEAD]
        evidence = dict(zip(texts(one.measured.ids), one.evidence >= 0, strict=True))
        # As in use: the closest of the first few stands for the question.
        unit = Calibration()
        lead = max(scored[:5], key=lambda s: unit.odds(s.reach, s.cosine))
        for s in scored:
            mute = float(lead.cosine <= 0)
            xs.append([1.0, lead.reach, lead.cosine, mute, mute * lead.reach, s.raw - scored[0].raw])
            ys.append(float(evidence[s.id]))
            ws.append(count / len(scored))
    x, y, w = np.array(xs), np.array(ys), np.array(ws)
    b = np.zeros(x.shape[1])
    ridge = np.diag([1e-9, 1e-6, 1e-6, 1e-6, 1e-5, 1e-9])
    for _ in range(40):  # Newton
        p = 1 / (1 + np.exp(-np.clip(x @ b, -30, 30)))
        gradient = x.T @ (w * (p - y)) + ridge @ b
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + ridge
        b -= np.linalg.solve(hessian, gradient)
    return Calibration(*(round(float(v), 2) for v in b))


def tallies(asked: Sequence[Case], weights: Weights) -> dict[str, Tally]:
    """Set -> figures, by the protocol."""
    found: dict[str, Tally] = {}
    for one in asked:
        if not one.stray:
            lines = one.conversation.lines
            ids = [lines[s.seq - 1].id for s in rank(one.measured, weights)]
            tally = found.setdefault(one.set, Tally())
            tally.add(one.conversation.questions[one.question], folded(one.conversation, ids))
    return found


def left_out(asked: Sequence[Case]) -> dict[str, Tally]:
    """Set -> figures by weights that never saw the conversation."""
    found: dict[str, Tally] = {}
    for fold in range(FOLDS):
        weights = weights_of(fit([one for one in asked if one.fold != fold]))
        held = [one for one in asked if one.fold == fold]
        for name, tally in tallies(held, weights).items():
            found.setdefault(name, Tally()).merge(tally)
    return found


def reliability(asked: Sequence[Case]) -> str:
    """How the calibration carries over: by fold, what share of turns scored so was evidence, and strays kept silent."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    best: dict[tuple[str, bool], list[float]] = {}
    for fold in range(FOLDS):
        others = [one for one in asked if one.fold != fold]
        weights = weights_of(fit(others))
        calibration = calibrate(others, weights)
        for one in (one for one in asked if one.fold == fold):
            if not len(one.measured):
                continue
            scored = rank(one.measured, weights)[:HEAD]
            sure = calibration.best(scored)
            evidence = dict(zip(texts(one.measured.ids), one.evidence >= 0, strict=True))
            best.setdefault((one.set, one.stray), []).append(calibration.score(sure, 0.0))
            for s in scored:
                p = calibration.score(sure, scored[0].raw - s.raw)
                bins.setdefault(min(9, int(p * 10)), []).append((p, bool(evidence[s.id])))
    lines = ["score     turns  mean score  share that is evidence"]
    for n, pairs in sorted(bins.items()):
        said, true = np.mean([p for p, _ in pairs]), np.mean([e for _, e in pairs])
        lines.append(f"{n / 10:.1f}-{(n + 1) / 10:.1f}  {len(pairs):6}  {said:10.2f}  {true:.2f}")
    lines.append("best score of a question: 5%, 25%, 50%, 75%, 95%")
    for (name, stray), values in sorted(best.items()):
        quantiles = "  ".join(f"{q:.3f}" for q in np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))
        lines.append(f"{name:<18} {'of another user' if stray else 'of this user':<16} {quantiles}")
    return "\n".join(lines)


async def _run(directory: Path, models: Path, model: str) -> None:
    async with local_embedder(model, models) as embedder:
        asked = await gather(directory, embedder, available(directory))
    weights = weights_of(fit(asked))
    print("weights", dict(weights.values))
    print("calibration", calibrate(asked, weights))
    for label, found in (("in sample", tallies(asked, weights)), ("as shipped", tallies(asked, Weights()))):
        for name, tally in found.items():
            print(f"{label:<11} {name:<18} {tally.line()}  {tally.detail()}")
    for name, tally in left_out(asked).items():
        print(f"{'LOCO':<11} {name:<18} {tally.line()}  {tally.detail()}")
    print(reliability(asked))


def main(argv: Sequence[str]) -> int:
    """Fits and prints; 0 also where there is nothing to fit to."""
    parser = argparse.ArgumentParser(prog="bench.recall.fit", description="Fits the weights of recall.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "memoryos")
    parser.add_argument("--model", default="minilm", choices=("minilm", "none"))
    args = parser.parse_args(argv)
    if not available(args.directory):
        print(f"bench.recall.fit: no sets in {args.directory}: nothing fitted")
        return 0
    asyncio.run(_run(args.directory, args.models, args.model))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
