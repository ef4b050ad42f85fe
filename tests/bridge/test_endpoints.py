from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from memoryos import schema
from memoryos.settings import Settings
from memoryos_bridge.app import entries
from memoryos_bridge.binding import Binding
from memoryos_bridge.codec import Codec
from memoryos_bridge.headers import Forwarding
from memoryos_bridge.metrics import Metrics
from memoryos_bridge.remote import Remote
from memoryos_bridge.scalars import Misfit
from tests.bridge.conftest import run_system
from tests.bridge.endpoints import ADDED, ENDPOINTS, Endpoint, Maybe, Text, misfits


def shape(verb: str, path: str) -> tuple[str, str]:
    return verb, re.sub(r"\{[^}]*\}", "{}", path)


async def served() -> set[tuple[str, str]]:
    remote = Remote("127.0.0.1:1", Settings().server.max_message_bytes)
    try:
        made = entries(schema.load(), remote, Forwarding("", ()), Metrics())
    finally:
        await remote.close()
    return {shape(entry.verb, entry.template) for entry in made}


def test_table_when_counted_then_it_holds_the_sixty_documented_endpoints() -> None:
    assert [e.number for e in ENDPOINTS] == list(range(1, 61))
    assert len({shape(e.verb, e.path) for e in ENDPOINTS}) == 60


async def test_routes_when_served_then_each_is_documented_or_listed_as_added() -> None:
    known = {shape(e.verb, e.path) for e in ENDPOINTS} | {shape(*route) for route in ADDED}
    assert await served() - known == set()


async def test_routes_when_built_then_served_and_when_served_then_marked_built() -> None:
    routes = await served()
    assert {shape(*route) for route in ADDED} <= routes
    for endpoint in ENDPOINTS:
        assert (shape(endpoint.verb, endpoint.path) in routes) == endpoint.built, endpoint.path


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.built and e.request], ids=lambda e: e.path)
def test_request_when_built_then_the_documented_example_is_read(endpoint: Endpoint) -> None:
    codec = Codec()
    for method in schema.load():
        for route in method.routes:
            if shape(route.verb, route.template) == shape(endpoint.verb, endpoint.path) and not method.rest.custom:
                binding = Binding(codec, method, route)
                message = method.request_class()
                codec.of(method.descriptor.input_type).fill(message, endpoint.request)
                assert {field.name for field in binding.body} >= set(endpoint.request)
                with pytest.raises(Misfit):
                    codec.of(method.descriptor.input_type).fill(message, endpoint.request | {"no_such_field": 1})


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.built], ids=lambda e: e.path)
def test_answer_when_built_then_its_message_has_every_documented_field(endpoint: Endpoint) -> None:
    from memoryos_bridge.openapi import document

    paths = document(schema.load(), Codec())
    found = {shape(v.upper(), p): op for p, verbs in paths["paths"].items() for v, op in verbs.items()}
    operation = found[shape(endpoint.verb, endpoint.path)]
    if isinstance(endpoint.answer, Text) or endpoint.path == "/v1/chat/completions":
        return
    answer = operation["responses"][str(endpoint.status)]["content"]["application/json"]["schema"]
    assert missing(answer, endpoint.answer, paths["components"]["schemas"], "answer") == []


def missing(schema_: dict[str, Any], documented: Any, components: dict[str, Any], where: str) -> list[str]:
    """The documented fields that a JSON Schema lacks."""
    if "$ref" in schema_:
        schema_ = components[schema_["$ref"].rpartition("/")[2]]
    if isinstance(documented, Maybe):
        documented = documented.shape
    if isinstance(documented, list):
        if schema_.get("type") != "array":
            return [f"{where} is no array"]
        return missing(schema_["items"], documented[0], components, f"{where}[]")
    if isinstance(documented, dict):
        parts = [
            components[p["$ref"].rpartition("/")[2]] if "$ref" in p else p for p in schema_.get("allOf", [schema_])
        ]
        properties = {k: v for part in parts for k, v in part.get("properties", {}).items()}
        found = [f"{where}.{name} is missing" for name in documented if name not in properties]
        return found + [
            miss
            for name, inner in documented.items()
            if name in properties
            for miss in missing(properties[name], inner, components, f"{where}.{name}")
        ]
    return []


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with run_system() as system:
        yield system.http


async def test_answer_when_public_and_served_by_the_scratch_server_then_it_fits(http: httpx.AsyncClient) -> None:
    for endpoint in ENDPOINTS[:5]:
        answer = await http.request(endpoint.verb, endpoint.path)
        assert answer.status_code == endpoint.status
        if isinstance(endpoint.answer, Text):
            assert answer.headers["content-type"].startswith(endpoint.answer.content_type)
            assert endpoint.answer.holds in answer.text
        else:
            assert misfits(answer.json(), endpoint.answer) == []


def test_misfits_when_a_value_is_wrong_then_said_where() -> None:
    assert misfits({"a": [{"b": 1}]}, {"a": [{"b": str}]}) == ["answer.a[0].b: 1 is no str"]
    assert misfits({"a": True}, {"a": int}) == ["answer.a: True is no int"]
    assert misfits({}, {"a": int, "b": Maybe(int)}) == ["answer.a is missing"]
    assert misfits({"a": 1, "c": 2}, {"a": float}) == []
