"""The bill of materials: valid, whole, and the same each time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from scripts.generate import ROOT
from scripts.sbom import document, locked

LOCK = (ROOT / "requirements.lock").read_text("utf-8")


def test_sbom_when_made_then_it_is_valid_and_the_same_each_time(tmp_path: Path) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        path = tmp_path / name
        subprocess.run([sys.executable, "scripts/sbom.py", str(path)], cwd=ROOT, check=True, capture_output=True)
        texts.append(path.read_text("utf-8"))
    assert texts[0] == texts[1]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(texts[0]) is None


def test_sbom_when_the_lock_changes_then_its_serial_number_does() -> None:
    packages = locked(LOCK)
    assert document(packages, "1")["serialNumber"] != document(packages[1:], "1")["serialNumber"]


def test_sbom_when_made_then_every_locked_package_is_in_it_with_its_hashes_and_licence() -> None:
    made = document(locked(LOCK), "1")
    lines = re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK, re.M)
    assert [(c["name"], c["version"]) for c in made["components"]] == sorted(lines)
    assert sum(len(c["hashes"]) for c in made["components"]) == LOCK.count("--hash=sha256:")
    # Of a package for another platform, which is not installed here, no licence is known.
    unknown = {c["name"] for c in made["components"] if not c.get("licenses")}
    assert len(unknown) <= len(re.findall(r"^[a-z0-9-]+==\S+ ; ", LOCK, re.M)) + 1
    refs = {d["ref"]: d["dependsOn"] for d in made["dependencies"]}
    assert any(
        need.startswith("pkg:pypi/starlette@") for ref, needs in refs.items() if "fastapi@" in ref for need in needs
    )
    assert json.dumps(made).count("pkg:pypi/pytest@") == 0
