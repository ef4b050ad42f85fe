"""Times are aware, UTC, and exact to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)


def from_unix(seconds: float) -> datetime:
    """The UTC time of Unix seconds."""
    return datetime.fromtimestamp(seconds, UTC)
