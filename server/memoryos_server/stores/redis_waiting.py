"""Whose open entries are: counted in the store, so that no content travels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from memoryos_server.stores.redis_client import Client, Script
from memoryos_server.stores.redis_subjects import RedisSubjects
from memoryos_server.stores.scope import PARTITIONS, Partition, is_subject_id

_PIECE = 500
"""Entries counted at once: others wait for it, some milliseconds."""

_COUNT = Script(
    "count_waiting",
    """
    -- KEYS queue. ARGV from where, how many. Gives where it ended, or '' at the end, then subject ids and numbers.
    local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
    local counts, order = {}, {}
    for _, entry in ipairs(page) do
      local fields = entry[2]
      for i = 1, #fields, 2 do
        if fields[i] == 's' then
          local subject = fields[i + 1]
          if not counts[subject] then
            counts[subject] = 0
            order[#order + 1] = subject
          end
          counts[subject] = counts[subject] + 1
          break
        end
      end
    end
    local answer = { #page == tonumber(ARGV[2]) and page[#page][1] or '' }
    for _, subject in ipairs(order) do
      answer[#answer + 1] = subject
      answer[#answer + 1] = counts[subject]
    end
    return answer
    """,
)

SCRIPTS = (_COUNT,)


class Waiting:
    """Counts open entries by tenant.

    Args:
        client: The connection.
        subjects: Who is known.
    """

    def __init__(self, client: Client, subjects: RedisSubjects) -> None:
        self._counting = client
        self._known = subjects

    async def backlog(self) -> Mapping[int, int]:
        """Partition -> number of its open entries, where there are any."""
        lengths = await self._counting.lengths([Partition(number).queue for number in range(PARTITIONS)])
        return {number: length for number, length in enumerate(lengths) if length}

    async def open_by_tenant(self) -> Mapping[str, int]:
        """Tenant -> number of its open entries; those of subjects that are no more are left out."""
        counts: Counter[str] = Counter()
        for number in await self.backlog():
            start = "-"
            while start:
                end, *found = await self._counting.script(_COUNT, [Partition(number).queue], [start, _PIECE])
                for raw, count in zip(found[::2], found[1::2], strict=True):
                    subject_id = raw.decode(errors="replace")
                    if is_subject_id(subject_id) and (subject := await self._known.by_id(subject_id)):
                        counts[subject.tenant_id] += count
                start = f"({end.decode()}" if end else ""
        return counts
