"""kill -9 at every named point of the ledger: no event is lost or doubled, each has one end state, order is kept."""

from __future__ import annotations

import contextlib
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from memoryos.v1 import memory_service_pb2 as pb
from memoryos.v1 import (
    memory_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    segment_service_pb2,
    segment_service_pb2_grpc,
    types_pb2,
)
from memoryos_server.domain.core.faultpoints import ENVIRONMENT, POINTS
from tests.embeddings import EmbeddingServer
from tests.system import System

POISON = "unembeddable"
ENDS = {pb.EVENT_STATE_STORED, pb.EVENT_STATE_MERGED, pb.EVENT_STATE_REJECTED, pb.EVENT_STATE_DEAD_LETTER}
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
"""What a call may end with: nobody is there, or what is to be deleted is gone already."""

OF_SERVERS = [point for point in POINTS if not point.startswith(("move", "rewrap", "erase"))]
"""Points that a server comes to in its work; the others are of moves between stores, another master key, and erasures."""

IN_BOTH = ("accept", "index", "digest", "flush", "settle", "change")
"""Points that the two pipelines come to in different ways."""

SLOW = ("dead_letter", "requeue")
"""Points that are come to only after an event has failed five times."""

THINGS = (
    "boat",
    "lamp",
    "garden",
    "violin",
    "bridge",
    "stone",
    "letter",
    "window",
    "kettle",
    "forest",
    "mirror",
    "bell",
)


def content(event: str) -> str:
    """What an event says; no two say the same."""
    number = int(event[1:])
    thing = THINGS[number % len(THINGS)]
    return f"Number {number}: the {thing} of house {number * 7919} was painted in colour {number * 31}."


class Lives:
    """One system over many lives, and one user who goes on telling it things, each with its event id, until it is heard."""

    def __init__(self, system: System, embeddings: EmbeddingServer, seed: int) -> None:
        self.system = system
        self.embeddings = embeddings
        self.random = random.Random(seed)  # noqa: S311  # repeatable, guards nothing
        self.user = f"user-{uuid.uuid4()}"
        self.said: list[str] = []
        self.poisoned = 0
        self.deleted: set[str] = set()
        self.ids: dict[str, str] = {}
        self.kills: Counter[str] = Counter()
        self._unheard: str | None = None

    def die_at(self, point: str, mode: str) -> None:
        """Lives until it is killed at a point."""
        self.system.env[ENVIRONMENT] = f"{point}:{1 if point.startswith(SLOW) else self.random.randint(1, 3)}"
        self.system.env["MEMORYOS_MEMORY__PIPELINE"] = mode
        with contextlib.suppress(RuntimeError):  # it may be reached while what was open is taken up
            self.system.start(bridge=False)
        end = time.monotonic() + 60
        with self._stubs() as (memory, queue):
            while self._alive():
                assert time.monotonic() < end, f"{point} was not reached\n{self.system.logs()}"
                try:
                    self._act(point, memory, queue)
                except grpc.RpcError as error:
                    if error.code() not in AWAY:  # type: ignore[attr-defined]
                        raise
                    time.sleep(0.02)
        assert self.system.server is not None
        assert self.system.server.returncode == -signal.SIGKILL, self.system.logs()
        self.system.kill(group=True)
        self.kills[point] += 1

    def _alive(self) -> bool:
        return self.system.server is not None and self.system.server.poll() is None

    def _act(
        self,
        point: str,
        memory: memory_service_pb2_grpc.MemoryServiceStub,
        queue: queue_service_pb2_grpc.QueueServiceStub,
    ) -> None:
        if point.startswith(SLOW):
            self._poison(point, memory, queue)
            return
        self._say(memory)
        time.sleep(0.02)  # this is about deaths, not about a long queue
        if point.startswith("change"):
            event = self.random.choice([e for e in self.said if e in self.ids])
            self.deleted.add(event)
            memory.DeleteMemory(pb.DeleteMemoryRequest(user_id=self.user, memory_id=self.ids[event]), timeout=10)

    def _poison(
        self,
        point: str,
        memory: memory_service_pb2_grpc.MemoryServiceStub,
        queue: queue_service_pb2_grpc.QueueServiceStub,
    ) -> None:
        """Has somebody else say what cannot be embedded, one at a time; gives back what has become a dead letter."""
        state = queue.GetQueue(queue_service_pb2.GetQueueRequest(), timeout=10)
        if point == "requeue.done" and state.dead_letters:
            queue.RequeueDeadLetter(queue_service_pb2.RequeueDeadLetterRequest(id=state.dead_letters[0].id), timeout=10)
        elif not state.depth:
            self.poisoned += 1
            self._add(memory, f"{self.user}-{self.poisoned}", f"e{self.poisoned}", f"Something {POISON}.")
        time.sleep(0.2)

    def _say(self, memory: memory_service_pb2_grpc.MemoryServiceStub) -> None:
        """The next event, or once more the one that got no answer."""
        event = self._unheard
        if event is None:
            event = f"e{len(self.said)}"
            self.said.append(event)
        self._unheard = event
        self.ids[event] = self._add(memory, self.user, event, content(event))
        self._unheard = None

    @staticmethod
    def _add(memory: memory_service_pb2_grpc.MemoryServiceStub, user: str, event: str, text: str) -> str:
        request = pb.AddMemoryRequest(
            user_id=user, role=types_pb2.ROLE_USER, content=text, event_id=event, session_id="s"
        )
        return str(memory.AddMemory(request, timeout=10).memory_id)

    @contextlib.contextmanager
    def _stubs(
        self,
    ) -> Iterator[tuple[memory_service_pb2_grpc.MemoryServiceStub, queue_service_pb2_grpc.QueueServiceStub]]:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.insecure_channel(self.system.grpc, options) as channel:
            yield memory_service_pb2_grpc.MemoryServiceStub(channel), queue_service_pb2_grpc.QueueServiceStub(channel)

    def check(self) -> None:
        """A last life in which everything comes to its end."""
        self.system.env.pop(ENVIRONMENT, None)
        self.embeddings.refuses.clear()
        self.system.start(bridge=False)
        with self._stubs() as (memory, queue):
            if self._unheard:
                self._say(memory)
            for event in self.deleted:  # those whose deletion got no answer
                try:
                    memory.DeleteMemory(
                        pb.DeleteMemoryRequest(user_id=self.user, memory_id=self.ids[event]), timeout=10
                    )
                except grpc.RpcError as error:
                    if error.code() != grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
                        raise
            end = time.monotonic() + 60
            while True:
                queue.RequeueDeadLetters(queue_service_pb2.RequeueDeadLettersRequest(), timeout=10)
                state = queue.GetQueue(queue_service_pb2.GetQueueRequest(), timeout=10)
                if not state.depth and not state.dead_letters:
                    break
                assert time.monotonic() < end, state
                time.sleep(0.2)
            found = list(self._session(memory, self.user))
            kept = [e for e in self.said if e not in self.deleted]
            assert [turn.event_id for turn in found] == kept
            assert [turn.content for turn in found] == [content(e) for e in kept]
            for event in self.said:
                request = pb.GetEventRequest(user_id=self.user, event_id=event)
                answer = memory.GetEvent(request, timeout=10)
                assert answer.state in ENDS, (event, answer)
                if event in self.deleted:
                    assert (answer.state, answer.reason) == (pb.EVENT_STATE_REJECTED, "deleted"), event
                else:
                    assert answer.state == pb.EVENT_STATE_STORED, (event, answer)
            for number in range(1, self.poisoned + 1):
                user, event = f"{self.user}-{number}", f"e{number}"
                self._add(memory, user, event, f"Something {POISON}.")  # perhaps it never got there
                until_stored(memory, user, event)
                assert [turn.event_id for turn in self._session(memory, user)] == [event]
            self._check_segments(kept)
            found_again = memory.RetrieveMemory(
                pb.RetrieveMemoryRequest(user_id=self.user, query="the house was painted in colour", limit=1000),
                timeout=30,
            )
            again = Counter(episode.event_id for episode in found_again.episodes)
            assert set(again.values()) == {1}
            assert set(again) <= set(kept)
            assert len(again) == min(1000, len(kept))  # a search gives no more

    def _check_segments(self, kept: list[str]) -> None:
        """No turn is in two segments, and none that was taken back is in any."""
        with grpc.insecure_channel(self.system.grpc) as channel:
            segments = segment_service_pb2_grpc.SegmentServiceStub(channel)
            pieces = list(
                segments.ExportSegments(segment_service_pb2.ExportSegmentsRequest(user_id=self.user), timeout=30)
            )
        sources = Counter(source for piece in pieces for one in piece.data.segments for source in one.source_ids)
        assert sources
        assert set(sources.values()) == {1}
        assert set(sources) <= {self.ids[event] for event in kept}

    def _session(self, memory: memory_service_pb2_grpc.MemoryServiceStub, user: str) -> Iterator[pb.SessionTurn]:
        token = ""
        while True:
            request = pb.GetSessionRequest(user_id=user, session_id="s", page_size=100, page_token=token)
            page = memory.GetSession(request, timeout=10)
            yield from page.turns
            if not (token := page.next_page_token):
                return


def until_stored(memory: memory_service_pb2_grpc.MemoryServiceStub, user: str, event: str) -> None:
    end = time.monotonic() + 30
    while memory.GetEvent(pb.GetEventRequest(user_id=user, event_id=event), timeout=10).state != pb.EVENT_STATE_STORED:
        assert time.monotonic() < end, (user, event)
        time.sleep(0.05)


@pytest.fixture
def lives(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lives]:
    with EmbeddingServer() as embeddings:
        embeddings.refuses.add(POISON)
        env = {
            **embeddings.env,
            "MEMORYOS_MEMORY__FLUSH_INTERVAL_SECONDS": "0.05",
            "MEMORYOS_MEMORY__SHORT_TERM_TURNS": "4",
        }
        system = System(tmp_path, env)
        try:
            yield Lives(system, embeddings, seed=getattr(request, "param", 1))
        finally:
            system.end()


@pytest.mark.timeout(800)
def test_kill_when_at_every_named_point_then_nothing_is_lost_or_doubled_and_each_event_ends_once(lives: Lives) -> None:
    for point in OF_SERVERS:
        for mode in ("sync", "async") if point.startswith(IN_BOTH) else ("sync",):
            lives.die_at(point, mode)
    lives.check()
    assert set(lives.kills) == set(OF_SERVERS)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_kill_when_two_hundred_times_over_all_points_and_both_pipelines_then_nothing_is_lost(lives: Lives) -> None:
    points = [point for _ in range(1 + 200 // len(OF_SERVERS)) for point in OF_SERVERS]
    lives.random.shuffle(points)
    for at, point in enumerate(points):
        lives.die_at(point, ("sync", "async")[at % 2])
    lives.check()
    assert sum(lives.kills.values()) >= 200
    assert min(lives.kills[point] for point in OF_SERVERS) >= 5
