"""The sub-command that the bridge brings to `memoryos`: bridge."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from memoryos.settings import Loaded, SettingsError


def serve(loaded: Loaded) -> int:
    """Runs the bridge until it is told to stop; the exit code."""
    # gRPC's core would write a line of its own for every handshake that fails; it reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from memoryos_bridge import run  # late: other commands need no HTTP server

    for warning in loaded.warnings:
        print(f"memoryos: {warning}", file=sys.stderr)
    try:
        return run.serve(loaded.settings)
    except SettingsError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 2


def register(subparsers: Any) -> None:
    """Adds bridge."""
    parser: argparse.ArgumentParser = subparsers.add_parser("bridge", help="run the JSON bridge to a gRPC server")
    parser.set_defaults(run=lambda args: serve(args.loaded))
