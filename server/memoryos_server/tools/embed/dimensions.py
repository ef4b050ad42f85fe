"""How long a provider's vectors are, as it said when it was last asked.

Kept so that a start while the provider is away is a start with the same model. Each model has a small file of its own: a
directory that servers share needs no lock, and a damaged file is no one else's. The file's name is a hash of who makes the
vectors; neither a key nor an address is written down.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import orjson

log = logging.getLogger(__name__)

_MOST = 1 << 16


class Dimensions:
    """What is known of one model of one provider.

    Args:
        directory: Where it is kept; made when there is something to keep.
        provider: The kind of provider.
        base_url: Where it is; a user, password or query in it makes no difference.
        model: The model as the provider calls it.
    """

    def __init__(self, directory: Path, provider: str, base_url: str, model: str) -> None:
        who = orjson.dumps([provider, _address(base_url), model.encode("utf-8", "replace").decode()])
        self._path = directory / "dimensions" / f"{hashlib.sha256(who).hexdigest()[:32]}.json"

    def known(self) -> int:
        """The dimension, 0 if none is known. A file that cannot be read or says something else counts as none."""
        try:
            kept = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("the dimension kept in %s cannot be read: %s", self._path, error)
            return 0
        found = kept.get("dimension") if isinstance(kept, dict) else None
        if type(found) is not int or not 0 < found <= _MOST:
            log.warning("what is kept in %s is no dimension", self._path)
            return 0
        return found

    def keep(self, dimension: int) -> None:
        """Keeps what the provider said, whole or not at all. A directory that cannot be written costs only the memory of it."""
        scratch = ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(prefix=".", dir=self._path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(orjson.dumps({"dimension": dimension}))
            os.replace(scratch, self._path)
        except OSError as error:
            log.warning("the dimension of the embedding model cannot be kept: %s", error)
            if scratch:
                Path(scratch).unlink(missing_ok=True)


def _address(base_url: str) -> str:
    """An address without what may be a secret in it."""
    plain = base_url.encode("utf-8", "replace").decode().rstrip("/")
    try:
        parts = urlsplit(plain)
    except ValueError:
        return plain  # of another form: nobody will answer there
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
