"""Generates the Python code of the protos into the client package.

The google/api protos come from the installed googleapis-common-protos wheel and are laid into `.proto-deps`, where buf
finds them too: nothing is fetched. Run by `make gen`; a test runs it into an empty folder and compares.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
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


def descriptions(described: bytes) -> dict[str, str]:
    """The comments of a serialized FileDescriptorSet with source info, by full name of what they describe."""
    found: dict[str, str] = {}

    def note(path: tuple[int, ...], name: str) -> None:
        text = " ".join(comments.get(path, "").split())
        if text:
            found[name] = text

    def message(path: tuple[int, ...], prefix: str, item: descriptor_pb2.DescriptorProto) -> None:
        name = f"{prefix}.{item.name}"
        note(path, name)
        for index, field in enumerate(item.field):
            note((*path, 2, index), f"{name}.{field.name}")
        for index, inner in enumerate(item.nested_type):
            message((*path, 3, index), name, inner)

    for file in descriptor_pb2.FileDescriptorSet.FromString(described).file:
        comments = {tuple(spot.path): spot.leading_comments for spot in file.source_code_info.location}
        for index, service in enumerate(file.service):
            note((6, index), f"{file.package}.{service.name}")
            for number, method in enumerate(service.method):
                note((6, index, 2, number), f"{file.package}.{service.name}.{method.name}")
        for index, item in enumerate(file.message_type):
            message((4, index), file.package, item)
        for index, enum in enumerate(file.enum_type):
            note((5, index), f"{file.package}.{enum.name}")
            for number, value in enumerate(enum.value):
                note((5, index, 2, number), f"{file.package}.{enum.name}.{value.name}")
    return dict(sorted(found.items()))


def generate(out: Path, proto: Path = PROTO) -> None:
    """Writes modules and stubs of every proto under `proto` into `out`.

    Beside our own goes `descriptions.json`: the protos' comments, which descriptors do not carry at run time.

    Raises:
        SystemExit: protoc found an error; it has printed it.
    """
    lay_dependencies()
    out.mkdir(parents=True, exist_ok=True)
    described = out / "described.tmp"
    code = protoc.main(  # type: ignore[no-untyped-call]  # grpc_tools ships no types
        [
            "protoc",
            f"-I{proto}",
            f"-I{PROTO}",
            f"-I{DEPS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={plugin('protoc-gen-mypy_grpc')}",
            f"--descriptor_set_out={described}",
            "--include_source_info",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto")),
        ]
    )
    if code:
        raise SystemExit(code)
    if proto == PROTO:
        text = json.dumps(descriptions(described.read_bytes()), indent=0, ensure_ascii=False)
        (out / "memoryos" / "v1" / "descriptions.json").write_text(text + "\n", "utf-8")
    described.unlink()


if __name__ == "__main__":
    lay_dependencies()
    if sys.argv[1:] != ["--deps"]:
        generate(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "clients" / "python")
