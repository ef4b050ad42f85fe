"""`memoryos privacy`: a person's data handed over, erased, and what became of it, on the server's machine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TextIO

from memoryos.settings import SettingsError
from memoryos_server.commands import ask, run
from memoryos_server.domain.core.faults import Fault


def show_certificate(item: Mapping[str, Any]) -> str:
    """A certificate for people."""
    lines = [f"certificate {item['id']}  tenant={item['tenant_id']}  {item['status']}  since {item['requested_at']}"]
    for part in item["categories"]:
        left = "?" if part["left"] is None else part["left"]
        lines.append(f"  {part['category']}: {part['removed']:,} removed, {left} left  {part['error']}".rstrip())
    if item["status"] == "erasing":
        lines.append("Nothing of before can be read any more. The running server, or the next start, removes the rest.")
    elif item["errors"]:
        lines.append("Not all is gone: it is tried again until it is.")
    for store, said in sorted(item["files"].items()):
        lines.append(f"  files of {store}: {'left to who runs it' if said == 'not_ours' else f'rewritten at {said}'}")
    return "\n".join(lines)


def export(args: argparse.Namespace) -> int:
    """Writes a person's data to a file or to the standard output; the exit code. A file is there whole or not at all."""
    from memoryos_server import app

    async def written(out: TextIO) -> None:
        arguments = {"tenant_id": args.tenant, "user_id": args.user}
        async with aclosing(ask(args.loaded, "privacy.export", arguments)) as answers:
            async for item in answers:
                out.write(item["piece"])
        out.write("\n")
        out.flush()

    try:
        if args.to is None:
            asyncio.run(written(sys.stdout))
        else:
            with _whole(args.to) as out:
                asyncio.run(written(out))
    except (Fault, SettingsError, app.StartError, OSError) as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file that only its owner can read, and that has its name once all is written."""
    fresh = path.with_name(f"{path.name}.part")
    fresh.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            yield out
            os.fsync(out.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _file(text: str) -> Path:
    """Where a file may be written."""
    try:
        path = Path(text).expanduser()
        found = not path.name or path.is_dir()
    except (RuntimeError, OSError) as error:
        raise argparse.ArgumentTypeError(f"no file can be {text!r}: {error}") from None
    if found:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    return path


def _user(text: str) -> str:
    """A user's id, of characters: what a shell hands over may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the user's id is not UTF-8") from None
    return text


def register(subparsers: Any) -> None:
    """Adds privacy."""
    commands = subparsers.add_parser("privacy", help="hand over or erase a person's data").add_subparsers(required=True)
    handed = commands.add_parser("export", help="everything that is kept of a user, as one JSON document")
    handed.add_argument("--to", type=_file, metavar="FILE", help="where it goes (default: standard output)")
    handed.set_defaults(run=export)
    erase = commands.add_parser("delete", help="erase everything that is kept of a user, for good")
    erase.set_defaults(
        run=lambda args: run(args, "privacy.delete", {"tenant_id": args.tenant, "user_id": args.user}, show_certificate)
    )
    for parser in (handed, erase):
        parser.add_argument("user", type=_user, help="the user's id")
        parser.add_argument("--tenant", default="default", help="the user's tenant (default: default)")
    seen = commands.add_parser("certificate", help="what became of an erasure")
    seen.add_argument("id", help="as `privacy delete`, or `certificate_id` of the call, says it")
    seen.set_defaults(run=lambda args: run(args, "privacy.certificate", {"id": args.id}, show_certificate))
    for parser in (erase, seen):
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
