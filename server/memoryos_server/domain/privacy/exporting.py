"""A person's data as one JSON document, in pieces of bounded size, with a manifest that tells whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from memoryos_server.domain.ports import Subject
from memoryos_server.domain.ports.privacy import UserData, Whose

PIECE_CHARACTERS = 256 * 1024


def text_of(value: Any) -> str:
    """A value as JSON text of one form: keys sorted, no blanks, nothing escaped that need not be."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


async def document(
    head: dict[str, Any],
    data: Sequence[UserData],
    whose: Whose,
    subject: Subject | None,
    check: Callable[[], None] = lambda: None,
) -> AsyncIterator[str]:
    """The document in pieces: the head's members, a list for each category, and `manifest`.

    The manifest has the number of items of each category, and the SHA-256 of the lines `<category> <item>`, each with a
    newline behind it, in the order in which they stand, each item as `text_of` gives it. `check` is called before the end is
    given, which is not if it raises.

    Raises:
        Stale: The data was erased meanwhile; the document has no end then.
        BackendDown: A store does not answer; as above.
        As `check`.
    """
    digest = hashlib.sha256()
    counts: dict[str, int] = {}
    held = [text_of(head)[:-1]]
    size = 0
    for one in data:
        held.append(f",{json.dumps(one.name)}:[")
        counts[one.name] = 0
        async with aclosing(one.export(whose, subject)) as items:  # type: ignore[type-var]  # they are generators
            async for item in items:
                text = text_of(item)
                digest.update(f"{one.name} {text}\n".encode())
                held += ["," if counts[one.name] else "", text]
                counts[one.name] += 1
                size += len(text)
                if size >= PIECE_CHARACTERS:
                    yield "".join(held)
                    held, size = [], 0
        held.append("]")
    check()
    manifest = {"counts": counts, "checksum": f"sha256:{digest.hexdigest()}"}
    # Not as `text_of` gives it: the categories are named in the order in which the checksum has them.
    yield "".join(held) + f',"manifest":{json.dumps(manifest, separators=(",", ":"))}}}'
