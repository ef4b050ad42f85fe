from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.core.text import TURN_TOKENS, estimate_tokens, turn_tokens
from memoryos_server.domain.recall.packing import pack


def test_pack_when_everything_fits_then_takes_everything() -> None:
    assert pack([3.0, 2.0, 1.0], [10, 20, 30], 60) == [0, 1, 2]


def test_pack_when_the_best_fits_then_takes_it_however_long() -> None:
    assert pack([3.0, 2.9, 2.8], [50, 10, 10], 50) == [0]


def test_pack_when_short_turns_are_worth_almost_as_much_then_prefers_them() -> None:
    assert pack([3.0, 2.0, 1.9, 1.8], [10, 30, 15, 15], 40) == [0, 2, 3]


def test_pack_when_nothing_fits_then_takes_nothing() -> None:
    assert pack([3.0], [10], 9) == []
    assert pack([], [], 9) == []


def test_turn_tokens_when_a_speaker_has_a_name_then_it_costs() -> None:
    assert turn_tokens("Ann", "said") == estimate_tokens("Ann said") + TURN_TOKENS
    assert turn_tokens("Ann Elizabeth of Marken", "said") > turn_tokens("", "said")


@given(st.lists(st.tuples(st.floats(-20, 20), st.integers(9, 5000)), max_size=40), st.integers(0, 8000))
def test_pack_when_given_anything_then_keeps_to_the_budget_and_leaves_no_room(
    turns: list[tuple[float, int]], budget: int
) -> None:
    turns.sort(reverse=True)
    chosen = pack([worth for worth, _ in turns], [cost for _, cost in turns], budget)
    left = budget - sum(turns[place][1] for place in chosen)
    assert left >= 0
    assert chosen == sorted(set(chosen))
    assert all(turns[place][1] > left for place in range(len(turns)) if place not in chosen)
    assert not turns or turns[0][1] > budget or 0 in chosen
