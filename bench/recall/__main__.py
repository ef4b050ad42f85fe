"""`python -m bench.recall DIRECTORY`: measures recall on the sets in a directory, beside plain BM25.

Loads every conversation as a user of its own through the public API, asks every question, and prints recall at 5 and
10, NDCG at 10, and how much of the evidence fits into budgets of tokens. Starts a system unless it is given one.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from bench.recall.scorer import DEPTH, PlainBm25, Tally, folded
from bench.recall.sets import Asked, Conversation, available, load
from bench.recall.systems import Memory, in_process, over_grpc, whole_system

PARALLEL = 4
"""Conversations that are loaded and asked at once. One conversation's turns are added in order."""

BUDGETS = (1000, 2000, 4000)
BUDGET_DEPTH = 200


async def measure(
    memory: Memory, conversations: Sequence[Conversation], budgets: Sequence[int] = ()
) -> tuple[Tally, Tally, dict[str, list[float]]]:
    """Loads conversations and asks their questions.

    Returns:
        Ours, plain BM25's, and seconds: `add` per turn, `retrieve` per question.
    """
    ours, plain = Tally(), Tally()
    seconds: dict[str, list[float]] = {"add": [], "retrieve": []}
    run = uuid.uuid4().hex[:8]  # a system that is given may have been measured before
    gate = asyncio.Semaphore(PARALLEL)

    async def ask(user: str, conversation: Conversation, asked: Asked) -> None:
        begin = time.perf_counter()
        found = await memory.retrieve(user, asked.text, DEPTH)
        seconds["retrieve"].append(time.perf_counter() - begin)
        ours.add(asked, folded(conversation, found))
        for budget in budgets:
            packed = await memory.retrieve(user, asked.text, BUDGET_DEPTH, budget)
            ours.add_budget(budget, asked, folded(conversation, packed))

    async def one(conversation: Conversation) -> None:
        async with gate:
            user = f"{run}-{conversation.id}"
            begin = time.perf_counter()
            await memory.add(user, conversation.lines)
            seconds["add"].append((time.perf_counter() - begin) / max(1, len(conversation.lines)))
            for asked in conversation.questions:
                await ask(user, conversation, asked)
        bm25 = PlainBm25(conversation.lines)
        for asked in conversation.questions:
            plain.add(asked, folded(conversation, bm25.rank(asked.text)))

    await asyncio.gather(*map(one, conversations))
    return ours, plain, seconds


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.recall", description="Measures recall beside plain BM25.")
    parser.add_argument("directory", type=Path, help="where the sets are, as *.json")
    parser.add_argument("--sets", help="comma-separated names (default: all)")
    parser.add_argument("--conversations", type=int, metavar="N", help="only the first N of each set")
    parser.add_argument("--address", help="host:port of a system that runs already (default: one is started)")
    parser.add_argument("--key", default="", help="an API key for --address that may act as any user")
    parser.add_argument("--in-process", action="store_true", help="the engine alone, without a server around it")
    parser.add_argument("--model", default="minilm", choices=("minilm", "none"), help="with --in-process")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache/memoryos/models", help="with --in-process")
    parser.add_argument("--no-budgets", action="store_true", help="leaves out the token budgets")
    return parser.parse_args(argv)


async def _run(args: argparse.Namespace, names: Sequence[str]) -> None:
    system: AbstractAsyncContextManager[Memory]
    if args.in_process:
        system = in_process(args.models, model=args.model)
    else:
        system = over_grpc(args.address, args.key) if args.address else whole_system()
    async with system as memory:
        for name in names:
            conversations = load(args.directory, name, args.conversations)
            ours, plain, seconds = await measure(memory, conversations, () if args.no_budgets else BUDGETS)
            turns = sum(len(c.lines) for c in conversations)
            print(f"\n{name}: {len(conversations)} conversations, {turns} turns, {ours.questions} questions")
            print(f"  memoryos    {ours.line()}")
            print(f"  plain BM25  {plain.line()}")
            print(f"  recall@10 by kind: {ours.detail()}")
            add, found = 1e3 * statistics.mean(seconds["add"]), sorted(seconds["retrieve"])
            p50, p99 = 1e3 * statistics.median(found), 1e3 * found[int(len(found) * 0.99)]
            print(
                f"  {PARALLEL} users at once: add {add:.1f} ms a turn, retrieve p50 {p50:.1f} p99 {p99:.1f} ms",
                flush=True,
            )


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
