"""`python -m bench.existence`: whether the time of an answer tells that somebody else has what one asks for.

Every RPC that takes the id of something of a user's is called with ids that nobody has, that a neighbour in the same tenant
has, and that somebody in another tenant has, in random order. All are answered alike; whether they take alike is said by how
often one of the latter takes longer than one of the former (the area under the ROC curve, by the Mann-Whitney test): half of
the time, if there is nothing to learn. Shown with it is the distance from one half in standard errors; with as many rows, some
2 are chance.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from memoryos_server.domain.core.ids import uuid7
from tests.any_rpc import METHODS, message_of, over_grpc
from tests.isolation import IDS
from tests.rpc.authorisation import LINES, Line
from tests.system import System

ADMIN = "admin-key-of-a-benchmark-0123456789"
BOSS = {"authorization": f"Bearer {ADMIN}"}
ENV = {
    "MEMORYOS_AUTH__ENABLED": "true",
    "MEMORYOS_AUTH__ADMIN_KEY": ADMIN,
    "MEMORYOS_DEFENSE__KEY_PER_SECOND": "1000000",
    "MEMORYOS_DEFENSE__KEY_BURST": "1000000",
}
KINDS = {
    "GetChatReceipt": "receipt",
    "AddTags": "segment",
    "RemoveTags": "segment",
    "ListVersions": "segment",
    "GetTypedMemory": "typed memory",
    "UpdateTypedMemory": "typed memory",
    "DeleteTypedMemory": "typed memory",
}
"""What an RPC's id names, where its field does not say it."""

_NOBODY, _NEIGHBOUR, _STRANGER = "nobody", "a neighbour", "a stranger"
_SAY = {
    "body_json": json.dumps({"model": "memoryos/recall", "messages": [{"role": "user", "content": "Good morning!"}]})
}

Things = Mapping[str, list[str]]
"""What kind of thing -> the ids of some."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints a table; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.existence", description=__doc__)
    parser.add_argument(
        "--calls", type=int, default=1_000, help="calls of each RPC with each kind of id (default: 1000)"
    )
    parser.add_argument("--things", type=int, default=50, help="things of each kind that everybody has (default: 50)")
    args = parser.parse_args(arguments)
    lines = [
        line
        for line in LINES
        if line.whose == "user" and line.permission != "public" and any(n in line.request for n in IDS)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="memoryos-existence-") as folder,
        System(Path(folder), ENV) as system,
        grpc.insecure_channel(system.grpc) as channel,
    ):
        have(channel, "north", "ann", args.things)
        pools = {
            _NOBODY: nothing(args.things),
            _NEIGHBOUR: have(channel, "north", "bob", args.things),
            _STRANGER: have(channel, "south", "eve", args.things),
        }
        made = system.post(
            "/v1/admin/keys", {"user_id": "ann", "tenant_id": "north", "permissions": ["chat", "memory"]}, dict(BOSS)
        )
        key = f"Bearer {made[1]['api_key']}"
        print(
            f"{args.calls} calls of each; how often one with an id that is somebody's takes longer than one with nobody's\n"
        )
        print("| call | nobody's ms | a neighbour's | takes longer | errors | a stranger's | takes longer | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for line in lines:
            took = asked(channel, line, pools, key, args.calls)
            base = took[_NOBODY]
            cells = [line.rpc, f"{median(base):.3f}"]
            for whose in (_NEIGHBOUR, _STRANGER):
                share = longer(took[whose], base)
                errors = (share - 0.5) * (6 * args.calls) ** 0.5
                cells += [f"{median(took[whose]):.3f}", f"{share:.1%}", f"{errors:+.1f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


def have(channel: grpc.Channel, tenant: str, user: str, count: int) -> Things:
    """Gives somebody things of every kind."""
    headers = BOSS | {"x-tenant-id": tenant, "x-user-id": user}

    def call(rpc: str, request: Mapping[str, Any]) -> Any:
        seen = over_grpc(channel, METHODS[rpc], request, headers)
        if seen.code is not grpc.StatusCode.OK:
            raise RuntimeError(f"{rpc}: {seen}")
        return seen.answers[0]

    found: dict[str, list[str]] = {name: [] for name in nothing(0)}
    for number in range(count):
        of, session = str(uuid.uuid4()), str(uuid.uuid4())
        said = {"role": "user", "content": f"{user} keeps note {number}", "session_id": session, "event_id": of}
        found["memory_id"].append(call("AddMemory", said).memory_id)
        found["event_id"].append(of)
        found["session_id"].append(session)
        found["typed memory"].append(
            call("CreateTypedMemory", {"content": f"{user} likes tea {number}", "memory_type": "fact"}).memory.id
        )
        found["receipt"].append(call("CreateChatCompletion", {"chat": _SAY}).memory.receipt_id)
        segment = str(uuid.uuid4())
        call(
            "ImportSegments", {"segments": [{"id": segment, "summary": f"{user} had lunch {number}", "tags": ["work"]}]}
        )
        found["segment"].append(segment)
    return found


def nothing(count: int) -> Things:
    """Ids of things that nobody has, in the form of those that are given out."""
    given = dict.fromkeys(("memory_id", "typed memory", "receipt"), uuid7)
    named = dict.fromkeys(("event_id", "session_id", "segment"), lambda: str(uuid.uuid4()))
    return {kind: [make() for _ in range(count)] for kind, make in (given | named).items()}


def asked(
    channel: grpc.Channel, line: Line, pools: Mapping[str, Things], key: str, calls: int
) -> Mapping[str, list[float]]:
    """Calls an RPC with everybody's ids: whose -> the milliseconds of each call, the shortest first."""
    method = METHODS[line.rpc]
    field = next(name for name in line.request if name in IDS)
    kind = KINDS.get(line.rpc, field)
    call = channel.unary_unary(
        method.path,
        request_serializer=method.request_class.SerializeToString,
        response_deserializer=method.response_class.FromString,
    )
    requests = {
        whose: [message_of(method, dict(line.request) | {field: one}) for one in things[kind]]
        for whose, things in pools.items()
    }
    order = [whose for whose in requests for _ in range(calls)]
    chance = random.Random(7)  # noqa: S311  # an order
    chance.shuffle(order)
    took: dict[str, list[float]] = {whose: [] for whose in requests}
    for whose in order:
        request = chance.choice(requests[whose])
        began = time.perf_counter()
        try:
            call(request, metadata=(("authorization", key),), timeout=30)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        took[whose].append((time.perf_counter() - began) * 1000)
    return {whose: sorted(each) for whose, each in took.items()}


def longer(these: Sequence[float], those: Sequence[float]) -> float:
    """How often one of these is longer than one of those; both sorted."""
    return sum(bisect_left(those, one) for one in these) / (len(these) * len(those))


if __name__ == "__main__":
    raise SystemExit(main())
