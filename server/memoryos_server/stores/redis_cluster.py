"""The connections to a cluster: who has a key's slot, and what to do when somebody else has it by now.

The library's own client of clusters takes everybody down with one node: it reads the slots from a node that may be the one that
is gone, closes the connections of all nodes when slots move, and follows `ASK` on another connection than it has said
`ASKING` on. So this is ours, over the library's client of one server for each node:

- Who has no trouble goes on with the slots as they were last told, while one task reads them anew, from all nodes at once.
- A node that hangs holds up only its own connections.
- A command that was redirected was not run, and is sent on; one that met a broken connection is sent once more, to whoever has
  its slot then; one that timed out is never repeated. What a batch has of one slot is sent on in its order.

Source of the protocol: the Redis cluster specification, sections on redirection and live reconfiguration.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MovedError,
    RedisError,
    SlotNotCoveredError,
    TimeoutError,
    TryAgainError,
)

from memoryos_server.stores.redis_nodes import node_client, timed_out
from memoryos_server.stores.redis_url import Endpoint
from memoryos_server.stores.scope import MANIFEST, PARTITIONS, Partition

_SLOTS = 16_384
_REDIRECTS = 16
_MOVING_SECONDS = 0.05
"""So long is waited for keys of one command that are on two nodes, before it is tried again."""
_READ_AGAIN_SECONDS = 1.0
"""While single slots are said to be elsewhere, all are read anew no more often than this."""

_OTHERS_SECONDS = 0.1
"""So much later than the first the others may say who has which slots."""

Address = tuple[str, int]
"""Host and port of a node."""

_Told = tuple[tuple[tuple[int, int, Address], ...], frozenset[Address]]
"""First and last slot of each range and who has it; all nodes."""

_UNSERVED = (ClusterDownError, ConnectionError)
_NOT_RUN = (AskError, TryAgainError, *_UNSERVED)  # `MovedError` is an `AskError`


class ClusterLink:
    """The `Link` to a cluster."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Keeps where some nodes are; nobody is asked before the first command."""
        self._endpoint = endpoint
        self._clients: dict[Address, Redis] = {}
        self._known: list[Address] = list(endpoint.hosts)
        self._owners: list[Address | None] = []
        self._reading: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._closed = False
        self._read_at = float("-inf")

    async def run(self, *command: Any) -> Any:
        """The answer to a command, of the node that has its first key."""
        slot, once = slot_of(command), True
        asked: Address | None = None
        for _ in range(_REDIRECTS):
            owner = asked or await self._owner(slot)
            client = self._client(owner)
            try:
                if asked is None:
                    return await client.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py
                asked = None
                return await _asking(client, command)
            except MovedError as error:
                self._learn(slot, (_host(error.host, owner), error.port))
            except AskError as error:
                asked = _host(error.host, owner), error.port
            except TryAgainError:
                await asyncio.sleep(_MOVING_SECONDS)
            except _UNSERVED as error:
                if not once or timed_out(error):
                    self._look()
                    raise
                once = False
                await self._looked()
                if isinstance(error, ConnectionError) and await self._owner(slot) == owner:
                    raise
            except TimeoutError:
                self._look()
                raise
            except asyncio.CancelledError:
                self._look_again()  # it may have waited for a node that hangs
                raise
        raise TryAgainError("a slot is being moved")

    async def together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers to commands that need not be one step: of each node at once, and of all nodes beside one another."""
        of_nodes: dict[Address, list[int]] = {}
        for number, command in enumerate(commands):
            of_nodes.setdefault(await self._owner(slot_of(command)), []).append(number)
        answers: list[Any] = [None] * len(commands)

        async def at(address: Address, numbers: list[int]) -> None:
            async with self._client(address).pipeline(transaction=False) as pipeline:
                for number in numbers:
                    pipeline.execute_command(*commands[number])
                try:
                    found = await pipeline.execute(raise_on_error=False)
                except (RedisError, OSError) as error:
                    found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer

        await asyncio.gather(*(at(*each) for each in of_nodes.items()))
        again: dict[int, list[int]] = {}
        for number, answer in enumerate(answers):
            if isinstance(answer, _NOT_RUN) and not timed_out(answer):
                again.setdefault(slot_of(commands[number]), []).append(number)

        async def in_order(numbers: list[int]) -> None:
            for number in numbers:
                try:
                    answers[number] = await self.run(*commands[number])
                except (RedisError, OSError) as error:
                    answers[number] = error
                    return

        await asyncio.gather(*map(in_order, again.values()))
        for answer in answers:
            if isinstance(answer, BaseException):
                if timed_out(answer):
                    self._look()
                raise answer
        return answers

    async def probes(self) -> Sequence[str]:
        """Keys such that each node that takes writes has one of them, and each slot without a node, too."""
        await self._ready()
        by_node: dict[Address | None, str] = {}
        for key in (MANIFEST, *(Partition(number).lease for number in range(PARTITIONS))):
            by_node.setdefault(self._owners[_slot(key)], key)
        return list(by_node.values())

    async def listener(self, channel: str) -> Redis:
        """A connection of its own to the node that has the channel's slot; nothing reconnects behind its back."""
        await self.run("EXISTS", channel)  # so that a node that is gone is noticed, and the one in its place found
        # The node that scripts publish on: its messages need no bus between nodes.
        return node_client(self._endpoint, *await self._owner(_slot(channel)))

    def is_where_heard(self, listener: Redis, channel: str) -> bool:
        """Whether `listener` is still connected to the node that has the channel's slot."""
        connected = listener.connection_pool.connection_kwargs
        owner = self._owners[_slot(channel)] if self._owners else None
        return owner == (connected["host"], connected["port"])

    async def parts(self) -> list[Redis]:
        """A client of its own for each node that has slots now; to be closed by who asks."""
        return [node_client(self._endpoint, *address) for address in await self._primaries()]

    async def layout(self) -> object:
        """What each node says who has which slots.

        Raises:
            TryAgainError: Slots are being moved: what they hold may be seen on both nodes, or on neither.
        """
        told = []
        for address in await self._primaries():
            nodes: bytes = await self._client(address).execute_command("CLUSTER", "NODES")  # type: ignore[no-untyped-call]  # untyped in redis-py
            slots = [(fields[0], *fields[8:]) for fields in map(bytes.split, nodes.splitlines())]
            if any(ranges.startswith(b"[") for _, *all_ranges in slots for ranges in all_ranges):
                raise TryAgainError("slots are being moved")
            told.append(sorted(one for one in slots if len(one) > 1))
        if any(one != told[0] for one in told):
            raise TryAgainError("the nodes do not agree yet who has which slots")
        return told[0]

    async def aclose(self) -> None:
        """Closes every connection."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._retiring:
            for task in self._retiring:
                task.cancel()
            await asyncio.wait(set(self._retiring))
        for client in list(self._clients.values()):
            await client.aclose(close_connection_pool=True)

    def _client(self, address: Address) -> Redis:
        client = self._clients.get(address)
        if client is None:
            if self._closed:
                raise ConnectionError("the connections are closed")
            client = self._clients[address] = node_client(self._endpoint, *address, shared=True)
        return client

    async def _ready(self) -> None:
        if not self._owners:
            await self._looked()

    async def _owner(self, slot: int) -> Address:
        await self._ready()
        if self._owners[slot] is None:
            await self._looked()
        owner = self._owners[slot]
        if owner is None:
            raise SlotNotCoveredError(f"no node has slot {slot}")
        return owner

    async def _primaries(self) -> list[Address]:
        await self._looked()
        return sorted({owner for owner in self._owners if owner is not None})

    def _learn(self, slot: int, owner: Address) -> None:
        """Notes that a slot is elsewhere; where one is, others are likely to be."""
        self._owners[slot] = owner
        self._look_again()

    def _look_again(self) -> None:
        if monotonic() >= self._read_at + _READ_AGAIN_SECONDS:
            self._look()

    async def _looked(self) -> None:
        """Returns when the slots were read anew.

        Raises:
            ConnectionError: No node says who has them.
        """
        reading = self._look()
        if reading is None or self._closed:
            raise ConnectionError("the connections are closed")
        await asyncio.shield(reading)

    def _look(self) -> asyncio.Task[None] | None:
        """Has the slots read anew, once for all who want it; None when the connections are closed and it never was."""
        if not self._closed and (self._reading is None or self._reading.done()):
            self._reading = asyncio.create_task(self._read(), name="cluster-slots")
            # Somebody may wait for it or not.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._reading

    async def _read(self) -> None:
        # Of all nodes at once, so that one that hangs or is gone holds nobody up.
        asking = [asyncio.create_task(self._told(address)) for address in self._known]
        try:
            told = await _answers(asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        if not told:
            raise ConnectionError("no node of the cluster says who has which slots")
        # What most say: one that is cut off from the others says what was.
        ((ranges, _),) = Counter(ranges for ranges, _ in told).most_common(1)
        nodes = frozenset[Address]().union(*(nodes for _, nodes in told))
        owners: list[Address | None] = [None] * _SLOTS
        for first, last, owner in ranges:
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        self._known = list(dict.fromkeys((*sorted(nodes), *self._endpoint.hosts)))
        self._read_at = monotonic()
        for address in self._clients.keys() - set(self._known):
            retiring = asyncio.create_task(self._retire(self._clients.pop(address)))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _retire(self, client: Redis) -> None:
        """Closes the connections to a node that is of the cluster no more, once nobody waits for its answers."""
        try:
            await asyncio.sleep(2 * self._endpoint.timeout)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await client.aclose(close_connection_pool=True)

    async def _told(self, asked: Address) -> _Told:
        """Who has which slots, and all nodes there are, as one of them says."""
        answer = await self._client(asked).execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]  # untyped in redis-py
        ranges, nodes = [], set()
        for first, last, *of_range in answer:
            addresses = [(_host((host or b"").decode(), asked), int(port)) for host, port, *_ in of_range]
            ranges.append((int(first), int(last), addresses[0]))
            nodes.update(addresses)
        if not ranges:
            raise ValueError(f"{asked} is of no cluster that has slots")
        return tuple(sorted(ranges)), frozenset(nodes)


async def _answers(asking: Sequence[asyncio.Task[_Told]]) -> list[_Told]:
    """What nodes answer until a moment after the first has."""
    told: list[_Told] = []
    left: set[asyncio.Task[_Told]] = set(asking)
    end: float | None = None
    while left and (end is None or monotonic() < end):
        seconds = None if end is None else end - monotonic()
        done, left = await asyncio.wait(left, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(RedisError, OSError, ValueError):
                told.append(task.result())
        if told and end is None:
            end = monotonic() + _OTHERS_SECONDS
    return told


def _host(told: str, asked: Address) -> str:
    """The host that a node names; one that it does not know is where it was asked itself."""
    return asked[0] if told in ("", "?") else told


async def _asking(client: Redis, command: Sequence[Any]) -> Any:
    """The answer of a node that a slot is on its way to. It must hear `ASKING` on the same connection."""
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("ASKING")
        pipeline.execute_command(*command)
        _, answer = await pipeline.execute(raise_on_error=False)
    if isinstance(answer, Exception):
        raise answer
    return answer


def slot_of(command: Sequence[Any]) -> int:
    """The slot of a command's first key; of a command without one, that of the manifest."""
    at = {"EVAL": 3, "EVALSHA": 3, "XINFO": 2}.get(command[0], 1)
    return _slot(command[at] if len(command) > at else MANIFEST)


def _slot(key: str | bytes) -> int:
    return key_slot(key.encode() if isinstance(key, str) else key)
