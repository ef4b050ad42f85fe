"""`python -m memoryos_server`: the gRPC server, configured by environment and file."""

from __future__ import annotations

import sys

from memoryos.settings import SettingsError, load
from memoryos_server.commands import serve

if __name__ == "__main__":
    try:
        loaded = load()
    except SettingsError as error:
        sys.exit(f"memoryos: {error}")
    sys.exit(serve(loaded))
