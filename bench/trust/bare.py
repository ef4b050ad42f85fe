"""The server with the trust plane taken out: the same process, stores and frame, without keys, limits, audit of reads and defense.

What it does not know it answers with a raw echo.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import grpc

from memoryos.schema import Method
from memoryos.settings import load
from memoryos_server import app
from memoryos_server.commands import serve
from memoryos_server.domain.core.caller import DEFAULT_TENANT, PERMISSIONS, Caller, set_caller
from memoryos_server.rpc.defense import Door
from memoryos_server.rpc.interceptors import Admission, Degraded, Faults, Telemetry, deadline
from memoryos_server.rpc.required import Required
from memoryos_server.rpc.wrap import Around, Before, Call, compose

_ANYBODY = Caller(DEFAULT_TENANT, permissions=PERMISSIONS, anonymous=True, any_tenant=True)


def frame(
    methods: Iterable[Method], *, metrics: Any, logger: Any, serving: Any, max_calls: int, **_trust: object
) -> Around:
    """`interceptors.standard` without the trust plane."""
    return compose(
        Telemetry(metrics, logger),
        Faults(logger),
        Admission(max_calls, metrics),
        deadline,
        Before(Degraded(serving)),
        Before(anybody),
        Before(Required(methods)),
    )


def anybody(call: Call) -> None:
    """Sets the same caller for every call: use cases ask for one."""
    call.caller = _ANYBODY
    set_caller(_ANYBODY)


class Echo(grpc.GenericRpcHandler):
    """Answers every method that does not exist with the bytes it got: a raw echo in the same process."""

    def __init__(self, *_: object) -> None:
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(self._echo)

    @staticmethod
    async def _echo(request: bytes, _context: object) -> bytes:
        return request

    def service(self, _details: object) -> grpc.RpcMethodHandler[Any, Any]:
        """Takes every method."""
        return self._handler


if __name__ == "__main__":
    with (
        patch.object(app, "standard", frame),
        patch.object(app, "UnknownMethods", Echo),
        patch.object(Door, "stop", lambda _self, _call: None),
    ):
        sys.exit(serve(load()))
