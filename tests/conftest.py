from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.generate import generate  # noqa: E402  # found by the line above

# The scratch service of tests is generated anew for each run, so that `import scratch.v1...` works everywhere; here and
# not in a hook, because the conftest files below are imported before any hook runs.
_generated = tempfile.TemporaryDirectory(prefix="memoryos-scratch-")
generate(Path(_generated.name), ROOT / "tests" / "scratch" / "proto")
sys.path.insert(0, _generated.name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stores",
        choices=("embedded", "live-cluster"),
        default="embedded",
        help="the stores of whole systems: those in the data directory, or a Valkey cluster and a loopback Qdrant",
    )


def pytest_configure(config: pytest.Config) -> None:
    os.environ["MEMORYOS_TEST_STORES"] = config.getoption("--stores")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--stores") == "embedded":
        return
    for item in items:
        if (only := item.get_closest_marker("embedded")) is not None:
            item.add_marker(pytest.mark.skip(reason=only.args[0]))
