"""`memoryos up`: server and bridge as two supervised processes, stopped together.

It knows the two modules by name only and speaks to them by environment, exit code and signal. Exit code 2 means that
starting again will hardly help. A line `progress: ...` on a child's standard output is shown in place.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

import memoryos
from memoryos.addresses import authority, reachable, taken
from memoryos.certificates import itself
from memoryos.doctor import FAIL, check_parts, scheme
from memoryos.settings import PREFIX, Loaded, Settings, SettingsError, TlsSettings, known, value_of

# Runs between fork and the program, in an interpreter that loads next to nothing: on Linux the kernel then ends the
# program when the supervisor dies, however it dies. The second look at the parent closes the gap before the request.
_PARENTED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a process that died is started again: doubled each time."""
STEADY = 60.0
"""Seconds after which a process counts as well again."""
REFUSED = 2
"""The exit code of a process that would fail again, or whose predecessor's children still hold the data."""
REFUSALS = 3
"""How often in a row a process that once ran may refuse to."""
MARGIN = 10.0
"""Seconds a process gets beyond its own grace before it is killed."""


class StartFailedError(Exception):
    """A process ended before it was ever ready, or keeps refusing to run."""


class Screen:
    """What the user sees: lines, and at most one line of progress that is shown in place.

    Nothing here fails: who reads the output may leave (a closed terminal, `| head`), and the processes must run on.
    """

    def __init__(self, out: TextIO) -> None:
        """Writes to `out`."""
        self._out = out
        self._terminal = out.isatty()
        self._in_place = False

    def line(self, text: str) -> None:
        """A line that stays."""
        self._print(f"{self._clear()}{text}\n")

    def progress(self, text: str) -> None:
        """A line that the next one replaces; where there is no terminal, it stays."""
        if not self._terminal:
            self.line(f"memoryos: {text}")
            return
        self._print(f"{self._clear()}memoryos: {text}")
        self._in_place = True

    def _clear(self) -> str:
        """What wipes the line of progress."""
        in_place, self._in_place = self._in_place, False
        return "\r\x1b[K" if in_place else ""

    def _print(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except (OSError, ValueError):
            # Python flushes once more at its end, and would fail then.
            self._out = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process


@dataclass(frozen=True, slots=True)
class Program:
    """What is run.

    Attributes:
        name: For people.
        module: Run as `python -m`.
        grace: Seconds it may take to stop before it is killed.
    """

    name: str
    module: str
    grace: float


class Child:
    """One supervised process: started, watched, started again when it dies, stopped."""

    def __init__(self, program: Program, env: Mapping[str, str], screen: Screen) -> None:
        """Starts nothing yet."""
        self.program = program
        self.ready = False
        self._env = env
        self._screen = screen
        self._process: Process | None = None
        self._stopping = False

    async def keep(self) -> None:
        """Runs the process until `stop`.

        Raises:
            StartFailedError: It ended before it was ready for the first time, or keeps refusing to run.
        """
        pause, refusals = FIRST_PAUSE, 0
        while not self._stopping:
            started = time.monotonic()
            code = await self._run()
            if self._stopping:
                return
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            refusals = refusals + 1 if code == REFUSED else 0
            if not self.ready or refusals >= REFUSALS:
                raise StartFailedError(f"the {self.program.name} ended with {how}; what it said stands above")
            if time.monotonic() - started > STEADY:
                pause = FIRST_PAUSE
            self._screen.line(f"memoryos: the {self.program.name} ended with {how}; it is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _run(self) -> int:
        command = [sys.executable, "-m", self.program.module]
        # A session of its own: a Ctrl-C at the terminal reaches only the supervisor, which stops things in order.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-I", "-S", "-c", _PARENTED, str(os.getpid()), *command),
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101  # it was asked for
        while line := await _line(self._process.stdout):
            text = line.decode(errors="replace").rstrip()
            if text.startswith("progress: "):
                self._screen.progress(text.removeprefix("progress: "))
            else:
                self._screen.line(text)
        return await self._process.wait()

    async def stop(self, keeping: asyncio.Task[None]) -> None:
        """Asks the process to stop, kills it if it takes too long, and ends `keep`, which runs in `keeping`."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            done, _ = await asyncio.wait([keeping], timeout=self.program.grace)
            if not done:
                self._screen.line(f"memoryos: the {self.program.name} does not stop and is killed")
                self.kill()
                await asyncio.wait([keeping], timeout=5)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    def kill(self) -> None:
        """Ends the process and all it started, at once."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line, b"" at the end; one that is too long comes in pieces."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as rest:
        return rest.partial
    except asyncio.LimitOverrunError as over:
        return await stream.readexactly(over.consumed)


def environment(
    loaded: Loaded, config: str | None, environ: Mapping[str, str], *, quiet: bool = False
) -> dict[str, str]:
    """The environment that gives both processes the settings `loaded` holds, and one secret between them.

    With `quiet` they log warnings only, unless a level is set: on a terminal a line per call would bury everything else.
    """
    by_name = {item.name: item for item in known(environ)}
    names = {item.env for item in by_name.values()} | {f"{item.env}_FILE" for item in by_name.values()}
    # Names that are no settings have been warned of once, here.
    env = {k: v for k, v in environ.items() if not k.startswith(PREFIX) or k in names or k == f"{PREFIX}CONFIG"}
    if config:
        env[f"{PREFIX}CONFIG"] = config
    for name, source in loaded.sources.items():
        if source.startswith("flag "):
            value = value_of(loaded.settings, name)
            env[by_name[name].env] = ",".join(value) if isinstance(value, tuple) else str(value)
    if quiet and loaded.sources["log.level"] == "default":
        env[by_name["log.level"].env] = "warning"
    if not loaded.settings.bridge.secret:
        env[by_name["bridge.secret"].env] = secrets.token_hex(32)
    return env


def check_free(settings: Settings) -> None:
    """Looks whether all addresses are free: else another MemoryOS there could be taken for this one's readiness.

    Raises:
        SettingsError: One is not, or is malformed; the message names the setting.
    """
    server, bridge = settings.server, settings.bridge
    for name, address in (
        ("server.listen", server.listen),
        ("bridge.listen", bridge.listen),
        ("server.metrics_listen", server.metrics_listen),
    ):
        if not address or address.startswith("unix:"):
            continue
        if problem := taken(*reachable(address, name)):
            flag = "--" + name.replace(".", "-").replace("_", "-")
            raise SettingsError(
                f"{name}: cannot listen on {address}: {problem}; if that is another MemoryOS (`memoryos doctor` "
                f"tells), stop it, or choose another address with {flag} HOST:PORT"
            )


async def _listens(address: str) -> bool:
    """Whether somebody listens there; until then asking the bridge would only fill its log."""
    try:
        async with asyncio.timeout(3):
            if address.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
            else:
                _, writer = await asyncio.open_connection(*reachable(address, "server.listen"))
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def _is_ready(host: str, port: int, tls: TlsSettings) -> bool:
    """Whether `GET /health/ready` answers 200; never takes longer than 3 s.

    Of a bridge that asks for certificates, which the supervisor has none of, it is only whether it takes connections.
    """
    if tls.client_ca_file:
        return await _listens(authority(host, port))
    try:
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(host, port, ssl=itself() if tls.cert_file else None)
            try:
                request = f"GET /health/ready HTTP/1.1\r\nHost: {authority(host, port)}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status = await reader.readline()
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
    return status.split()[1:2] == [b"200"]


def welcome(loaded: Loaded) -> str:
    """What is printed once everything is ready."""
    settings = loaded.settings
    url = f"{scheme(settings)}://{authority(*reachable(settings.bridge.listen, 'bridge.listen'))}"
    key = "" if not settings.auth.enabled else ' -H "Authorization: Bearer $MEMORYOS_API_KEY"'
    who = "every call needs an API key" if settings.auth.enabled else "off: whoever reaches these addresses may do all"
    server = settings.server.listen
    if not server.startswith("unix:"):
        server = authority(*reachable(server, "server.listen"))
    where = "given by setting" if settings.security.master_key else settings.security.key_dir
    return "\n".join(
        [
            f"MemoryOS {memoryos.__version__} is ready.",
            f"  REST and OpenAI API  {url}  (documentation: {url}/docs)",
            f"  gRPC                 {server}",
            f"  data                 {settings.data_dir}",
            f"  master key           {where}",
            f"  auth                 {who}",
            "Try:",
            f"  curl {url}/v1/memory/add{key} -H 'Content-Type: application/json' \\",
            """    -d '{"user_id": "ann", "role": "user", "content": "I take my coffee black."}'""",
            "Ctrl-C stops it. `--log-level info` shows every call.",
        ]
    )


class Supervisor:
    """Both processes, from start to stop."""

    def __init__(self, loaded: Loaded, env: Mapping[str, str], screen: Screen) -> None:
        """Starts nothing yet."""
        settings = loaded.settings
        self._loaded = loaded
        self._screen = screen
        self._health = reachable(settings.bridge.listen, "bridge.listen")
        server_grace = settings.server.drain_seconds + settings.server.grace_seconds + MARGIN
        self._server = Child(Program("server", "memoryos_server", server_grace), env, screen)
        bridge_grace = settings.bridge.grace_seconds + MARGIN
        self._bridge = Child(Program("bridge", "memoryos_bridge", bridge_grace), env, screen)
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Runs both until a signal; the exit code: 0 stopped as asked, 1 one could not run."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it for SIGHUP
                loop.add_signal_handler(number, self._on_signal)
        server = asyncio.create_task(self._server.keep())
        bridge = asyncio.create_task(self._bridge.keep())
        announcing = asyncio.create_task(self._announce())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({server, bridge, stopping}, return_when=asyncio.FIRST_COMPLETED)
            # Whoever ended, ended badly, unless it is `stopping`; the reason is kept before the others are stopped.
            failed = [task.exception() for task in (server, bridge) if task.done()]
        finally:
            for task in (announcing, stopping):
                task.cancel()
            await asyncio.gather(announcing, stopping, return_exceptions=True)
            await self._bridge.stop(bridge)
            await self._server.stop(server)
        for error in failed:
            self._screen.line(f"memoryos: {error}")
        return 1 if failed else 0

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._stop.set()
            self._screen.line("memoryos: stopping; once more to kill")
        else:
            self._bridge.kill()
            self._server.kill()

    async def _announce(self) -> None:
        """Says once when everything is ready."""
        while not await _listens(self._loaded.settings.server.listen):  # noqa: ASYNC110  # as below
            await asyncio.sleep(0.1)
        while not await _is_ready(*self._health, self._loaded.settings.bridge.tls):  # noqa: ASYNC110  # another process cannot set an event
            await asyncio.sleep(0.1)
        self._server.ready = self._bridge.ready = True
        self._screen.line(welcome(self._loaded))


def main(loaded: Loaded, config: str | None) -> int:
    """Runs both processes until they are told to stop; the exit code.

    Args:
        loaded: The settings.
        config: The settings file named on the command line, or None.
    """
    if missing := [finding for finding in check_parts() if finding.state == FAIL]:
        for finding in missing:
            print(f"memoryos: the {finding.name} is {finding.text}; {finding.hint}", file=sys.stderr)
        return 1
    env = environment(loaded, config, os.environ, quiet=sys.stderr.isatty())
    if sys.stderr.isatty() and loaded.settings.log.format == "auto":
        env[f"{PREFIX}LOG__FORMAT"] = "text"
    try:
        check_free(loaded.settings)
    except SettingsError as error:
        print(f"memoryos: {error}", file=sys.stderr)
        return 2
    return asyncio.run(Supervisor(loaded, env, Screen(sys.stdout)).run())
