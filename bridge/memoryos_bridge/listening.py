"""What a listening socket does for its connections: cuts off who reads nothing, and lets nobody down when it closes.

Connections that wait in its queue when it closes are reset, and no order of accepting and closing rules out that one has
just come. So newcomers are kept out first: the kernel drops the packets that ask for a connection, whoever is in the
queue is let in, and only then the socket closes. Who asked meanwhile asks again after a second, and is refused then.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26

_FLAGS_OFFSET = 13
"""Of the byte of flags in a TCP header (RFC 9293, section 3.1), where a filter of a TCP socket begins to count."""

_SYN = 0x02

# Classic BPF (Linux, Documentation/networking/filter.rst): code, jump if true, jump if false, operand.
_NO_NEWCOMERS = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, _FLAGS_OFFSET),  # load the byte of flags
        (0x45, 0, 1, _SYN),  # is SYN set?
        (0x06, 0, 0, 0),  # yes: drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # no: keep all of it
    )
)


def cut_off_idle_readers(descriptor: int, seconds: float) -> bool:
    """Lets the kernel end connections, of a listening TCP socket, whose other side takes nothing of what is sent to it.

    Without it, whoever asks and does not read holds an answer in memory for ever.

    Args:
        descriptor: The socket's file descriptor; connections that it accepts from now on inherit the time.
        seconds: For how long data may lie unsent or unconfirmed.

    Returns:
        Whether it is so: only Linux can.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None or not seconds:
        return False
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, option, max(1, round(seconds * 1000)))
    return True


def keep_newcomers_out(descriptor: int) -> bool:
    """Lets a listening TCP socket take no more connections but those that are in its queue or amid their handshake.

    Args:
        descriptor: The socket's file descriptor. It stays open, and the filter goes with the socket.

    Returns:
        Whether it is so: only Linux can, and a sandbox may forbid it.
    """
    if sys.platform != "linux":
        return False
    code = ctypes.create_string_buffer(_NO_NEWCOMERS, len(_NO_NEWCOMERS))
    program = struct.pack("@HP", len(_NO_NEWCOMERS) // 8, ctypes.addressof(code))
    # A socket of our own on a copy of the descriptor: the event loop's does not let options be set.
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        except OSError:
            return False
    return True
