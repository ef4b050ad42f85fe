"""What the ledger remembers of an event: one compact mark, by which a repeat is known and which says how it ended.

A mark lies in the hash of the day on which it was made, under the keyed hash of its event id:

    fingerprint (16) | nonce of the call (8) | entry: milliseconds (6), number (4) | seq (4) | letter (1)

and, once it has come to another state than accepted,

    changed at, milliseconds (6) | attempts (1) | length of related (1) | related (0 or 16) | reason

The entry is the stream id of the open entry, or of the dead letter. All numbers are big-endian. A mark of a turn that
was stored takes 47 bytes, so that small hashes of marks keep their compact form. Measured in the store's memory, a mark
costs 67..86 bytes, and an event that is open some 300..380, of which its sealed turn is most.
"""

from __future__ import annotations

import struct

from memoryos_server.domain.core.time import from_unix
from memoryos_server.domain.ports import EventState

DAY = 86_400

LIFE = 3 * DAY
"""Seconds that a day's marks last after the last of them was made."""

_LETTERS = {"accepted": "a", "stored": "s", "merged": "m", "rejected": "r", "dead_letter": "d"}
_STATES = {letter.encode(): state for state, letter in _LETTERS.items()}
_HEAD = struct.Struct(">16s8s6sII1s")
_TAIL = struct.Struct(">6sBB")

LUA = """
    local function now()
      local time = redis.call('TIME')
      return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
    end
    local function place(id)
      local ms, n = string.match(id, '(%d+)-(%d+)')
      return struct.pack('>I6I4', tonumber(ms), tonumber(n))
    end
    local function entry_of(known)
      local ms, n = struct.unpack('>I6I4', known, 25)
      return string.format('%.0f-%.0f', ms, n)
    end
    local function letter_of(known) return string.sub(known, 39, 39) end
    local function find_mark(mark, first, last)
      for k = first, last do
        local known = redis.call('HGET', KEYS[k], mark)
        if known then return known, KEYS[k] end
      end
    end
    local function came_after(removed, id)
      -- Whether what was removed at a place was removed after an entry came; '' is a removal of before places were kept.
      if removed == '' then return true end
      local ms, n = struct.unpack('>I6I4', removed)
      local entry_ms, entry_n = string.match(id, '(%d+)-(%d+)')
      entry_ms, entry_n = tonumber(entry_ms), tonumber(entry_n)
      return ms > entry_ms or (ms == entry_ms and n > entry_n)
    end
    local function set_state(key, mark, known, letter, entry, attempts, reason, related)
      local tail = ''
      if letter ~= 'a' then
        tail = struct.pack('>I6I1I1', now(), math.min(attempts, 255), #related) .. related .. reason
      end
      redis.call('HSET', key, mark, string.sub(known, 1, 24) .. place(entry) .. string.sub(known, 35, 38) .. letter .. tail)
    end
"""
"""What scripts that know marks begin with."""


def letter(state: str) -> str:
    """How a state is written in a mark."""
    return _LETTERS[state]


def state_of(mark: bytes, event_id: str, memory_id: str) -> tuple[EventState, str]:
    """What a mark says, and the stream id of its entry."""
    _, _, millis, number, _, mark_letter = _HEAD.unpack_from(mark)
    accepted_at = int.from_bytes(millis)
    entry = f"{accepted_at}-{number}"
    state = _STATES[mark_letter]
    if len(mark) == _HEAD.size:
        return EventState(event_id, memory_id, state, changed_at=from_unix(accepted_at / 1000)), entry
    changed, attempts, related_length = _TAIL.unpack_from(mark, _HEAD.size)
    start = _HEAD.size + _TAIL.size
    related, reason = mark[start : start + related_length], mark[start + related_length :]
    return (
        EventState(
            event_id,
            memory_id,
            state,
            reason.decode(errors="replace"),
            text_id(related) if related else "",
            from_unix(int.from_bytes(changed) / 1000),
            attempts,
        ),
        entry,
    )


def raw_id(memory_id: str) -> bytes:
    """A memory id as 16 bytes."""
    return bytes.fromhex(memory_id.replace("-", ""))


def text_id(raw: bytes) -> str:
    """The memory id of 16 bytes."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def entry_id(partition: int, stream_id: bytes) -> str:
    """The name of a queue entry: `partition/stream id`."""
    return f"{partition}/{stream_id.decode()}"


def stream_id(entry: str) -> str:
    """The stream id of a queue entry's name."""
    return entry.partition("/")[2]


def days_kept(now: float) -> range:
    """The days of which there may still be marks, newest first: also tomorrow's, as replicas' clocks differ."""
    today = int(now // DAY)
    return range(today + 1, today - 5, -1)


def day_of(stream_id: str) -> int:
    """The day, by the store's clock, on which something came into a stream."""
    return int(stream_id.partition("-")[0]) // (DAY * 1000)
