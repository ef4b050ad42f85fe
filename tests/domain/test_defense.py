"""The defense in memory: addresses, limits, signals, bans."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.core.faults import BackendDown, Invalid
from memoryos_server.domain.defense.bans import Bans
from memoryos_server.domain.defense.gcra import Gcra, Rate
from memoryos_server.domain.defense.guard import Guard, LimitReached, Rules
from memoryos_server.domain.defense.places import (
    Networks,
    address_of,
    network_of,
    place_named,
    place_of,
    written,
)
from memoryos_server.domain.defense.records import Records
from memoryos_server.domain.defense.sharing import Defense
from memoryos_server.domain.defense.signals import Signals
from memoryos_server.domain.ports.defense import PERMANENT, Ban, Change, Counts, Listed

RULES = Rules(
    active=True,
    address=Rate(1, 10),
    key=Rate(1, 3),
    suspicions=Rate(1, 2),
    auth_failures=3,
    floods=4,
    unknown_routes=3,
    window=60,
    ban_seconds=(10, 100),
    forget=1000,
)
HERE = "198.51.100.7"


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def ticks(self) -> int:
        return int(self.seconds * 1_000_000_000)


class Watched(Guard):
    """A guard with a clock of its own, and what it told."""

    def __init__(self, rules: Rules = RULES, trusted: tuple[str, ...] = ()) -> None:
        self.clock = Clock()
        self.imposed: list[Ban] = []
        self.limited: list[tuple[str, str]] = []
        super().__init__(
            rules,
            [network_of(text) for text in trusted],
            imposed=self.imposed.append,
            limited=lambda key_id, limit: self.limited.append((key_id, limit)),
            clock=self.clock,
            ticks=self.clock.ticks,
        )

    def fail(self, address: str = HERE, times: int = RULES.auth_failures) -> None:
        for _ in range(times):
            self.refused(address, wrong_key=True)


# --- addresses


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::FFFF:cb00:7109", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:0001:0002::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_place_when_an_address_has_another_form_then_it_is_the_same_place(text: str, place: str) -> None:
    assert place_of(address_of(text)) == place
    guard = Watched()
    guard.fail(text)
    assert [ban.place for ban in guard.imposed] == [place]
    assert guard.enter(text) is not None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("192.168.1.100", "192.168.1.100"),
        ("192.168.1.100/32", "192.168.1.100"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("2001:DB8::/32", "2001:db8::/32"),
        (" ::1 ", "::1"),
    ],
)
def test_network_when_written_then_it_has_one_form(text: str, name: str) -> None:
    assert written(network_of(text)) == name


@pytest.mark.parametrize(
    "text", ["", "nonsense", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "0.0.0.0/0", "::/0", "1/2/3"]
)
def test_network_when_it_is_none_or_everything_then_invalid_and_names_the_field(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        network_of(text)
    assert caught.value.param == "ip"


def test_place_named_when_it_is_a_place_of_the_list_then_the_same_and_a_wider_network_is_invalid() -> None:
    assert place_named("2001:db8:1:2::/64") == place_named("2001:db8:1:2::5") == "2001:db8:1:2::/64"
    with pytest.raises(Invalid):
        place_named("10.0.0.0/8")


@given(st.ip_addresses(), st.integers(1, 128))
def test_networks_when_asked_then_as_the_standard_library_says(address: object, bits: int) -> None:
    from ipaddress import IPv4Address, IPv6Address, ip_network

    assert isinstance(address, (IPv4Address, IPv6Address))
    network = ip_network((address, min(bits, address.max_prefixlen)), strict=False)
    for other in (address, type(address)(0), type(address)(2**address.max_prefixlen - 1)):
        assert (other in Networks([network])) == (other in network)


# --- limits


@given(
    st.integers(1, 50),
    st.floats(0.1, 1000, allow_nan=False),
    st.lists(st.integers(0, 3_000_000_000), min_size=1, max_size=200),
)
def test_gcra_when_calls_come_in_any_rhythm_then_within_the_burst_and_the_rate(
    burst: int, per_second: float, gaps: list[int]
) -> None:
    now = [10**12]
    gcra = Gcra(Rate(per_second, burst), clock=lambda: now[0])
    interval = max(1, round(1_000_000_000 / per_second))
    let_in: list[int] = []
    for gap in gaps:
        now[0] += gap
        before = gcra.look("a")
        standing = gcra.take("a")
        assert standing.allowed == before.allowed
        assert 0 <= standing.remaining <= burst
        if standing.allowed:
            let_in.append(now[0])
            assert standing.retry_after == 0
        else:
            assert standing.retry_after > 0
            # When that time is over one more is let in, and just before it none is.
            wait, here = round(standing.retry_after * 1_000_000_000), now[0]
            now[0] = here + wait - 2
            assert wait < 3 or not gcra.look("a").allowed
            now[0] = here + wait + 1
            assert gcra.look("a").allowed
            now[0] = here
    # Never more than the burst and what the rate gives, over any stretch.
    for first, start in enumerate(let_in):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= burst + (let_in[last] - start) // interval


def test_gcra_when_a_burst_is_used_then_exactly_so_many_and_names_do_not_touch_each_other() -> None:
    gcra = Gcra(Rate(2, 5), clock=lambda: 0, most=2)
    standings = [gcra.take("a") for _ in range(7)]
    assert [each.allowed for each in standings] == [True] * 5 + [False] * 2
    assert [each.remaining for each in standings] == [4, 3, 2, 1, 0, 0, 0]
    assert (standings[-1].retry_after, standings[-1].reset) == (0.5, 2.5)
    assert gcra.take("b").remaining == 4
    gcra.forget("a")
    assert gcra.take("a").allowed
    gcra.take("c")
    assert len(gcra) == 2


# --- signals and bans


def test_signals_when_the_window_is_over_then_they_begin_anew_and_places_are_bounded() -> None:
    signals = Signals({"x": 3}, 60, most=2)
    assert [signals.note("x", "a", at) for at in (0, 59, 61, 62, 63)] == [False, False, False, False, True]
    for place in ("b", "b", "c", "d"):
        signals.note("x", place, 100)
    assert not signals.note("x", "b", 100)  # forgotten: c and d came later


def test_signals_when_they_are_about_the_same_then_count_once() -> None:
    signals = Signals({"x": 3}, 60)
    assert not any(signals.note("x", "a", 0, b"same") for _ in range(50))
    assert not signals.note("x", "a", 0, b"other")
    assert signals.note("x", "a", 0, b"third")


def test_bans_when_a_place_comes_again_then_longer_each_time_and_permanent_in_the_end() -> None:
    guard = Watched()
    lengths = []
    for _ in range(3):
        guard.fail()
        ban = guard.imposed[-1]
        lengths.append(ban.until - ban.banned_at if ban.until != PERMANENT else None)
        assert guard.enter(HERE) == ban
        if ban.until != PERMANENT:
            guard.clock.seconds = ban.until - 0.5
            assert guard.enter(HERE) == ban
            guard.clock.seconds = ban.until
            assert guard.enter(HERE) is None
    assert lengths == [10, 100, None]
    assert [ban.offence for ban in guard.imposed] == [1, 2, 3]
    guard.clock.seconds += 10**9
    assert guard.enter(HERE) is not None


def test_bans_when_the_last_is_long_ago_then_the_next_is_a_first_one() -> None:
    guard = Watched()
    guard.fail()
    guard.clock.seconds = guard.imposed[0].until + RULES.forget
    assert guard.forgotten() == [HERE]
    guard.fail()
    assert guard.imposed[-1].offence == 1


def test_bans_when_there_are_too_many_then_the_temporary_one_that_ends_first_makes_room() -> None:
    bans = Bans((10, 100), 1000, most=3)
    bans.put(Ban("a", "flood", 9, 0, PERMANENT))
    bans.put(Ban("b", "flood", 1, 0, 50))
    bans.put(Ban("c", "flood", 1, 0, 40))
    bans.impose("d", "flood", 1)
    assert set(bans.known()) == {"a", "b", "d"}


# --- the guard


def test_guard_when_keys_do_not_exist_then_a_ban_and_when_none_or_an_ended_one_is_sent_then_none() -> None:
    guard = Watched()
    for _ in range(100):
        guard.refused(HERE, wrong_key=False)
    assert guard.imposed == []
    guard.fail()
    assert [(ban.place, ban.reason) for ban in guard.imposed] == [(HERE, "auth_failures")]


def test_guard_when_an_address_floods_then_told_to_wait_and_then_banned() -> None:
    guard = Watched()
    for _ in range(RULES.address.burst):
        guard.check_address(HERE)
        guard.refused(HERE, wrong_key=False)
    with pytest.raises(LimitReached) as caught:
        guard.check_address(HERE)
    assert (caught.value.retry_after, caught.value.standing.limit, caught.value.standing.remaining) == (1.0, 10, 0)
    for _ in range(RULES.floods - 1):
        assert guard.imposed == []
        with pytest.raises(LimitReached):
            guard.check_address(HERE)
    assert [ban.reason for ban in guard.imposed] == ["flood"]
    guard.clock.seconds += 1
    guard.check_address("198.51.100.8")


def test_guard_when_different_unknown_routes_are_asked_for_then_a_ban_and_for_one_again_and_again_none() -> None:
    guard = Watched()
    for _ in range(8):
        guard.unknown(HERE, b"same")
    assert guard.imposed == []
    guard.unknown(HERE, b"other")
    guard.unknown(HERE, b"third")
    assert [ban.reason for ban in guard.imposed] == ["scraping"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "10.9.8.7", "192.0.2.1", "", "unix"]
)
def test_guard_when_an_address_is_spared_then_never_banned_and_never_limited(address: str) -> None:
    guard = Watched(trusted=("10.0.0.0/8",))
    guard.apply(Change("list", "192.0.2.0/24", Listed("192.0.2.0/24", "", 1, "operator")))
    for number in range(500):
        guard.check_address(address)
        guard.fail(address, 1)
        guard.unknown(address, str(number).encode())
    assert guard.imposed == []
    assert guard.enter(address) is None


def test_guard_when_inactive_then_counts_and_stops_nobody() -> None:
    guard = Watched(replace(RULES, active=False))
    guard.apply(Change("ban", HERE, Ban(HERE, "flood", 1, 0, PERMANENT)))
    for number in range(500):
        assert guard.enter(HERE) is None
        guard.check_address(HERE)
        guard.fail(HERE, 1)
        guard.unknown(HERE, str(number).encode())
        assert guard.check_key("key_1", HERE) is None
    assert guard.imposed == []
    assert guard.waiting == Counts(500, 0)


def test_guard_when_a_valid_key_goes_too_far_then_it_is_limited_and_no_address_is_banned() -> None:
    guard = Watched()
    for _ in range(3):
        assert guard.check_key("key_1", HERE) is not None
    for _ in range(50):
        with pytest.raises(LimitReached):
            guard.check_key("key_1", HERE)
    assert guard.check_key("key_2", HERE) is not None
    for _ in range(2):
        guard.suspected("key_2", HERE)
    with pytest.raises(LimitReached) as caught:
        guard.suspected("key_2", HERE)
    assert caught.value.metadata["limit"] == "suspicions"
    assert guard.imposed == []
    assert guard.limited == [("key_1", "key")] * 50 + [("key_2", "suspicions")]
    assert guard.waiting.blocked == 51


def test_guard_when_a_key_comes_from_a_listed_address_then_it_has_no_limit() -> None:
    guard = Watched()
    guard.apply(Change("list", HERE, Listed(HERE, "", 1, "operator")))
    assert [guard.check_key("key_1", HERE) for _ in range(50)] == [None] * 50
    guard.apply(Change("list", HERE, None))
    assert guard.check_key("key_1", HERE) is not None


def test_guard_when_a_ban_is_lifted_then_what_led_to_it_is_forgotten_and_the_next_is_a_first_one() -> None:
    guard = Watched()
    guard.fail()
    guard.apply(Change("ban", HERE, None))
    assert guard.enter(HERE) is None
    guard.fail(times=RULES.auth_failures - 1)
    assert guard.enter(HERE) is None
    guard.fail(times=1)
    assert [ban.offence for ban in guard.imposed] == [1, 1]
    assert guard.banned_in(network_of("198.51.100.0/24")) == [HERE]
    assert guard.banned_in(network_of("198.51.0.0/24")) == []


def test_records_when_a_key_is_refused_again_and_again_then_one_a_minute_with_the_number_left_out() -> None:
    events = []
    now = [0.0]
    records = Records(events.append, clock=lambda: now[0])
    for _ in range(10):
        records.limited("key_1", "key")
    now[0] = 61
    records.limited("key_1", "key")
    records.banned(Ban("2001:db8::/64", "flood", 2, 100, 700))
    shown = [(e.event_type, e.action, e.actor, e.address, e.details) for e in events]
    assert shown == [
        ("defense.limit", "key", "key_1", "", "before=0"),
        ("defense.limit", "key", "key_1", "", "before=9"),
        ("defense.ban", "flood", "defense", "2001:db8::/64", "offence=2 seconds=600"),
    ]


class Busy:
    """A store that more calls reach whenever it is asked to count."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.counted: list[tuple[int, Counts]] = []
        self.down = False

    async def load(self) -> tuple[Sequence[Ban], Sequence[Listed]]:
        return [], []

    async def put(self, change: Change) -> None:
        pass

    async def count(self, writer: str, batch: int, counts: Counts) -> None:
        await asyncio.sleep(0)
        self.guard.enter(HERE)
        if self.down:
            raise BackendDown("away")
        self.counted.append((batch, counts))

    async def counts(self) -> Counts:
        return sum((counts for _, counts in self.counted), Counts())

    def follow(self, heard: Callable[[Change], None], missed: Callable[[], None]) -> None:
        pass


def test_guard_when_an_address_floods_then_calls_of_a_key_that_is_known_go_on_and_ban_nobody() -> None:
    guard = Watched()
    for _ in range(RULES.address.burst):
        guard.refused(HERE, wrong_key=False)
    for _ in range(100):
        guard.check_address(HERE, lambda: True)
    assert guard.imposed == []
    assert guard.waiting.blocked == 0
    for _ in range(RULES.floods):
        with pytest.raises(LimitReached):
            guard.check_address(HERE, lambda: False)
    assert [ban.reason for ban in guard.imposed] == ["flood"]


async def test_counts_when_calls_come_without_end_then_written_once_and_none_is_lost() -> None:
    guard = Watched()
    store = Busy(guard)
    defense = Defense(guard, store)
    guard.enter(HERE)
    async with asyncio.timeout(5):
        assert await defense.counts() == Counts(2, 0)
    assert store.counted == [(1, Counts(1, 0))]
    store.down = True
    assert await defense.counts() == Counts(3, 0)
    store.down = False
    assert await defense.counts() == Counts(5, 0)
    assert store.counted == [(1, Counts(1, 0)), (2, Counts(1, 0)), (3, Counts(2, 0))]
