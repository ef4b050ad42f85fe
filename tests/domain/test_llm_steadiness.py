"""When a deployment rests, and how often is tried again."""

from __future__ import annotations

from memoryos_server.tools.llm.steadiness import FAILURES, LONGEST_REST_SECONDS, REST_SECONDS, Breaker, RetryBudget
from tests.providers import Clock


def test_breaker_when_it_fails_again_and_again_then_rests_longer_up_to_a_minute() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES - 1):
        breaker.began()  # an answer that breaks off later is a failure all the same
        breaker.failed()
    assert not breaker.rests
    rests, probe = [], False
    for _ in range(6):
        breaker.failed(probe=probe)
        assert breaker.rests
        rests.append(breaker.until - clock.now)
        clock.now = breaker.until
        assert not breaker.rests
        probe = breaker.probes(60.0)
        assert probe
        assert breaker.rests
        assert not breaker.probes(60.0)  # one at a time
    assert rests == [REST_SECONDS, 10.0, 20.0, 40.0, LONGEST_REST_SECONDS, LONGEST_REST_SECONDS]
    breaker.left(probe=False)
    assert breaker.rests
    breaker.left(probe=True)
    assert not breaker.rests
    breaker.answered()
    breaker.failed()
    assert not breaker.rests
    breaker.failed(9.0)
    assert breaker.until - clock.now == 9.0
    clock.now = breaker.until
    assert breaker.probes(60.0)
    breaker.failed(probe=True)
    assert breaker.until - clock.now == REST_SECONDS * 2


def test_budget_when_many_calls_come_then_it_fills_up_no_further() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.called()
    assert [budget.spend() for _ in range(21)] == [True] * 20 + [False]
