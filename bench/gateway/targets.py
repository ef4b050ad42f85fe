"""What is measured, each in processes of its own on one core: the provider itself, the pass-through, LiteLLM's proxy, ours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.system import System, free_port

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")
MEMORY_OFF = {"X-MemoryOS-Memory": "off"}


@dataclass(frozen=True)
class Target:
    """Something that answers chats.

    Attributes:
        name: As the table shows it.
        address: `host:port`.
        pids: Its processes by name; those of the stores are not among them.
        headers: Sent along with each call.
    """

    name: str
    address: str
    pids: Mapping[str, int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def processor(self) -> float:
        """The processor time that it has taken, in seconds."""
        total = 0
        for pid in self.pids.values():
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK

    def resident(self) -> dict[str, float]:
        """What each process holds resident, in MiB."""
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        return {n: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for n, pid in self.pids.items()}


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within stays on a core; we ourselves go back to where we were."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_port(port: int, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Waits until somebody listens.

    Raises:
        SystemExit: the process ended, or it took too long.
    """
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"bench.gateway: it does not start: {process.args!r}")


@contextmanager
def started(command: Sequence[str], port: int, core: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens."""
    with on_core(core):
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=subprocess.DEVNULL)
    try:
        wait_port(port, process)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def provider(core: int) -> Iterator[Target]:
    """The provider, which is also what all others are compared with."""
    port = free_port()
    with started([sys.executable, "-m", "bench.gateway.provider", str(port)], port, core):
        yield Target("provider itself", f"127.0.0.1:{port}")


@contextmanager
def passthrough(upstream: str, core: int) -> Iterator[Target]:
    """The bare pass-through."""
    port = free_port()
    command = [sys.executable, "-m", "bench.gateway.passthrough", str(port), f"http://{upstream}/v1"]
    with started(command, port, core) as process:
        yield Target("pass-through", f"127.0.0.1:{port}", {"it": process.pid})


@contextmanager
def litellm(python: str, upstream: str, home: Path, core: int) -> Iterator[Target]:
    """LiteLLM's proxy, from an environment of its own, with one worker and no database."""
    port = free_port()
    config = home / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: fake\n"
        f"    litellm_params: {{model: openai/fake, api_base: 'http://{upstream}/v1', api_key: none}}\n"
        "litellm_settings: {telemetry: false}\n"
        "general_settings: {dangerously_permit_weak_or_unset_master_key: true}\n"  # nor do we look at keys here
    )
    command = [str(Path(python).with_name("litellm")), "--config", str(config), "--host", "127.0.0.1"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with started([*command, "--port", str(port), "--num_workers", "1"], port, core, **quiet) as process:
        yield Target("LiteLLM", f"127.0.0.1:{port}", {"proxy": process.pid})


@contextmanager
def ours(upstream: str, home: Path, core: int) -> Iterator[tuple[System, Target]]:
    """Server and bridge, on one core with their stores."""
    settings = {"OPENAI_BASE_URL": f"http://{upstream}/v1", "OPENAI_API_KEY": "k"}
    with on_core(core):
        system = System(home, settings).start()
    try:
        assert system.server is not None
        assert system.bridge is not None
        pids = {"bridge": system.bridge.pid, "server": system.server.pid}
        yield system, Target("ours", system.http, pids, MEMORY_OFF)
    finally:
        system.__exit__()
