"""Writes what a release is made of: every locked runtime dependency, as CycloneDX 1.6 JSON.

What is locked comes from requirements.lock, licences and who needs whom from the installed packages. The same lock gives the
same text: it holds no time, and its serial number follows from its content.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_LOCKED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_NAMESPACE = uuid.UUID("6f1d3c1e-5a0b-4c51-9d0a-9b0f8f6a2a57")


@dataclass(frozen=True, slots=True)
class Locked:
    """A package of the lock.

    Attributes:
        name: Its normalised name.
        version: Its version.
        hashes: The SHA-256 of each of its files, any of which may be installed.
    """

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        """What names it everywhere."""
        return f"pkg:pypi/{self.name}@{self.version}"


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> list[Locked]:
    """The packages of a lock, by name."""
    found = []
    for block in re.split(r"\n(?=\S)", text):
        head = _LOCKED.match(block)
        if head:
            found.append(Locked(normalised(head[1]), head[2], tuple(sorted(_HASH.findall(block)))))
    return sorted(found, key=lambda package: package.name)


def document(packages: list[Locked], version: str) -> dict[str, Any]:
    """The bill of materials.

    Args:
        packages: What is locked.
        version: Our own version.
    """
    # Of some packages two versions are locked, each for other versions of Python.
    names: dict[str, list[str]] = {}
    for package in packages:
        names.setdefault(package.name, []).append(package.purl)
    root = f"pkg:pypi/memoryos@{version}"
    installed = {name: found for name in names if (found := _installed(name)) is not None}
    made = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "memoryos",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "purl": root,
            }
        },
        "components": [_component(package, installed.get(package.name)) for package in packages],
        "dependencies": [
            {"ref": root, "dependsOn": sorted(package.purl for package in packages)},
            *({"ref": package.purl, "dependsOn": _needs(installed.get(package.name), names)} for package in packages),
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(made, sort_keys=True))
    return {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", **made, "serialNumber": f"urn:uuid:{serial}"}


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:  # one for another platform
        return None


def _component(package: Locked, found: Distribution | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
    }
    if package.hashes:
        made["hashes"] = [{"alg": "SHA-256", "content": value} for value in package.hashes]
    if found is not None and found.version == package.version and (licences := _licences(found)):
        made["licenses"] = licences
    return made


def _licences(found: Distribution) -> list[dict[str, Any]]:
    """What a package says of its licence: an expression if it has one, else names."""
    meta = found.metadata
    if expressions := meta.get_all("License-Expression"):
        return [{"expression": expressions[0]}]
    classifiers = [value for value in meta.get_all("Classifier") or () if value.startswith("License :: ")]
    names = sorted({value.rpartition(" :: ")[2] for value in classifiers} - {"OSI Approved"})
    text = (meta.get_all("License") or [""])[0].strip()
    if not names and text:
        names = [text.splitlines()[0][:100]]
    return [{"license": {"name": name}} for name in names]


def _needs(found: Distribution | None, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Whom of the lock a package needs, on whatever platform; what only its extras need is not meant."""
    needed: set[str] = set()
    for line in (found.requires or ()) if found is not None else ():
        name = _NAME.match(line)
        if name and "extra ==" not in line and normalised(name[0]) in names:
            needed.update(names[normalised(name[0])])
    return sorted(needed)


def main() -> int:
    """Prints it, or writes it to the file that is named."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    made = document(locked((ROOT / "requirements.lock").read_text("utf-8")), version)
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, "utf-8")
        print(f"{sys.argv[1]}: {len(made['components'])} packages")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
