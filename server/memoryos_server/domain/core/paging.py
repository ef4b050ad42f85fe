"""Pages: how large they are, and the tokens that lead from one to the next."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

from memoryos_server.domain.core.faults import Invalid

PAGE = 100
"""The largest page of a list, and the default of most."""


def size_of(page_size: int | None) -> int:
    """The size of a page: 1..100, 100 if none is said.

    Raises:
        Invalid: It is less than 1.
    """
    if page_size is not None and page_size < 1:
        raise Invalid("page_size must be at least 1", param="page_size")
    return min(page_size or PAGE, PAGE)


def token_of(place: Sequence[str]) -> str:
    """The token of the page behind a place."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def place_of(token: str, parts: int) -> list[str] | None:
    """The place that a token stands for; None for "", the first page.

    Args:
        token: What a client sent.
        parts: How many texts a place is.

    Raises:
        Invalid: It was never given out.
    """
    if not token:
        return None
    try:
        place = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        place = None
    if not isinstance(place, list) or len(place) != parts or not all(isinstance(part, str) for part in place):
        raise Invalid("page_token is none that was given out", param="page_token")
    return place
