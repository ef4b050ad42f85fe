from __future__ import annotations

from pathlib import Path

from scripts.generate import ROOT, generate

COMMITTED = ROOT / "clients" / "python" / "memoryos" / "v1"


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if "_pb2" in path.name}


def test_generated_code_when_made_anew_then_it_equals_what_is_committed(tmp_path: Path) -> None:
    generate(tmp_path)
    made, committed = _files(tmp_path / "memoryos" / "v1"), _files(COMMITTED)
    assert made.keys() == committed.keys(), "run `make gen` and delete what no proto makes any more"
    assert [name for name in made if made[name] != committed[name]] == [], "run `make gen`"
