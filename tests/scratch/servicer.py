from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context, copy_context
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from scratch.v1 import scratch_service_pb2 as pb

from memoryos_server.domain.core import audit, faults
from memoryos_server.domain.core.caller import caller
from memoryos_server.domain.core.ids import uuid7
from memoryos_server.rpc.wrap import current_call


class ScratchServicer:
    """A service that behaves as its requests say, and keeps what it made in memory."""

    def __init__(self) -> None:
        self.things: dict[str, pb.Thing] = {}
        self.running = 0
        self.finished: list[str] = []
        """What ended in a `finally`, in order."""
        self.contexts: list[Context] = []
        """Those of exports and sleeps, as connections have them that are kept for later calls."""

    async def CreateThing(self, request: pb.CreateThingRequest, context: Any) -> pb.Thing:
        owner = caller().owner(request.owner, param="owner")
        thing = pb.Thing(
            id=uuid7(),
            name=request.name,
            owner=owner,
            kind=request.kind,
            tags=request.tags,
            parts=request.parts,
            main_part=request.main_part if request.HasField("main_part") else None,
            sizes=request.sizes,
            created_at=request.created_at if request.HasField("created_at") else _now(),
            config_json=request.config_json,
            from_place=request.from_place,
            live=request.live,
            blob=request.blob,
        )
        if request.HasField("weight"):
            thing.weight = request.weight
        if request.name == "taken":
            draft = audit.draft()
            assert draft is not None
            draft.taken = True
        if request.name == "idle":
            audit.nothing_changes()
        self.things[thing.id] = thing
        return thing

    async def GetThing(self, request: pb.GetThingRequest, context: Any) -> pb.Thing:
        owner = caller().owner(request.owner, param="owner")
        if request.loud:
            current_call().extra["x-scratch-loud"] = "yes"
        thing = self.things.get(request.id)
        if thing is None or thing.owner != owner:
            raise faults.NotFound(f"There is no thing {request.id}", metadata={"id": request.id})
        return thing

    async def GetSavedThings(self, request: pb.GetSavedThingsRequest, context: Any) -> pb.ThingList:
        return pb.ThingList(things=self.things.values(), total=len(self.things))

    async def ListThings(self, request: pb.ListThingsRequest, context: Any) -> pb.ThingList:
        found = [
            thing
            for thing in self.things.values()
            if request.kind in (0, thing.kind)
            and set(request.tags) <= set(thing.tags)
            and (not request.HasField("min_weight") or thing.weight >= request.min_weight)
        ]
        return pb.ThingList(things=found, total=len(found))

    async def UpdateThing(self, request: pb.UpdateThingRequest, context: Any) -> pb.Thing:
        """Applies the mask; `error` of the answer says which fields it named."""
        thing = self.things.get(request.id)
        if thing is None:
            raise faults.NotFound(f"There is no thing {request.id}", metadata={"id": request.id})
        if not request.update_mask.paths:
            raise faults.Invalid("Nothing to change", param="update_mask")
        for path in request.update_mask.paths:
            if path not in ("name", "weight"):
                raise faults.Invalid(f"{path} cannot be changed", param=path)
            if request.HasField(path):
                setattr(thing, path, getattr(request, path))
            else:
                thing.ClearField(path)
        answer = pb.Thing()
        answer.CopyFrom(thing)
        answer.error = ",".join(request.update_mask.paths)
        return answer

    async def DeleteThings(self, request: pb.DeleteThingsRequest, context: Any) -> pb.DeleteThingsResponse:
        gone = [key for key, thing in self.things.items() if thing.kind == request.kind]
        for key in gone:
            del self.things[key]
        return pb.DeleteThingsResponse(deleted=len(gone))

    async def StartThing(self, request: pb.StartThingRequest, context: Any) -> pb.Thing:
        return pb.Thing(id=request.id, live=request.options.fast)

    async def ExportThings(
        self, request: pb.ExportThingsRequest, context: Any
    ) -> AsyncIterator[pb.ExportThingsResponse]:
        """One thing a message; the first says how many.

        A `note` of `slow` waits 50 ms before each, `deny` refuses, `text` makes one text of them, `value` one JSON
        value.
        """
        self.running += 1
        self.contexts.append(copy_context())
        try:
            if request.note == "text":
                yield pb.ExportThingsResponse(format="text", content="")
                for number in range(1, request.count + 1):
                    yield pb.ExportThingsResponse(content=f'"thing" {number}\n\u2603')
                return
            if request.note == "value":
                yield pb.ExportThingsResponse(format="value", value_json='{"things":[')
                for number in range(1, request.count + 1):
                    yield pb.ExportThingsResponse(value_json=f"{',' if number > 1 else ''}")
                    yield pb.ExportThingsResponse(value_json=f"{number}")
                yield pb.ExportThingsResponse(value_json='],"name":"\u2603"')
                yield pb.ExportThingsResponse(value_json="}")
                return
            if request.note == "deny":
                raise faults.Forbidden("Not this one")
            if not request.count:
                yield pb.ExportThingsResponse(format="json", data=pb.ExportData(owner="nobody"))
            for number in range(1, request.count + 1):
                if request.note == "slow":
                    await asyncio.sleep(0.05)
                if number == request.fail_at:
                    raise faults.Upstream("The export broke off")
                thing = pb.Thing(id=f"thing-{number}", name=request.note)
                if number == 1:
                    data = pb.ExportData(owner="nobody", thing_count=request.count, things=[thing])
                    yield pb.ExportThingsResponse(format="json", data=data)
                else:
                    yield pb.ExportThingsResponse(data=pb.ExportData(things=[thing]))
        finally:
            self.running -= 1
            await asyncio.sleep(0.02)  # a clean-up that takes a moment, as closing a connection does
            self.finished.append("ExportThings")

    async def FailThing(self, request: pb.FailThingRequest, context: Any) -> pb.Thing:
        """Raises the fault named; `UpstreamRejected:404` gives a provider's status, `Invalid:reason` another reason."""
        name, _, extra = request.fault.partition(":")
        if not name:
            raise RuntimeError("a secret that nobody may see")
        retry_after = request.retry_after_seconds or None
        if name == "UpstreamRejected":
            raise faults.UpstreamRejected(
                "The provider says no",
                status=int(extra or 400),
                code="their_code",
                param="temperature",
                retry_after=retry_after,
            )
        param = "fault" if name == "Invalid" else None
        details = "More about it" if name in ("Invalid", "Upstream") else None
        raise getattr(faults, name)(
            f"It failed with {name}", reason=extra or None, param=param, details=details, retry_after=retry_after
        )

    async def SleepThing(self, request: pb.SleepThingRequest, context: Any) -> pb.Thing:
        self.running += 1
        self.contexts.append(copy_context())
        try:
            await asyncio.sleep(request.seconds)
            return pb.Thing(name="awake")
        finally:
            self.running -= 1
            self.finished.append("SleepThing")

    async def ProbeThing(self, request: pb.ProbeThingRequest, context: Any) -> pb.ProbeThingResponse:
        return pb.ProbeThingResponse(state=request.state or "fresh", at=_now())

    async def AdminThing(self, request: pb.AdminThingRequest, context: Any) -> pb.Thing:
        return pb.Thing(name=caller().key_id, owner=caller().tenant_id)

    async def StoreThing(self, request: pb.StoreThingRequest, context: Any) -> pb.Thing:
        return pb.Thing(name=caller().key_id, owner=caller().tenant_id)


def _now() -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC))
    return stamp
