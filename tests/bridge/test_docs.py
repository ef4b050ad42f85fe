from __future__ import annotations

import re
from typing import Any

import httpx
from fastapi.openapi.models import OpenAPI

from memoryos import schema
from memoryos_bridge.codec import Codec
from memoryos_bridge.openapi import comments, document
from tests.bridge.conftest import ALL


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for inner in value.values() for ref in references(inner)]
    return [ref for inner in value for ref in references(inner)] if isinstance(value, list) else []


def test_openapi_when_made_then_valid_and_every_reference_leads_somewhere() -> None:
    made = document(schema.load(ALL), Codec())
    OpenAPI.model_validate(made)
    assert references(made)
    for ref in references(made):
        found: Any = made
        for part in ref.removeprefix("#/").split("/"):
            found = found[part]
    ids = [op["operationId"] for verbs in made["paths"].values() for op in verbs.values()]
    assert len(ids) == len(set(ids))


def test_openapi_when_made_then_every_route_is_in_it() -> None:
    methods = schema.load(ALL)
    paths = document(methods, Codec())["paths"]
    for method in methods:
        for route in method.routes:
            assert route.verb.lower() in paths[route.template]


def test_openapi_when_a_method_declares_options_then_they_show() -> None:
    made = document(schema.load(ALL), Codec())
    thing = made["paths"]["/v1/scratch/things"]
    assert thing["post"]["responses"]["200"]["content"]["application/json"]["schema"]["allOf"][0]["required"] == [
        "status",
        "message",
    ]
    body = thing["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    request = made["components"]["schemas"][body]
    assert request["required"] == ["name"]
    assert request["additionalProperties"] is False
    assert set(request["properties"]) >= {"config", "from"}
    assert request["properties"]["kind"]["enum"] == ["big_one", "Faq"]
    query = {p["name"]: p["schema"] for p in thing["get"]["parameters"] if p.get("in") == "query"}
    assert query["tags"]["type"] == "array"
    assert query["page"]["minimum"] == 0
    assert made["paths"]["/v1/scratch/things/{id}/start"]["put"]["responses"].keys() == {"202", "default"}
    assert made["paths"]["/v1/scratch/probe"]["get"]["responses"].keys() == {"200", "503", "default"}
    saved = made["paths"]["/v1/scratch/things/saved"]["get"]["responses"]["200"]["content"]["application/json"]
    assert saved["schema"]["type"] == "array"
    assert made["paths"]["/health"]["get"]["security"] == []
    assert "security" not in thing["post"]


def test_comments_when_read_then_every_service_method_and_field_has_one() -> None:
    texts = comments()
    for method in schema.load():
        assert texts[f"{method.service}.{method.name}"].startswith(method.name)
        for message in (method.descriptor.input_type, method.descriptor.output_type):
            assert all(field.full_name in texts for field in message.fields)


async def test_docs_when_opened_then_everything_it_names_is_served_from_here(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    named = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert len(named) >= 4
    for url in named:
        assert url.startswith("/"), url
        assert (await http.get(url)).status_code == 200, url
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert '"validatorUrl": null' in page.text
    for name in ("redoc.standalone.js", "..%2fcore.py", "nothing"):
        assert (await http.get(f"/docs/{name}")).status_code == 404
