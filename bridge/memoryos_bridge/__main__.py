"""`python -m memoryos_bridge` runs the bridge with the settings of the environment and the settings file."""

from __future__ import annotations

import sys

from memoryos import settings
from memoryos_bridge.commands import serve


def main() -> int:
    """Runs the bridge; the exit code."""
    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 2
    return serve(loaded)


if __name__ == "__main__":
    sys.exit(main())
