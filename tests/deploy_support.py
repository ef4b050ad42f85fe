"""What deploy/ holds, parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from scripts.generate import ROOT

DEPLOY = ROOT / "deploy"


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object, with the name of its file."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """Name -> object."""
    return {found["metadata"]["name"]: found for _, found in manifests() if found["kind"] == kind}


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether labels hold all that a selector asks for."""
    return bool(selector) and selector.items() <= labels.items()
