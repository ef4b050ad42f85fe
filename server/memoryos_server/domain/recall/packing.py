"""Packing turns into a budget of tokens: whole turns, and as much of what answers as there is room for.

Raw scores are log odds up to a constant, so the most is had for the tokens by taking turns in the order of raw score less
the logarithm of their cost: two short turns of some use before a long one of little more. The best turn comes first in any case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

POOL = 2
"""Turns are chosen from the best that together would fill the budget so many times."""


def pack(worths: Sequence[float], costs: Sequence[int], budget: int) -> list[int]:
    """The places of those that go into a budget, ascending.

    Args:
        worths: Raw scores, best first.
        costs: What each costs, in tokens.
        budget: The tokens there are.
    """
    order = sorted(range(len(worths)), key=lambda i: (i > 0, math.log(costs[i]) - worths[i], i))
    chosen = []
    for place in order:
        if costs[place] <= budget:
            budget -= costs[place]
            chosen.append(place)
    return sorted(chosen)
