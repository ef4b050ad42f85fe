"""Another master key: what the old one wraps is wrapped by the new one, and nothing else is touched.

Every wrapped key names the master key that opens it, so that old and new ones lie beside each other while it lasts and after it
was cut off: whoever has both master keys opens everything. New keys are wrapped by the new one from the moment the store names it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from memoryos_server.domain.core.faultpoints import reach
from memoryos_server.domain.core.faults import Invalid, Stale
from memoryos_server.stores.keyring import KeyringError, MasterKey, Wrapping, wrapping_id
from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.scope import PARTITIONS, STORE_KEYRING, Partition

log = logging.getLogger(__name__)

_PAGE = 256
_LATE_SECONDS = 1.0
"""How long a server may take that was about to write a key when the master key changed."""

_PRESENT = Script(
    "use_master_key",
    """
    -- KEYS store keyring. ARGV old id, new id, the store's secret as the new one wraps it. Sent again, it says 1 again.
    local present = redis.call('HGET', KEYS[1], 'master_key')
    if present == ARGV[2] then return 1 end
    if present ~= ARGV[1] then return 0 end
    redis.call('HSET', KEYS[1], 'master_key', ARGV[2], 'secret', ARGV[3])
    return 1
    """,
)

_REWRAP = Script(
    "rewrap_keys",
    """
    -- KEYS a partition's keyring. ARGV subject id, key as it was, as it is to be, ... A key that is destroyed stays so.
    for i = 1, #ARGV, 3 do
      if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
    end
    return 1
    """,
)

SCRIPTS = (_PRESENT, _REWRAP)


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation came to.

    Attributes:
        master_key: The id of the master key that wraps everything now.
        previous: The id of the one before; "" if this went on with a rotation that was cut off.
        rewrapped: How many keys were wrapped anew.
        left: How many could not be, because they do not open; the log names them.
    """

    master_key: str
    previous: str
    rewrapped: int
    left: int


async def rotate_master(client: Client, master: Wrapping) -> Rotated:
    """Wraps all keys of a store by another master key: that of the settings, else a new one in the key directory.

    One that was cut off goes on. It may run beside servers, if each of them has both master keys.

    Raises:
        Invalid: The master key of the settings wraps everything already.
        KeyringError: A master key is not to be had.
        Stale: Another rotation was faster.
        BackendDown: The store does not answer; run it again.
    """
    store = await client.run("HMGET", STORE_KEYRING, "master_key", "secret")
    present, secret = store[0].decode(), store[1]
    master.use(present)
    done, left = await _pass(client, master)
    if done:
        return Rotated(present, "", done, left)
    new = master.keys.new()
    if new.id == present:
        raise Invalid(
            "everything is wrapped by security.master_key already: set it to the new key, and "
            "security.previous_master_key to the one that was there",
            param="master_key",
        )
    reach("rewrap.made")
    wrapped = new.wrap("store", "store", master.unwrap("store", "store", secret))
    if not await client.script(_PRESENT, [STORE_KEYRING], [present, new.id, wrapped]):
        raise Stale("Another rotation was faster: run this one again")
    master.use(new.id)
    reach("rewrap.begun")
    done, _ = await _pass(client, master)
    await asyncio.sleep(_LATE_SECONDS)
    late, left = await _pass(client, master)
    return Rotated(new.id, present, done + late, left)


async def _pass(client: Client, master: Wrapping) -> tuple[int, int]:
    """Wraps by the present master key what others wrap: how many keys, and how many of them do not open."""
    done = left = 0
    for number in range(PARTITIONS):
        partition = Partition(number)
        before, cursor = done, None
        while cursor is None or int(cursor):
            cursor, found = await client.run("HSCAN", partition.keyring, cursor or 0, "COUNT", _PAGE)
            changes: list[Any] = []
            for subject_id, wrapped in found.items():
                if wrapping_id(wrapped) == master.id:
                    continue
                anew = _anew(master.present, master, subject_id.decode(), wrapped)
                if anew is None:
                    left += 1
                else:
                    changes += [subject_id, wrapped, anew]
            if changes:
                await client.script(_REWRAP, [partition.keyring], changes)
                done += len(changes) // 3
        if done > before:
            reach("rewrap.partition")
    return done, left


def _anew(present: MasterKey, master: Wrapping, subject_id: str, wrapped: bytes) -> bytes | None:
    try:
        return present.wrap("subject", subject_id, master.unwrap("subject", subject_id, wrapped))
    except KeyringError as error:
        log.error("the key of subject %s stays as it is: %s", subject_id, error)
        return None
