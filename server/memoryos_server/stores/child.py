"""A child process that is kept running.

It starts a command through `parented.py`, waits until the command answers, starts it again when it died, and stops
it. It knows nothing of what the command does. Everything happens in the thread of the event loop, because on Linux
a child lives no longer than the thread that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

_log = logging.getLogger(__name__)

_WRAPPER = Path(__file__).with_name("parented.py")

# What children need of the environment. Keys and addresses of the server's settings are none of their business.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")

_BACKOFF_SECONDS = 0.1
_BACKOFF_MOST_SECONDS = 10.0
_STEADY_SECONDS = 10.0
"""A child that ran this long has its backoff forgotten."""


class ChildState(Enum):
    """How a child is."""

    UP = "up"
    RESTARTING = "restarting"
    """It died and is being started again."""
    DOWN = "down"
    """It is not started yet, was stopped, or could not be started again; the last is tried on and on."""


class ChildFailedError(Exception):
    """A child could not be started; the message names it and ends with its last words."""


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals a child, if it is still there.

    Not by `process.send_signal`: that looks first whether the child has ended, and then takes its exit status away from
    the event loop, which is waiting for it and complains of an unknown child on stderr.
    """
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


class Child:
    """One command, kept running from `start` to `stop`.

    Args:
        name: For errors and logs.
        command: The program, absolute, and its arguments.
        cwd: Its working directory.
        ready: Called with the pid until it gives True: the child answers, and it is this one. It has a deadline of
            its own.
        held: A descriptor that the child inherits.
        changed: Called whenever the pid has changed.
        start_timeout: How long until it must be ready, seconds.
        stop_timeout: How long it has from SIGTERM to SIGKILL, seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        ready: Callable[[int], Awaitable[bool]],
        held: int,
        changed: Callable[[], None],
        start_timeout: float = 600.0,
        stop_timeout: float = 30.0,
    ) -> None:
        self.name = name
        self.state = ChildState.DOWN
        self._command = tuple(command)
        self._cwd = cwd
        self._ready = ready
        self._held = held
        self._changed = changed
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._last_words: deque[str] = deque(maxlen=12)

    @property
    def pid(self) -> int | None:
        """The process id, or None while there is no process."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Returns once the child is ready; from then on it is started again whenever it dies.

        Raises:
            ChildFailedError: It ended or did not get ready in time.
        """
        await self._spawn()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")

    async def stop(self) -> None:
        """Ends the child with SIGTERM, after its time with SIGKILL. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        self._watcher = None
        await self._end()

    async def _spawn(self) -> None:
        self._last_words.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(_WRAPPER),
            str(os.getpid()),
            *self._command,
            cwd=self._cwd,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            # A pipe whose end tells the child that we are gone, also where no signal does.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(self._held,),
            # A session of its own: Ctrl-C on a terminal is for us, and we stop children in order.
            start_new_session=True,
        )
        self._output = asyncio.create_task(self._read(process), name=f"output of {self.name}")
        try:
            self._changed()
            async with asyncio.timeout(self._start_timeout):
                while not await self._ready(process.pid):
                    if process.returncode is not None:
                        raise ChildFailedError(await self._obituary(f"ended with {process.returncode}"))
                    await asyncio.sleep(0.01)
        except TimeoutError:
            await self._end()
            raise ChildFailedError(await self._obituary(f"was not ready in {self._start_timeout:g} s")) from None
        except BaseException:
            await self._end()
            raise
        self.state = ChildState.UP

    async def _obituary(self, what: str) -> str:
        if self._output is not None:
            # Its last words may still be in the pipe; a grandchild could keep that open.
            await asyncio.wait([self._output], timeout=1.0)
        words = "\n".join(self._last_words)
        return f"{self.name} {what}" + (f":\n{words}" if words else "")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        rest = b""
        while process.stdout is not None and (data := await process.stdout.read(8192)):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines + ([rest] if len(rest) > 8192 else []):
                self._hear(line)
            rest = b"" if len(rest) > 8192 else rest
        if rest:
            self._hear(rest)

    def _hear(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last_words.append(text)
            _log.debug("%s: %s", self.name, text)

    async def _end(self) -> None:
        process, self.state = self._process, ChildState.DOWN
        if process is None:
            return
        try:
            if process.returncode is None:
                _send(process, signal.SIGTERM)
                try:
                    async with asyncio.timeout(self._stop_timeout):
                        await process.wait()
                except TimeoutError:
                    _log.error("%s did not end in %g s and is killed", self.name, self._stop_timeout)
        finally:
            if process.returncode is None:
                _send(process, signal.SIGKILL)
            await process.wait()
            await self._let_go(process)

    async def _let_go(self, process: asyncio.subprocess.Process) -> None:
        """Closes our ends of the pipes."""
        if process.stdin is not None:
            process.stdin.close()
            with suppress(OSError):
                await process.stdin.wait_closed()
        if self._output is not None:
            await asyncio.wait([self._output], timeout=1.0)
            self._output.cancel()
            await asyncio.wait([self._output])

    async def _watch(self) -> None:
        backoff = _BACKOFF_SECONDS
        while self._process is not None:
            since = time.monotonic()
            status = await self._process.wait()
            self.state = ChildState.RESTARTING
            await self._let_go(self._process)
            if time.monotonic() - since > _STEADY_SECONDS:
                backoff = _BACKOFF_SECONDS
            _log.error("%s", await self._obituary(f"ended with {status} and is started again"))
            while True:
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, _BACKOFF_MOST_SECONDS)
                try:
                    await self._spawn()
                    break
                except (ChildFailedError, OSError) as error:
                    self.state = ChildState.DOWN
                    _log.error("%s", error)
            _log.warning("%s is up again", self.name)
