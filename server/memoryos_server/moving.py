"""The sub-commands that move what the stores hold: backup, restore, migrate, archive."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from memoryos.settings import SettingsError
from memoryos_server.domain.core import faultpoints
from memoryos_server.domain.core.faults import Fault

_WIDTH = 24


class _Bar:
    """How far it is: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else 10.0)
        self._shown = False

    def show(self, stage: str, at: int, of: int) -> None:
        now = time.monotonic()
        if now < self._next and at < of:
            return
        if now < self._next and not self._shown:
            return
        self._next = now + (0.2 if self._terminal else 10.0)
        self._shown = True
        share = at / of if of else 1.0
        text = f"{share:4.0%}  {stage}: {at:,} of {of:,}"
        if self._terminal:
            full = int(share * _WIDTH)
            sys.stderr.write(f"\r[{'#' * full}{'.' * (_WIDTH - full)}] {text}\x1b[K")
        else:
            sys.stderr.write(f"{text.strip()}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal and self._shown:
            sys.stderr.write("\n")


def _follow(steps: AsyncGenerator[dict[str, Any], None], args: argparse.Namespace, show: Any) -> int:
    """Shows how far it is and what came of it; the exit code."""
    from memoryos_server import app
    from memoryos_server.stores.backup_file import BackupError
    from memoryos_server.stores.embedded import DataDirectoryInUseError
    from memoryos_server.stores.keyring import KeyringError
    from memoryos_server.stores.migrate import MigrationError
    from memoryos_server.stores.portable_keys import PortableError

    refusals = (BackupError, KeyringError, DataDirectoryInUseError, MigrationError, PortableError)
    bar = _Bar()

    async def run() -> Mapping[str, Any]:
        last: Mapping[str, Any] = {}
        if task := asyncio.current_task():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with aclosing(steps) as followed:
            async for last in followed:
                if not last.get("done"):
                    bar.show(last["stage"], last["at"], last["of"])
        return last

    try:
        done = asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError) as ended:
        bar.end()
        print("memoryos: interrupted", file=sys.stderr)
        return 128 + (signal.SIGINT if isinstance(ended, KeyboardInterrupt) else signal.SIGTERM)
    except (Fault, SettingsError, app.StartError, *refusals) as error:
        bar.end()
        print(f"memoryos: {error}", file=sys.stderr)
        return 1
    bar.end()
    shown = {name: value for name, value in done.items() if name != "done"}
    print(json.dumps(shown) if args.json else show(shown))
    return 0


def _backup(args: argparse.Namespace) -> int:
    from memoryos_server.commands import ask

    arguments = {"to": str(Path(args.to).expanduser().absolute()), "keyring_only": args.keyring_only}

    def show(done: Mapping[str, Any]) -> str:
        lines = []
        if "content" in done:
            counts = done["counts"]
            lines.append(
                f"content: {done['content']} ({done['bytes']:,} bytes, {counts.get('points/main', 0):,} memories)"
            )
        lines.append(f"keyring: {done['keyring']}")
        lines.append(
            "Keep only the newest keyring, and keep it apart. The master key is in neither: keep a copy of it, too."
        )
        return "\n".join(lines)

    return _follow(ask(args.loaded, "backup", arguments, points=True), args, show)


def _restore(args: argparse.Namespace) -> int:
    from memoryos_server.stores.keyring import KeyringError, MasterKeys
    from memoryos_server.stores.restore import restore

    settings = args.loaded.settings
    data = Path(settings.data_dir)
    try:
        security = settings.security
        keys = MasterKeys(security.master_key, security.key_dir, data, previous=security.previous_master_key)
    except KeyringError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 1
    keyring = Path(args.keyring).expanduser() if args.keyring else None

    def show(done: Mapping[str, Any]) -> str:
        lines = [f"restored {done['points']:,} memories of {done['people']:,} people into {done['data_dir']}"]
        if done["erased"]:
            lines.append(f"left out: {done['erased']:,} people who were erased since")
        if "replaced" in done:
            lines.append(f"what was there before: {done['replaced']} (delete it once you are sure)")
        return "\n".join(lines)

    return _follow(
        restore(Path(args.source).expanduser(), keyring, data, keys, settings.security.key_dir, force=args.force),
        args,
        show,
    )


def _migrate(args: argparse.Namespace) -> int:
    from memoryos_server.places import is_there, open_place
    from memoryos_server.stores.migrate import migrate, survey

    settings = args.loaded.settings
    try:
        faultpoints.arm(os.environ.get(faultpoints.ENVIRONMENT, ""))
    except ValueError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 1

    async def steps() -> AsyncGenerator[dict[str, Any], None]:
        async with (
            open_place(settings, args.source, exists=True) as source,
            open_place(settings, args.to, exists=False) as target,
            aclosing(migrate(source, target)) as moved,
        ):
            async for step in moved:
                yield step

    async def planned() -> AsyncGenerator[dict[str, Any], None]:
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(open_place(settings, args.source, exists=True))
            target = None
            if is_there(settings, args.to):
                target = await stack.enter_async_context(open_place(settings, args.to, exists=True))
            yield await survey(source, target)

    def show(done: Mapping[str, Any]) -> str:
        if args.dry_run:
            what = "go on with a move that was cut off, of" if done["resumed"] else "move"
            return f"would {what} {done['points'].get('main', 0):,} memories and {done['keys']:,} keys; nothing was written"
        return (
            f"moved {done['points'].get('main', 0):,} memories and {done['keys']:,} keys; both ends are equal\n"
            f"The new store opens with the same master key, {done['master_key']}."
        )

    return _follow(planned() if args.dry_run else steps(), args, show)


def _archive(args: argparse.Namespace) -> int:
    from memoryos_server.commands import run

    if args.action == "verify":
        return run(args, "archive.verify", {}, lambda item: f"{item['intact']:,} archived events, all intact")
    return run(
        args,
        "archive.run",
        {"days": args.days},
        lambda item: f"{item['moved']:,} events moved, {item['archived']:,} are in the archive",
    )


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= 100_000:
        raise argparse.ArgumentTypeError("it must be 0..100000")
    return days


def register(subparsers: Any) -> None:
    """Adds backup, restore, migrate and archive."""
    backup = subparsers.add_parser(
        "backup",
        help="copy the embedded stores into two files, also while the server runs",
        description="Writes what the embedded stores hold into two files: content, and the keyring that opens it. The master key "
        "is in neither. Only the newest keyring is kept: an erased person stays erased in every older content.",
    )
    backup.add_argument("--to", required=True, metavar="DIR|FILE.tar", help="a directory, or the content's file")
    backup.add_argument("--keyring-only", action="store_true", help="only the keyring: after people were erased, say")
    backup.set_defaults(run=_backup)
    restore = subparsers.add_parser(
        "restore",
        help="make a data directory of a backup",
        description="Checks a backup as a whole, then makes the data directory of it, all at once or not at all. The server must "
        "not run, and the master key must be where it was.",
    )
    restore.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR|FILE.tar",
        help="the content's file, or where the newest lies",
    )
    restore.add_argument(
        "--keyring", metavar="FILE", help="the newest keyring (default: keyring.tar beside the content)"
    )
    restore.add_argument("--force", action="store_true", help="replace a data directory that is not empty")
    restore.set_defaults(run=_restore)
    migrate = subparsers.add_parser(
        "migrate",
        help="move everything from embedded to live stores, or back",
        description="Copies everything, compares both ends by count and checksum, and only then hands the target over. The "
        "server must not run. Run again, it goes on where it was cut off. The source stays as it is.",
    )
    places = "embedded, embedded:DIR or live"
    migrate.add_argument("--from", dest="source", required=True, metavar="STORE", help=places)
    migrate.add_argument("--to", required=True, metavar="STORE", help=f"{places}; must be empty")
    migrate.add_argument(
        "--dry-run", action="store_true", help="look at both ends, write nothing, say what would be moved"
    )
    migrate.set_defaults(run=_migrate)
    archive = subparsers.add_parser("archive", help="move old audit events into archive files, and check those")
    archive.add_argument("action", choices=("run", "verify"), help="move now what is old enough; or read and check all")
    archive.add_argument("--days", type=_days, help="with run: how old is old enough (default: retention.audit_days)")
    archive.set_defaults(run=_archive)
    for parser in (backup, restore, migrate, archive):
        parser.add_argument("--json", action="store_true", help="a JSON object on what was done")
