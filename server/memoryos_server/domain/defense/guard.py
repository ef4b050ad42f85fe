"""The defense of one server, in memory: who is stopped, and who has done too much without a valid key.

It never waits for a store. What it knows of addresses it is told by whoever looks at calls; what it decides, bans, it
tells to whoever shares them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from memoryos_server.domain.core.faults import TooMany
from memoryos_server.domain.defense.bans import Bans
from memoryos_server.domain.defense.gcra import Gcra, Rate, Standing
from memoryos_server.domain.defense.places import Network, Networks, address_of, network_of, place_of
from memoryos_server.domain.defense.signals import Signals
from memoryos_server.domain.ports.defense import Ban, Change, Counts, Listed

AUTH_FAILURES = "auth_failures"
FLOOD = "flood"
SCRAPING = "scraping"

_MOST_KNOWN = 50_000


@dataclass(frozen=True, slots=True)
class Rules:
    """What is too much.

    Attributes:
        active: Whether anybody is limited or banned at all; else calls are only counted.
        address: The limit of an address's calls without a valid key.
        key: The limit of a key's calls.
        suspicions: The limit of a key's calls that look like an attempt at injection.
        auth_failures: Unknown keys of a place within the window that ban it; 0: none do.
        floods: Its calls beyond the limit of addresses.
        unknown_routes: Its different routes or methods that do not exist.
        window: Seconds.
        ban_seconds: How long the first, second... ban is; the one after the last is permanent.
        forget: After how many seconds an ended ban no longer counts for the next.
    """

    active: bool
    address: Rate
    key: Rate
    suspicions: Rate
    auth_failures: int
    floods: int
    unknown_routes: int
    window: float
    ban_seconds: tuple[float, ...]
    forget: float


@dataclass(frozen=True, slots=True)
class _Known:
    """What holds of an address.

    Attributes:
        place: Its place; "" if it has none.
        spared: It is never banned and has no limit as an address.
        listed: It is on the whitelist, and so has no limit as a key's either.
    """

    place: str
    spared: bool
    listed: bool


class LimitReached(TooMany):
    """A limit of the defense is reached (429).

    Attributes:
        standing: How who is refused stands with it.
    """

    def __init__(self, text: str, limit: str, standing: Standing) -> None:
        """Keeps how it stands; `limit` is `address`, `key` or `suspicions`."""
        metadata = {"limit": limit, "burst": str(standing.limit)}
        super().__init__(text, retry_after=standing.retry_after, metadata=metadata)
        self.standing = standing


class Guard:
    """Decides about calls.

    Args:
        rules: What is too much.
        trusted: Networks that are never banned, besides loopback and the whitelist.
        imposed: Told of every ban as it is imposed.
        limited: Told a key's id when the key is refused for its rate: `key`, or `suspicions`.
        clock: Unix seconds.
        ticks: Nanoseconds, monotonic.
    """

    def __init__(
        self,
        rules: Rules,
        trusted: Iterable[Network] = (),
        *,
        imposed: Callable[[Ban], None] = lambda ban: None,
        limited: Callable[[str, str], None] = lambda key_id, limit: None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.rules = rules
        self._trusted = Networks(trusted)
        self._imposed = imposed
        self._limited = limited
        self._clock = clock
        self._bans = Bans(rules.ban_seconds, rules.forget)
        self._listed: dict[str, Listed] = {}
        self._whitelist = Networks()
        limits = {AUTH_FAILURES: rules.auth_failures, FLOOD: rules.floods, SCRAPING: rules.unknown_routes}
        self._signals = Signals(limits, rules.window)
        self._addresses = Gcra(rules.address, clock=ticks) if rules.active and rules.address else None
        self._keys = Gcra(rules.key, clock=ticks) if rules.active and rules.key else None
        self._suspicions = Gcra(rules.suspicions, clock=ticks) if rules.active and rules.suspicions else None
        self._known: dict[str, _Known] = {}
        self._requests = self._blocked = 0

    # --- calls

    def enter(self, address: str) -> Ban | None:
        """Counts a call; the ban that stops it, or None."""
        self._requests += 1
        ban = self.banned(address)
        if ban is not None:
            self._blocked += 1
        return ban

    def pass_by(self) -> None:
        """Counts a call that nobody stops."""
        self._requests += 1

    def banned(self, address: str) -> Ban | None:
        """The ban of an address that holds, or None."""
        known = self._known.get(address) or self._learn(address)
        return None if known.spared else self._bans.get(known.place, self._clock())

    def check_address(self, address: str, holds_key: Callable[[], bool] = lambda: False) -> None:
        """Lets a call go on whose address has room; counts nothing against it.

        Args:
            address: Whose call.
            holds_key: Whether its key is known to be valid: such a call goes on all the same. Asked only if there is no room.

        Raises:
            LimitReached: It has made too many calls without a valid key. It is told, and after many such calls banned.
        """
        if self._addresses is None:
            return
        known = self._known.get(address) or self._learn(address)
        if known.spared or self._addresses.has_room(known.place):
            return
        standing = self._addresses.look(known.place)
        if standing.allowed or holds_key():
            return
        self._blocked += 1
        self._signal(FLOOD, known.place)
        raise LimitReached("This address makes too many calls without a valid key", "address", standing)

    def refused(self, address: str, *, wrong_key: bool) -> None:
        """Counts a call that had no valid key.

        Args:
            address: Whose call.
            wrong_key: It had a key, one that does not exist; else none, or one that has ended.
        """
        known = self._known.get(address) or self._learn(address)
        if known.spared or not self.rules.active:
            return
        if self._addresses is not None:
            self._addresses.take(known.place)
        if wrong_key:
            self._signal(AUTH_FAILURES, known.place)

    def unknown(self, address: str, what: bytes) -> None:
        """Counts a call without a valid key of a route or method that does not exist.

        Args:
            address: Whose call.
            what: A digest of the route or method.
        """
        known = self._known.get(address) or self._learn(address)
        if known.spared or not self.rules.active:
            return
        if self._addresses is not None:
            self._addresses.take(known.place)
        self._signal(SCRAPING, known.place, what)

    def check_key(self, key_id: str, address: str) -> Standing | None:
        """Counts a call of a valid key; how the key stands, None without a limit.

        Raises:
            LimitReached: The key makes too many calls. No address is held to account for that.
        """
        return self._take(self._keys, "key", "This key makes too many calls", key_id, address)

    def suspected(self, key_id: str, address: str) -> None:
        """Counts a call of a valid key that looks like an attempt at injection; only such calls are ever refused for it.

        Raises:
            LimitReached: The key makes too many such calls.
        """
        self._take(self._suspicions, "suspicions", "This key sends too much that looks like injection", key_id, address)

    def _take(self, limit: Gcra | None, name: str, text: str, key_id: str, address: str) -> Standing | None:
        if limit is None or (self._known.get(address) or self._learn(address)).listed:
            return None
        standing = limit.take(key_id)
        if not standing.allowed:
            self._blocked += 1
            self._limited(key_id, name)
            raise LimitReached(text, name, standing)
        return standing

    def _signal(self, kind: str, place: str, about: bytes | None = None) -> None:
        now = self._clock()
        if self._signals.note(kind, place, now, about) and (ban := self._bans.impose(place, kind, now)) is not None:
            self._imposed(ban)

    def _learn(self, address: str) -> _Known:
        try:
            found = address_of(address)
        except ValueError:
            known = _Known("", spared=True, listed=False)  # a unix socket: whoever may open it is of this machine
        else:
            listed = found in self._whitelist
            spared = listed or found.is_loopback or found in self._trusted
            known = _Known(place_of(found), spared or not self.rules.active, listed)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[address] = known
        return known

    # --- what is shared

    def apply(self, change: Change) -> None:
        """Takes a change that was made here or elsewhere. What lifts a ban also forgets what led to it."""
        value = change.value
        if isinstance(value, Ban):
            self._bans.put(value)
        elif isinstance(value, Listed):
            self._list({**self._listed, value.network: value})
        elif change.kind == "ban":
            self._bans.remove(change.name)
            self._signals.forget(change.name)
            if self._addresses is not None:
                self._addresses.forget(change.name)
        else:
            self._list({name: listed for name, listed in self._listed.items() if name != change.name})

    def replace(self, bans: Iterable[Ban], listed: Iterable[Listed]) -> None:
        """Takes these bans and this whitelist instead of what there was."""
        self._bans.replace(bans)
        self._list({one.network: one for one in listed})

    def _list(self, listed: dict[str, Listed]) -> None:
        self._listed = listed
        self._whitelist = Networks(network_of(name) for name in listed)
        self._known.clear()

    # --- what is shown

    def bans(self) -> list[Ban]:
        """The bans that hold, newest first."""
        return sorted(self._bans.holding(self._clock()), key=lambda ban: (-ban.banned_at, ban.place))

    def banned_in(self, network: Network) -> list[str]:
        """The places within a network of which a ban is kept, ended ones included."""
        inside = Networks([network])
        return [place for place in self._bans.known() if network_of(place).network_address in inside]

    def whitelist(self) -> list[Listed]:
        """The whitelist, newest first."""
        return sorted(self._listed.values(), key=lambda one: (-one.added_at, one.network))

    def forgotten(self) -> list[str]:
        """The places whose ended bans no longer count."""
        return self._bans.forgotten(self._clock())

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self._clock()

    @property
    def waiting(self) -> Counts:
        """What was counted and not taken away yet."""
        return Counts(self._requests, self._blocked)

    def take_counts(self) -> Counts:
        """Takes away what was counted."""
        counts, self._requests, self._blocked = self.waiting, 0, 0
        return counts
