"""`python -m bench.outage`: what is served while stores are away, as one table, and what a hanging store costs a chat."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from bench.outage.expected import CACHES, MODES
from bench.outage.families import running
from bench.outage.matrix import Cell, Matrix, Speed
from tests.upstream import UpstreamProcess

RATIO = 1.2
"""At most this many times as long as without memory, where a store hangs and the breaker is open."""

THINKS = 0.2
"""Seconds after which the provider begins its answer: a fast one."""

FIRST_SECONDS = 0.2
"""What the first chat may take longer: the 0.15 s that it may wait for its memory, and some for the machine's moods."""


def shown(cells: list[Cell], *, wrong_only: bool = False) -> Iterator[str]:
    """The table, a line per cell."""
    yield "| stores | state | mode | caches | call | expected | seen | |"
    yield "|---|---|---|---|---|---|---|---|"
    for c in cells:
        if not (wrong_only and c.equal and not c.first):
            mark = "**differs**" if not c.equal else f"= at the second call, at first {c.first}" if c.first else "="
            yield (
                f"| {c.family} | {c.state} | {c.mode} | {c.caches} | {c.call} | {c.expected} "
                f"| {c.seen} ({c.seconds * 1000:.0f} ms) | {mark} |"
            )


def main() -> int:
    """Runs the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description=__doc__)
    parser.add_argument("--family", choices=("embedded", "live"), action="append", help="one of both families")
    parser.add_argument("--mode", choices=MODES, action="append", help="one of both ways in which a store is away")
    parser.add_argument("--pipeline", choices=("sync", "async"), action="append", help="one of both pipelines")
    parser.add_argument("--chats", type=int, default=40, help="chats per median; 0 measures no speed")
    parser.add_argument("--brief", action="store_true", help="prints only the cells that differ")
    parser.add_argument("--json", type=Path, help="keeps the cells and the speeds")
    args = parser.parse_args()
    cells: list[Cell] = []
    speeds: list[Speed] = []
    began = time.monotonic()
    with UpstreamProcess() as upstream, tempfile.TemporaryDirectory(prefix="outage") as home:
        for family in args.family or ("live", "embedded"):
            for pipeline in args.pipeline or ("sync", "async"):
                name = family if pipeline == "sync" else f"{family}, async"
                with running(family, Path(home) / name, upstream.base_url, pipeline=pipeline) as it:
                    # The pipelines differ in how writes are acknowledged only.
                    caches = CACHES if pipeline == "sync" else CACHES[:1]
                    matrix = Matrix(name, it, upstream, caches=caches, modes=args.mode or MODES)
                    for cell in matrix.run():
                        cells.append(cell)
                        if sys.stderr.isatty():
                            print(f"\r{len(cells)} cells", end="", file=sys.stderr)
                    if args.chats and pipeline == "sync":
                        speeds += matrix.speed(args.chats, (0.0, THINKS))
    print("\n".join(shown(cells, wrong_only=args.brief)))
    again = sum(cell.equal and bool(cell.first) for cell in cells)
    second = f" ({again} equal at the second call only)" if again else ""
    differ = sum(not cell.equal for cell in cells)
    print(
        f"\n{len(cells)} cells, {len(cells) - differ} equal, {differ} differ{second}; {time.monotonic() - began:.0f} s"
    )
    good = differ == 0
    if speeds:
        print("\n| stores | hanging | first chat waits | provider thinks | p50 | memory off | ratio | stores up | |")
        print("|---|---|---|---|---|---|---|---|---|")
    for s in speeds:
        # A provider that answers at once shows what is left to do; the ratio is for one that thinks.
        # With one store hanging the other goes on working: that takes what it takes with both up.
        fine = s.first <= FIRST_SECONDS and (not s.thinks or s.p50 / s.off <= RATIO or s.p50 <= s.up)
        good &= fine
        print(
            f"| {s.family} | {s.state.removesuffix(' down')} | {s.first * 1000:.0f} ms | {s.thinks * 1000:.0f} ms "
            f"| {s.p50 * 1000:.1f} ms | {s.off * 1000:.1f} ms | {s.p50 / s.off:.2f} | {s.up * 1000:.1f} ms "
            f"| {'' if not s.thinks and fine else '=' if fine else '**too long**'} |"
        )
    if args.json:
        args.json.write_text(json.dumps({"cells": [asdict(c) for c in cells], "speeds": [asdict(s) for s in speeds]}))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
