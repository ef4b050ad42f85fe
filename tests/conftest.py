from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_generated = tempfile.TemporaryDirectory(prefix="memoryos-scratch-")


def pytest_configure() -> None:
    # The scratch service of tests is generated anew for each run, so that `import scratch.v1...` works everywhere.
    from scripts.generate import generate

    generate(Path(_generated.name), ROOT / "tests" / "scratch" / "proto")
    sys.path.insert(0, _generated.name)
