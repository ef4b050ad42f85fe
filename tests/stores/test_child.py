from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memoryos_server.stores.child import Child
from tests.stores.embedded_fixtures import running


@pytest.fixture
def waited_for_by_the_loop() -> Iterator[None]:
    """Children are waited for in the loop, and not in a thread each: who is first is then no matter of chance."""
    if sys.version_info >= (3, 12):
        yield
        return
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    yield
    asyncio.set_child_watcher(None)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux's")
@pytest.mark.usefixtures("waited_for_by_the_loop")
async def test_start_when_it_is_given_up_and_the_child_ended_unnoticed_then_its_exit_status_is_left_to_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ready(pid: int) -> bool:
        os.kill(pid, signal.SIGKILL)
        while running(pid):
            time.sleep(0.01)  # noqa: ASYNC251 - the loop must not see it end
        raise asyncio.CancelledError

    command = [str(shutil.which("sleep")), "60"]
    with (tmp_path / "held").open("w") as held, caplog.at_level(logging.WARNING, "asyncio"):
        child = Child("sleeper", command, cwd=tmp_path, ready=ready, held=held.fileno(), changed=lambda: None)
        with pytest.raises(asyncio.CancelledError):
            await child.start()
    assert not caplog.records
