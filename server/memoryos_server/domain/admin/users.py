"""The users of a tenant: who has keys, and of whom something is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from memoryos_server.domain.admin.keys import Keeper
from memoryos_server.domain.core.caller import ANY_TENANT
from memoryos_server.domain.core.faults import Invalid
from memoryos_server.domain.core.paging import place_of, size_of, token_of
from memoryos_server.domain.ports import ApiKey, KeyStore, People

_WITH_KEYS, _OTHERS = "keys", "others"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody of a tenant.

    Attributes:
        user_id: The user's id.
        key_count: The number of keys, expired ones included.
        has_memory: Something was ever kept, and not erased since.
        last_used_at: When one of the keys was last used, or None.
    """

    user_id: str
    key_count: int
    has_memory: bool
    last_used_at: datetime | None = None


class UserService:
    """Lists users: first those who have keys, by id, then the others as the store has them."""

    def __init__(self, keys: KeyStore, people: People) -> None:
        self._keys = keys
        self._people = people

    async def page(
        self, by: Keeper, *, tenant_id: str = "", page_size: int | None = None, page_token: str = ""
    ) -> tuple[list[User], str]:
        """A page of the users of a tenant, and the token of the next.

        A page may be short, even empty, although there are more: what a call looks at in the store is bounded.

        Raises:
            Invalid: The tenant, the page size or the token is malformed.
            Forbidden: The tenant is not his.
            BackendDown: The store does not answer.
        """
        tenant, size = by.tenant(tenant_id), size_of(page_size)
        if tenant == ANY_TENANT:
            raise Invalid("tenant_id must name one tenant", param="tenant_id")
        part, whose, after = place_of(page_token, 3) or [_WITH_KEYS, tenant, ""]
        if part not in (_WITH_KEYS, _OTHERS) or whose != tenant:
            raise Invalid("page_token is none that was given out", param="page_token")
        keys: dict[str, list[ApiKey]] = {}
        for key in await self._keys.list():
            if key.tenant_id == tenant:
                keys.setdefault(key.user_id, []).append(key)
        found: list[User] = []
        if part == _WITH_KEYS:
            names = sorted(name for name in keys if name > after)
            found = [await self._with_keys(tenant, name, keys[name]) for name in names[:size]]
            if len(names) >= size:
                return found, token_of([_WITH_KEYS, tenant, names[size - 1]])
            after = ""
        others, after = await self._people.users(tenant, after, size - len(found))
        found += [User(one.user_id, 0, True) for one in others if one.user_id not in keys]
        return found, token_of([_OTHERS, tenant, after]) if after else ""

    async def _with_keys(self, tenant_id: str, user_id: str, keys: list[ApiKey]) -> User:
        used = [key.last_used_at for key in keys if key.last_used_at]
        known = await self._people.find(tenant_id, user_id)
        return User(user_id, len(keys), known is not None, max(used, default=None))
