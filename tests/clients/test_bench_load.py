from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from scripts.generate import ROOT


def test_bench_when_run_small_then_every_target_has_a_ratio_to_the_echo_of_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    few = ["--calls", "6", "--rounds", "1", "--turns", "6", "--concurrency", "2", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *few], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    figures = {row["target"]: row for row in json.loads(out.read_text())}
    assert figures.keys() == {"echo", "retrieve, gRPC", "retrieve, bridge", "add, gRPC", "add, bridge"}
    assert figures["echo"]["ratio"] == 1
    assert all(row["ratio"] > 1 for name, row in figures.items() if name != "echo")
