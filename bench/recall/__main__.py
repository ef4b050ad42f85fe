"""`python -m bench.recall DIRECTORY`: measures recall on the sets in a directory, beside plain BM25.

Loads every conversation as a user of its own through the public API, asks every question, and prints recall at 5 and
10, NDCG at 10, and how much of the evidence fits into budgets of tokens. Starts a system unless it is given one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from bench.recall.report import Row, write
from bench.recall.scorer import DEPTH, PlainBm25, Tally, folded
from bench.recall.sets import Conversation, available, load
from bench.recall.systems import Memory, in_process, local_embedder, over_grpc, whole_system

PARALLEL = 4
"""Conversations that are loaded and asked at once. One conversation's turns are added in order."""

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memoryos"
"""Where the built model is kept, as the server has it by default."""

PARTS = {
    "the turn's own words": ("lexical",),
    "the window": ("window",),
    "meaning": ("dense", "around", "before", "answer_dense", "session_dense"),
    "neighbours": ("window", "around", "before", "answer", "answer_dense"),
    "the question before": ("answer", "answer_dense"),
    "the session": ("session", "session_dense"),
    "the speaker": ("speaker",),
    "what it asks for": ("time", "number", "place"),
    "the form": ("asks", "length", "names", "first_person", "opening", "assistant"),
}
"""What is taken out together, to see what it is worth; the other weights stay as they are."""

BUDGETS = (1000, 2000, 4000)
BUDGET_DEPTH = 200


@dataclass(slots=True)
class Result:
    """What a set gave.

    Attributes:
        ours: The memory's tally.
        plain: Plain BM25's.
        add: Seconds a turn, per conversation.
        retrieve: Seconds, per question.
    """

    ours: Tally = field(default_factory=Tally)
    plain: Tally = field(default_factory=Tally)
    add: list[float] = field(default_factory=list)
    retrieve: list[float] = field(default_factory=list)


async def measure(
    memory: Memory,
    conversations: Sequence[Conversation],
    budgets: Sequence[int] = (),
    *,
    run: str = "",
    fill: bool = True,
) -> Result:
    """Loads conversations and asks their questions.

    Args:
        memory: What is measured.
        conversations: Each becomes a user.
        budgets: Token budgets to pack evidence into.
        run: Sets this run's users apart from those of others.
        fill: False if the conversations were loaded before under the same `run`.
    """
    result = Result()
    gate = asyncio.Semaphore(PARALLEL)

    async def one(conversation: Conversation) -> None:
        user = f"{run}{conversation.id}"
        bm25 = PlainBm25(conversation.lines)
        async with gate:
            if fill:
                begin = time.perf_counter()
                await memory.add(user, conversation.lines)
                result.add.append((time.perf_counter() - begin) / max(1, len(conversation.lines)))
            for asked in conversation.questions:
                begin = time.perf_counter()
                found = await memory.retrieve(user, asked.text, DEPTH)
                result.retrieve.append(time.perf_counter() - begin)
                result.ours.add(asked, folded(conversation, found))
                result.plain.add(asked, folded(conversation, bm25.rank(asked.text)))
                for budget in budgets:
                    packed = await memory.retrieve(user, asked.text, BUDGET_DEPTH, budget)
                    result.ours.add_budget(budget, asked, folded(conversation, packed))

    await asyncio.gather(*map(one, conversations))
    return result


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.recall", description="Measures recall beside plain BM25.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("eval"), help="where the sets are, as *.json")
    parser.add_argument("--sets", help="comma-separated names (default: all)")
    parser.add_argument("--conversations", type=int, metavar="N", help="only the first N of each set")
    parser.add_argument("--address", help="host:port of a system that runs already (default: one is started)")
    parser.add_argument("--key", default="", help="an API key for --address that may act as any user")
    parser.add_argument("--in-process", action="store_true", help="the engine alone, without a server around it")
    parser.add_argument("--model", default="minilm", choices=("minilm", "none"), help="with --in-process")
    parser.add_argument("--models", type=Path, default=CACHE, help="with --in-process")
    parser.add_argument("--ablate", action="store_true", help="also what is left without each part of the score")
    parser.add_argument("--loco", action="store_true", help="also with weights that never saw the conversation asked")
    parser.add_argument("--out", type=Path, help="a directory for recall.md and recall.svg")
    parser.add_argument("--no-budgets", action="store_true", help="leaves out the token budgets")
    return parser.parse_args(argv)


async def _run(args: argparse.Namespace, names: Sequence[str]) -> None:
    system: AbstractAsyncContextManager[Memory]
    if args.in_process:
        system = in_process(args.models, model=args.model)
    else:
        system = over_grpc(args.address, args.key) if args.address else whole_system()
    run = f"{uuid.uuid4().hex[:8]}-"  # a system that is given may have been measured before
    rows: list[Row] = []
    async with system as memory:
        for name in names:
            conversations = load(args.directory, name, args.conversations)
            result = await measure(memory, conversations, () if args.no_budgets else BUDGETS, run=run)
            _print(name, conversations, result)
            rows.append(Row(name, "plain BM25", result.plain, drawn=True))
            rows.append(Row(name, "memoryos", result.ours, _timing(result), drawn=True))
    if args.ablate or args.loco:
        rows += await _variants(args, names)
    if args.out:
        where = "engine in process" if args.in_process else "public API"
        rows.sort(key=lambda row: names.index(row.set))
        write(args.out, rows, {"measured": where, "embedder": args.model, "processors": str(os.cpu_count())})


async def _variants(args: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    """The same scoring over an exact search: by meaning alone, without each part, and left out."""
    from bench.recall.fit import gather, left_out, tallies
    from memoryos_server.domain.recall.scoring import WEIGHTS, Weights

    async with local_embedder(args.model, args.models) as embedder:
        asked = await gather(args.directory, embedder, names, args.conversations, strays=False)
    variants: dict[str, Weights] = {}
    if args.ablate:
        variants = {"meaning alone": Weights({"dense": 1.0}), "words alone": Weights({"lexical": 1.0})}
        for label, gone in PARTS.items():
            variants[f"without {label}"] = Weights({k: v for k, v in WEIGHTS.items() if k not in gone})
    rows = []
    for label, weights in variants.items():
        rows += [Row(name, label, t, drawn=label == "meaning alone") for name, t in tallies(asked, weights).items()]
    if args.loco:
        rows += [Row(name, "memoryos, left out", t, drawn=True) for name, t in left_out(asked).items()]
    for row in rows:
        print(f"  {row.set:<18} {row.system:<28} {row.tally.line()}", flush=True)
    return rows


def _print(name: str, conversations: Sequence[Conversation], result: Result) -> None:
    turns = sum(len(c.lines) for c in conversations)
    print(f"\n{name}: {len(conversations)} conversations, {turns} turns, {result.ours.questions} questions")
    print(f"  memoryos    {result.ours.line()}")
    print(f"  plain BM25  {result.plain.line()}")
    print(f"  recall@10 by kind: {result.ours.detail()}")
    print(f"  {PARALLEL} users at once: {_timing(result)}", flush=True)


def _timing(result: Result) -> str:
    add, found = 1e3 * statistics.mean(result.add), sorted(result.retrieve)
    p50, p99 = 1e3 * statistics.median(found), 1e3 * found[int(len(found) * 0.99)]
    return f"add {add:.1f} ms a turn, retrieve p50 {p50:.1f} ms p99 {p99:.1f} ms"


def main(argv: Sequence[str]) -> int:
    """Runs the measurement; 0 also where there is nothing to measure."""
    args = _arguments(argv)
    names = available(args.directory)
    if args.sets:
        names = [name for name in names if name in args.sets.split(",")]
    if not names:
        print(f"bench.recall: no sets in {args.directory}: nothing measured")
        return 0
    asyncio.run(_run(args, names))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
