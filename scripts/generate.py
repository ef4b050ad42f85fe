"""Generates the Python code of the protos into the client package.

The google/api protos come from the installed googleapis-common-protos wheel and are laid into `.proto-deps`, where buf
finds them too: nothing is fetched. Run by `make gen`; a test runs it into an empty folder and compares.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
DEPS = ROOT / ".proto-deps"
NEEDED = ("google/api/annotations.proto", "google/api/http.proto", "google/api/field_behavior.proto")


def lay_dependencies() -> None:
    """Copies the google/api protos that ours import into `.proto-deps`."""
    installed = Path(annotations_pb2.__file__).parent.parent.parent
    for name in NEEDED:
        target = DEPS / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((installed / name).read_bytes())


def plugin(name: str) -> str:
    """The path of a protoc plugin of this environment; protoc would look on PATH only."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(f"{name} is not installed beside {sys.executable}; run `make .venv`")
    return found


def generate(out: Path, proto: Path = PROTO) -> None:
    """Writes modules and stubs of every proto under `proto` into `out`.

    Raises:
        SystemExit: protoc found an error; it has printed it.
    """
    lay_dependencies()
    out.mkdir(parents=True, exist_ok=True)
    code = protoc.main(
        [
            "protoc",
            f"-I{proto}",
            f"-I{PROTO}",
            f"-I{DEPS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={plugin('protoc-gen-mypy_grpc')}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto")),
        ]
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    lay_dependencies()
    if sys.argv[1:] != ["--deps"]:
        generate(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "clients" / "python")
