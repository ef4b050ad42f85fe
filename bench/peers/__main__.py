"""`python -m bench.peers`: retrieve and add beside mem0 and a raw echo RPC, at growing numbers of one user's episodes.

Everything runs on this machine in one run, in turns. mem0 has a Python of its own (`--mem0 PYTHON`; without it, ours and
the echo are measured alone) and embeds with the same model, so that only the memory differs. The time of ours is what a
client sees over gRPC, embedding included; the time of mem0 is that of the call in its own process, which is in its favour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import uvloop

from bench.load import echo
from bench.peers.corpus import questions, sentences
from memoryos import AsyncClient
from memoryos.v1 import memory_service_pb2
from tests.system import CACHE, System, free_port

ROOT = Path(__file__).resolve().parents[2]
LOADERS = 16
_LOOK_SECONDS = 3.0
_IDLE = 0.15
"""Of a core; server and stores that have nothing to do stay below."""
WRITES_PER_SECOND = 20
"""How fast others write while `retrieve, writing` is measured."""
CROWD = 200
"""Users who have some memory besides the one that is asked."""


class Mem0:
    """The peer's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Keeps it."""
        self._process = process

    async def ask(self, operation: str, texts: Sequence[str]) -> list[float]:
        """The seconds that each took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({operation: texts}).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(await self._process.stdout.readline())
        assert isinstance(answer, list)
        return answer


@asynccontextmanager
async def mem0(python: str | None) -> AsyncIterator[Mem0 | None]:
    """The peer, or None."""
    if python is None:
        yield None
        return
    process = await asyncio.create_subprocess_exec(
        python,
        str(ROOT / "bench/peers/mem0_child.py"),
        str(CACHE / "memoryos"),
        env=os.environ | {"PYTHONPATH": f"{ROOT}/server"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 26,
    )
    assert process.stdout is not None
    if json.loads(await process.stdout.readline() or '""') != "ready":
        raise SystemExit(
            "bench.peers: mem0 does not start; does its Python have mem0ai, onnxruntime, tokenizers and numpy?"
        )
    try:
        yield Mem0(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def timed(call: Any, items: Sequence[str]) -> list[float]:
    """The seconds of each call, one after the other."""
    taken = []
    for item in items:
        begin = time.perf_counter()
        await call(item)
        taken.append(time.perf_counter() - begin)
    return taken


async def load(client: AsyncClient, user: str, texts: Sequence[str]) -> None:
    """Adds a user's episodes, several at a time."""
    left = iter(texts)

    async def worker() -> None:
        for text in left:
            await client.add(text, user_id=user)

    await asyncio.gather(*(worker() for _ in range(LOADERS)))


@asynccontextmanager
async def writing(client: AsyncClient) -> AsyncIterator[None]:
    """Others write meanwhile, at a steady pace."""

    async def write() -> None:
        for number, text in enumerate(sentences(1_000_000, seed=23)):
            await client.add(text, user_id=f"other-{number % CROWD}")
            await asyncio.sleep(1 / WRITES_PER_SECOND)

    writer = asyncio.create_task(write())
    try:
        yield
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


def pids_of(system: System) -> list[int]:
    """The server and its stores."""
    assert system.server is not None
    return [system.server.pid, *system.children().values()]


def memory_of(system: System) -> int:
    """What server and stores hold resident, in bytes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids_of(system))
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_of(system: System) -> float:
    """The processor time that server and stores have taken, in seconds."""
    files = [file for pid in pids_of(system) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


async def quiet(system: System) -> float:
    """Waits until what was added is digested, which goes on after it is searchable; gives the seconds."""
    begin = time.perf_counter()
    busy = 1.0
    while busy > _IDLE:
        before = processor_of(system)
        await asyncio.sleep(_LOOK_SECONDS)
        busy = (processor_of(system) - before) / _LOOK_SECONDS
    return time.perf_counter() - begin


def line(name: str, taken: Sequence[float], yardstick: float, processor: float | None = None) -> str:
    """A row: p10, p50, p99, the p50 in multiples of the yardstick's, and processor time a call where it is known."""
    ordered = sorted(taken)
    p10, p99 = (1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.1, 0.99))
    p50 = 1e3 * median(ordered)
    tail = "" if processor is None else f"{1e3 * processor:>9.2f}"
    return f"  {name:<26}{p10:>9.2f}{p50:>9.2f}{p99:>9.2f}{p50 / 1e3 / yardstick:>9.1f}{tail}"


async def run(system: System, echo_address: str, args: argparse.Namespace) -> None:
    """Measures every size."""
    async with (
        AsyncClient(system.grpc, user_id="bench") as client,
        grpc.aio.insecure_channel(echo_address) as channel,
        mem0(args.mem0) as peer,
    ):
        method: Any = channel.unary_unary(echo.PATH)

        async def call_echo(text: str) -> None:
            request = memory_service_pb2.RetrieveMemoryRequest(user_id="bench", query=text)
            await method(request.SerializeToString(), wait_for_ready=True, timeout=20)

        corpus = sentences(max(args.episodes) + args.rounds * args.calls * len(args.episodes))
        others = sentences(CROWD * 5, seed=3)
        for user in range(CROWD):
            await load(client, f"other-{user}", list(islice(others, 5)))
        there = 0
        for size in sorted(args.episodes):
            begin = time.perf_counter()
            texts = list(islice(corpus, size - there))
            await load(client, "bench", texts)
            if peer is not None and size <= args.mem0_most:
                await peer.ask("add", texts)
            there = size
            loaded = time.perf_counter() - begin
            digested = await quiet(system)
            print(
                f"\n{size:,} episodes of one user, {CROWD} other users; loaded in {loaded:.0f} s, digested {digested:.0f} s later"
            )
            found: dict[str, list[float]] = {}
            processor: dict[str, float] = {}

            async def measure(
                name: str,
                call: Any,
                items: Sequence[str],
                found: dict[str, list[float]] = found,
                processor: dict[str, float] = processor,
            ) -> None:
                before = processor_of(system)
                found.setdefault(name, []).extend(await timed(call, items))
                spent = (processor_of(system) - before) / len(items) / args.rounds
                processor[name] = processor.get(name, 0.0) + spent

            for number in range(args.rounds):
                asked = list(questions(args.calls, seed=100 * size + number))
                said = list(islice(corpus, args.calls))
                there += len(said)
                found.setdefault("echo", []).extend(await timed(call_echo, asked))
                await measure("retrieve", client.retrieve, asked)
                await measure("add", client.add, said)
                await quiet(system)
                async with writing(client):
                    found.setdefault("retrieve, writing", []).extend(await timed(client.retrieve, asked[::-1]))
                if peer is not None and size <= args.mem0_most:
                    found.setdefault("mem0 search", []).extend(await peer.ask("search", asked))
                    found.setdefault("mem0 add", []).extend(await peer.ask("add", said))
            yardstick = median(found["echo"])
            print(f"  {'':<26}{'p10 ms':>9}{'p50 ms':>9}{'p99 ms':>9}{'x echo':>9}{'cpu ms':>9}")
            for name in ("echo", "retrieve", "retrieve, writing", "mem0 search", "add", "mem0 add"):
                if name in found:
                    print(line(name, found[name], yardstick, processor.get(name)))
            print(f"  resident: {memory_of(system) / 2**20:.0f} MiB", flush=True)


def main() -> None:
    """Starts everything, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--calls", type=int, default=100, help="calls per target and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pipeline", choices=("sync", "async"), default="sync")
    parser.add_argument("--mem0", metavar="PYTHON", help="a Python that has mem0ai; none: no peer")
    parser.add_argument("--mem0-most", type=int, default=10_000, help="the most episodes that mem0 is asked with")
    args = parser.parse_args()
    address = f"127.0.0.1:{free_port()}"
    yardstick = subprocess.Popen([sys.executable, "-m", "bench.load.echo", address])
    try:
        with (
            tempfile.TemporaryDirectory(prefix="memoryos-bench-") as home,
            System(Path(home), {"MEMORYOS_MEMORY__PIPELINE": args.pipeline}) as system,
        ):
            uvloop.run(run(system, address, args))
    finally:
        yardstick.kill()
        yardstick.wait()


if __name__ == "__main__":
    main()
