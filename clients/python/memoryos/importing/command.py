"""The sub-command `memoryos import`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from memoryos.addresses import authority, reachable
from memoryos.aio import AsyncClient
from memoryos.errors import MemoryOSError
from memoryos.importing.formats import READERS, detect
from memoryos.importing.items import Unreadable
from memoryos.importing.progress import Progress
from memoryos.importing.run import Report, count, send
from memoryos.importing.streams import Source
from memoryos.settings import Loaded
from memoryos.tls import towards_server

_SHOWN = 20
"""Failures that are listed without --json."""

_AGAIN = "Run the same command again to go on: what is there already is not added twice."


def main(loaded: Loaded, args: argparse.Namespace) -> int:
    """Imports a file; the exit code: 0 everything, 1 not everything, 2 nothing can be read."""
    try:
        source = Source(Path(args.file))
        name = detect(source) if args.format == "auto" else args.format
    except (OSError, Unreadable) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        print(f"memoryos: {args.file}: {reason}", file=sys.stderr)
        return 2
    progress = Progress()

    def tick(report: Report) -> None:
        progress.show(source.position / source.size if source.size else 1.0, report.sent, report.failed)

    items = READERS[name](source)
    if args.dry_run:
        report = count(items, tick)
    else:
        host, port = reachable(loaded.settings.server.listen, "server.listen")
        address = args.server or authority(host, port)
        tls = towards_server(loaded.settings, wanted=args.tls, own=not args.server) or False

        async def run() -> Report:
            async with AsyncClient(address, user_id=args.user, tenant_id=args.tenant, tls=tls) as client:
                await client.health()
                return await send(client, items, args.user, senders=args.concurrency, tick=tick)

        try:
            report = asyncio.run(run())
        except MemoryOSError as error:
            print(f"memoryos: the server at {address} does not answer: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"\n{_AGAIN}", file=sys.stderr)
            return 130
    progress.end(source.position / source.size if source.size else 1.0, report.sent, report.failed)
    _tell(name, report, dry=args.dry_run, as_json=args.json)
    return 0 if report.ok else 1


def _tell(name: str, report: Report, *, dry: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"format": name, "dry_run": dry, **report.as_json()}, ensure_ascii=False))
        return
    what = [f"{report.turns:,} turns" if name != "mem0" else f"{report.memories:,} memories"]
    if report.duplicates:
        what.append(f"{report.duplicates:,} there already")
    if report.failed:
        what.append(f"{report.failed:,} failed")
    print(f"{name}: {'would import' if dry else 'imported'} {', '.join(what)} in {report.seconds:.1f} s")
    for failure in report.errors[:_SHOWN]:
        print(f"  {failure['where']}: {failure['error']}")
    if report.failed > _SHOWN:
        print(f"  and {report.failed - _SHOWN:,} more; --json lists them")
    if report.stopped:
        print(f"stopped: {report.stopped}", file=sys.stderr)
        if not dry:
            print(_AGAIN, file=sys.stderr)
