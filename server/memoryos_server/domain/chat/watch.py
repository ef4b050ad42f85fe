"""Whose memory work under way belongs to, so that what began before it was forgotten leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet


@dataclass(slots=True, weakref_slot=True, eq=False)
class Watch:
    """Work for a user.

    Attributes:
        tenant_id: The tenant.
        user_id: Whose memory it is.
        over: The user was forgotten since it began.
    """

    tenant_id: str
    user_id: str
    over: bool = False


class Watches:
    """All work under way; what nobody holds any more is watched no more."""

    def __init__(self) -> None:
        self._open: WeakSet[Watch] = WeakSet()

    def begin(self, tenant_id: str, user_id: str) -> Watch:
        """Watches work that begins."""
        watch = Watch(tenant_id, user_id)
        self._open.add(watch)
        return watch

    def forget_if(self, whose: Callable[[str, str], bool]) -> None:
        """Marks the work for every tenant and user for whom `whose` is true."""
        for watch in list(self._open):
            if not watch.over and whose(watch.tenant_id, watch.user_id):
                watch.over = True
