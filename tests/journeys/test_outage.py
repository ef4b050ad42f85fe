"""What is served while stores are away: the table of `bench.outage`, a part of it here, all of it where there is time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.outage.expected import CACHES, CALLS, STATES, TABLE
from bench.outage.families import running
from bench.outage.matrix import Matrix
from tests.conftest import ROOT
from tests.upstream import UpstreamProcess

pytestmark = pytest.mark.embedded("names the stores itself, embedded and live ones")


@pytest.fixture(scope="module")
def upstream() -> Iterator[UpstreamProcess]:
    with UpstreamProcess() as running_upstream:
        yield running_upstream


def test_table_when_read_then_it_says_of_every_call_what_comes() -> None:
    assert set(TABLE) == {(state, caches) for state in STATES for caches in CACHES}
    for calls in TABLE.values():
        assert set(calls) == set(CALLS)


@pytest.mark.timeout(240)
def test_calls_when_live_stores_are_refused_or_hang_then_as_the_contract_says(
    tmp_path: Path, upstream: UpstreamProcess
) -> None:
    with running("live", tmp_path, upstream.base_url) as family:
        matrix = Matrix("live", family, upstream, caches=("warm",))
        cells = list(matrix.run())
        assert [cell for cell in cells if not cell.equal] == []
        assert len(cells) == 2 * 3 * (2 * len(CALLS) + 1)
        # The first chat waits its 0.15 s once, and no chat after it waits at all.
        (speed,) = matrix.speed(15, (0.2,), ("redis down",))
        assert speed.first < 0.4  # of which half is for a busy machine
        assert speed.p50 < speed.up + 0.05


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_bench_when_run_whole_then_every_cell_is_equal() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.outage", "--brief"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
