"""The table of who may call what, held against the protos."""

from __future__ import annotations

from memoryos import schema
from tests.rpc.authorisation import LINES


def test_table_when_held_against_the_protos_then_both_say_the_same_of_every_rpc() -> None:
    assert len({line.rpc for line in LINES}) == len(LINES)
    written = {line.rpc: (line.permission, line.whose) for line in LINES}
    declared = {method.name: (method.permission, method.whose) for method in schema.load()}
    # An RPC that is missing needs a line of its own, written from the contract and not from its proto.
    assert declared == written
