"""`python -m bench.trust`: what a banned address costs, and what keys, limits, audit of reads and defense cost.

There are two servers. In the second one keys, limits, audit and defense are taken out and nothing else is different, and it has a
raw echo besides. Targets: that echo, and a call of a banned address, both as a bridge passes them on; one RPC that touches no
store, by a client that uses gRPC itself, with everything on and a key of the store; the same of the second server; and the last
two as JSON through a bridge. The key is the same with every call and its limit is never near, which is how most calls are; and the
address is loopback's, which is never banned. Compared are calls a second, and the processor time that the server
used for one. Every round is short and measures every target, in another order each time, so that a slow moment of the machine
hits all alike; what is said of two targets is the median of what each round says of them. A target is called for a while before it
is measured, because what it records is written up to half a second later; and there is a pause behind it, so that none of that
falls to the next.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc
import uvloop

from bench.load.__main__ import measure
from memoryos.v1.admin_service_pb2 import CreateApiKeyRequest
from tests.system import System

ADMIN = "admin-key-of-a-benchmark-0123456789"
SECRET = "secret-of-a-test"  # noqa: S105  # the one that tests.system gives to a bridge
BANNED = "203.0.113.66"
READ = "/memoryos.v1.DefenseService/ListWhitelist"
ROUTE = "/v1/admin/defense/whitelist"
CREATE = "/memoryos.v1.AdminService/CreateApiKey"
KEY = "made-key-of-a-benchmark-0123456789"

_PAUSE = 0.8
"""Seconds after which nothing of a call is left to do."""

Call = Callable[[int], Awaitable[object]]


def processor_seconds(pid: int) -> float:
    """The processor time that the threads of a process have used."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def bridged(address: str, key: str = "") -> tuple[tuple[str, str], ...]:
    """The metadata with which a bridge passes on a request of an address."""
    told = (
        ("x-request-id", "0123456789abcdef0123456789abcdef"),
        ("memoryos-quiet", "1"),
        ("memoryos-client-address", address),
        ("memoryos-bridge-secret", SECRET),
    )
    return (*told, *bearer(key)) if key else told


async def ban(system: System) -> None:
    """Has `BANNED` banned, as anybody would be."""
    async with grpc.aio.insecure_channel(system.grpc) as channel:
        call: Any = channel.unary_unary(READ)
        for _ in range(25):
            try:
                await call(b"", metadata=bridged(BANNED, "no-such-key"))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    return
    raise RuntimeError("the address is not banned")


async def make_key(system: System) -> None:
    """Makes `KEY`, which may call `READ`."""
    wanted = CreateApiKeyRequest(api_key=KEY, user_id="bench", permissions=["admin"], tenant_id="*")
    async with grpc.aio.insecure_channel(system.grpc) as channel:
        call: Any = channel.unary_unary(CREATE)
        await call(wanted.SerializeToString(), metadata=bearer(ADMIN))


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with a key."""
    return (("authorization", f"Bearer {key}"),)


class Bare(System):
    """A system whose server has no trust plane."""

    server_module = "bench.trust.bare"


async def run(system: System, bare: System, args: argparse.Namespace) -> None:
    """Measures and prints."""
    await make_key(system)
    await ban(system)
    async with AsyncExitStack() as stack:

        async def target(
            at: tuple[str, int],
            path: str,
            metadata: Sequence[tuple[str, str]],
            code: grpc.StatusCode = grpc.StatusCode.OK,
        ) -> tuple[Call, int]:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(at[0]))
            method: Any = channel.unary_unary(path)

            async def call(_number: int) -> None:
                try:
                    await method(b"", metadata=metadata, timeout=20, wait_for_ready=True)
                    ended = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    ended = error.code()
                if ended is not code:
                    raise RuntimeError(f"{path}: {ended}")

            return call, at[1]

        http = await stack.enter_async_context(aiohttp.ClientSession(headers=dict(bearer(KEY))))

        def json_target(address: str, process: int) -> tuple[Call, int]:
            async def call(_number: int) -> None:
                async with http.get(f"http://{address}{ROUTE}") as answer:
                    text = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{ROUTE}: {answer.status} {text[:200]!r}")

            return call, process

        assert system.server is not None
        assert bare.server is not None
        on, off = (system.grpc, system.server.pid), (bare.grpc, bare.server.pid)
        targets = {
            "raw echo": await target(off, "/echo.Echo/Echo", bridged(BANNED, KEY)),
            "banned address": await target(on, READ, bridged(BANNED, KEY), grpc.StatusCode.PERMISSION_DENIED),
            "all on": await target(on, READ, bearer(KEY)),
            "all off": await target(off, READ, ()),
            "all on, JSON": json_target(system.http, on[1]),
            "all off, JSON": json_target(bare.http, off[1]),
        }
        names = list(targets)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(args.rounds + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                call, process = targets[name]
                await measure(call, 1, args.calls, args.concurrency)
                before = processor_seconds(process)
                _, whole = await measure(call, 1, args.calls, args.concurrency)
                used = processor_seconds(process) - before
                await asyncio.sleep(_PAUSE)
                if turn:  # the first round warms up
                    found[name].append((used / args.calls * 1e6, args.calls / whole))
    cost = {name: median(used for used, _ in rows) for name, rows in found.items()}
    rate = {name: median(each for _, each in rows) for name, rows in found.items()}
    print(f"{args.rounds} rounds of {args.calls} calls, {args.concurrency} at a time; medians")
    print(f"{'target':<16}{'server us/call':>16}{'calls/s':>10}")
    for name in names:
        print(f"{name:<16}{cost[name]:>16.0f}{rate[name]:>10.0f}")

    def ratio(one: str, other: str, what: int) -> float:
        return median(a[what] / b[what] for a, b in zip(found[one], found[other], strict=True))

    print(f"a banned address costs the server {ratio('banned address', 'raw echo', 0):.2f} x a raw echo")
    for door in ("", ", JSON"):
        print(f"all on{door} has {ratio(f'all on{door}', f'all off{door}', 1):.0%} of the rate of all off{door}")


def main() -> None:
    """Starts everything, measures, prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.trust", description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1500, help="calls per target and round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--concurrency", type=int, default=16)
    args = parser.parse_args()
    env = {
        "MEMORYOS_AUTH__ENABLED": "true",
        "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
        # The limit is looked at and never reached.
        "MEMORYOS_DEFENSE__KEY_PER_SECOND": "1000000",
        "MEMORYOS_DEFENSE__KEY_BURST": "1000000",
    }
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memoryos-bench-")))
        system = stack.enter_context(System(home / "on", env))
        without = {"PYTHONPATH": str(Path(__file__).parents[2]), "MEMORYOS_SERVER__REFLECTION": "false"}
        uvloop.run(run(system, stack.enter_context(Bare(home / "off", without)), args))


if __name__ == "__main__":
    main()
