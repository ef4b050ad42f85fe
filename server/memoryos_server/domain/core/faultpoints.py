"""Places at which a test kills the server, or a move between stores, to see that nothing is lost or doubled there.

A point costs a comparison. It does something only if the process was started with `MEMORYOS_FAULT_POINT=<name>[:n]`: then
the n-th pass ends it with SIGKILL, which no handler, buffer or `finally` survives.
"""

from __future__ import annotations

import os
import signal

ENVIRONMENT = "MEMORYOS_FAULT_POINT"
"""The environment variable that arms a point. It is no setting, and no help shows it."""

POINTS = {
    "accept.before": "nothing is written; the client has no answer and sends the event again",
    "accept.after": "the turn is durable and its entry open; the client sends it again and is told it is a duplicate",
    "index.embedded": "the vectors are lost; they are made again from the open entry",
    "index.inserted": "the index write may be lost; it is repeated under the same id",
    "digest.done": "facts may be written or not; digesting the turn again gives the same ids",
    "flush.before": "what was not durable on the searchable side is written again from open entries",
    "flush.after": "everything is durable, no entry is closed; the work is repeated and changes nothing",
    "settle.before": "as after the flush",
    "settle.after": "the events have their end states; only what followed in memory is lost",
    "change.submitted": "the change is durable and not applied; it is applied at the next start",
    "change.applied": "the change may be applied or not; it is applied again under the same ids and versions",
    "consolidate.written": "segments may be written or not; the fresh turns are still listed and give the same ids",
    "consolidate.flushed": "segments are durable, their turns still listed as fresh; the same segments are written again",
    "consolidate.closed": "nothing is lost; the turns are off the fresh list",
    "dead_letter.moved": "the entry is a dead letter; the next entries of its subject go on after the restart",
    "requeue.done": "the dead letter is an open entry again; the operator has no answer",
    "audit.taken": "nothing of it is chained; the events are in the outbox, and are taken again",
    "audit.chained": "the events are in the chain and still in the outbox; they are taken out of it, not chained again",
    "rewrap.made": "there is a new master key and nothing is wrapped by it; the rotation begins anew with another",
    "rewrap.begun": "new keys are wrapped by the new master key, old ones by the old; the same rotation goes on",
    "rewrap.partition": "as before, with fewer old ones",
    "erase.intent": "it is recorded that an erasure was asked for; nothing is erased, and it is asked for again",
    "erase.begun": "the data's key is destroyed and the erasure recorded; the next start, or another server, completes it",
    "erase.removed": "everything is removed, nothing says so; it is removed again, which finds nothing",
    "erase.verified": "the certificate says that all is gone; the next start records it, then files are rewritten",
    "erase.told": "the audit says that all is gone, the certificate not that it does; it is recorded again, which is seen",
    "erase.rewritten": "files are rewritten, the certificate does not say so; they are rewritten again",
    "move.points": "points are copied and the cursor says how far; the same move goes on from there",
    "move.keys": "a group of keys is copied and noted; the same move goes on with the next",
}
"""Name -> what a death at this point loses or repeats."""


class _Armed:
    """The armed point."""

    name = ""
    left = 0


def arm(text: str) -> None:
    """Arms a point: `name`, or `name:n` for its n-th pass. An empty text disarms.

    Raises:
        ValueError: There is no such point.
    """
    name, _, count = text.partition(":")
    if name and name not in POINTS:
        raise ValueError(f"{ENVIRONMENT}: there is no fault point {name!r}; there are {', '.join(POINTS)}")
    _Armed.name, _Armed.left = name, int(count or 1)


def reach(name: str) -> None:
    """Ends the process with SIGKILL if this point is armed and this is the pass it is armed for."""
    if name != _Armed.name:
        return
    _Armed.left -= 1
    if _Armed.left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
