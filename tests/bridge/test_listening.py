"""A listening socket that is about to close lets in whoever waits, and nobody else."""

from __future__ import annotations

import socket
import sys

import pytest

from memoryos_bridge.listening import keep_newcomers_out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters packets per socket")
def test_listener_when_newcomers_are_kept_out_then_those_in_its_queue_are_served_and_none_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        waiting = [socket.create_connection(address) for _ in range(3)]
        assert keep_newcomers_out(listener.fileno())
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        for client in waiting:
            client.sendall(b"question")
            served, _ = listener.accept()
            with served, client:
                assert served.recv(100) == b"question"
                served.sendall(b"answer")
                assert client.recv(100) == b"answer"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
