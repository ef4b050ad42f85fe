"""`memoryos up` as a real process, for tests of the command and of the README."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.system import System


class Up:
    """`memoryos up` as a real process."""

    def __init__(self, home: Path) -> None:
        self.system = System(home)  # its environment: free ports, folders of their own
        self.system.env.pop("MEMORYOS_BRIDGE__SECRET")
        self.log = home / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, out: int | None = None) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "memoryos.cli", "up", *arguments],
                env=self.system.env,
                cwd=self.system.home,
                stdout=log if out is None else out,
                stderr=log if out is None else out,
                start_new_session=True,
            )
        return self.process

    def text(self) -> str:
        return self.log.read_text()

    def wait(self, what: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)

    def ready(self) -> Up:
        assert self.process is not None
        self.wait(lambda: "is ready." in self.text() or self.process.poll() is not None)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.text()
        return self

    def part(self, module: str) -> int:
        """The pid of a running part, 0 if there is none."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
                environ = (folder / "environ").read_bytes()
            except OSError:
                continue
            mine = f"MEMORYOS_SERVER__LISTEN={self.system.grpc}".encode() in environ
            if mine and command[1:3] == [b"-m", module.encode()]:
                return int(folder.name)
        return 0

    def alive(self) -> list[str]:
        """All processes that have this system's environment, the children of the server included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environ = (folder / "environ").read_bytes()
                if f"MEMORYOS_SERVER__LISTEN={self.system.grpc}".encode() in environ:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found

    def stop(self) -> None:
        """Stops it as an operator would."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
