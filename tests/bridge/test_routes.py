from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from memoryos import schema
from memoryos_bridge.admission import Admission
from memoryos_bridge.metrics import Metrics
from memoryos_bridge.routes import Entry, RouteTable
from memoryos_server.domain.ports import ApiKey
from tests.bridge.conftest import System, run_bridge, run_system
from tests.scratch.serve import MemoryKeys


async def make(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post("/v1/scratch/things", json={"name": "a"} | fields)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()["error"]
    assert set(found) == {"type", "message", "details", "code", "param"}
    return found


async def test_post_when_envelope_is_status_ok_then_status_and_message_come_first(http: httpx.AsyncClient) -> None:
    made = await make(
        http, name="lamp", owner="Bob Ä", config={"n": 10**30}, **{"from": "x"}, sizes={"s": 1}, live=True
    )
    assert list(made)[:2] == ["status", "message"]
    assert made["status"] == "ok"
    assert made["message"] == "Thing lamp made for Bob Ä"
    assert made["config"] == {"n": 10**30}
    assert made["from"] == "x"
    assert made["sizes"] == {"s": 1}
    assert made["live"] is True
    assert "weight" not in made
    assert made["error"] is None


async def test_get_when_envelope_is_success_data_then_wrapped(http: httpx.AsyncClient) -> None:
    made = await make(http, owner="bob")
    answer = await http.get(f"/v1/scratch/things/{made['id']}", params={"owner": "bob"})
    assert answer.json()["success"] is True
    assert list(answer.json()) == ["success", "data"]
    assert answer.json()["data"]["id"] == made["id"]


async def test_get_when_it_has_another_binding_then_that_path_works_too(http: httpx.AsyncClient) -> None:
    owner = "a/b %ü?#"
    made = await make(http, owner=owner)
    path = f"/v1/scratch/owners/a%2Fb%20%25%C3%BC%3F%23/things/{made['id']}"
    answer = await http.get(path)
    assert answer.json()["data"]["owner"] == owner


async def test_get_when_a_literal_stands_beside_a_parameter_then_the_literal_wins_and_the_answer_is_bare(
    http: httpx.AsyncClient,
) -> None:
    made = await make(http)
    answer = await http.get("/v1/scratch/things/saved")
    assert [thing["id"] for thing in answer.json()] == [made["id"]]


async def test_get_when_envelope_is_success_then_fields_stand_beside(http: httpx.AsyncClient) -> None:
    answer = await http.get("/v1/scratch/things")
    assert answer.json() == {"success": True, "things": [], "total": 0}


async def test_query_when_typed_then_each_parameter_is_read_by_its_field(http: httpx.AsyncClient) -> None:
    await make(http, name="x", kind="Faq", weight=2.5, tags=["a", "b c"])
    await make(http, name="y", kind="Faq", weight=1, tags=["a"])
    answer = await http.get("/v1/scratch/things?kind=faq&tags=a&tags=b+c&min_weight=2e0&page=1")
    assert [thing["name"] for thing in answer.json()["things"]] == ["x"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("nope=1", "nope"),
        ("page=x", "page"),
        ("page=", "page"),
        ("page=-1", "page"),
        ("page=1.5", "page"),
        ("page=1&page=2", "page"),
        ("kind=huge", "kind"),
        ("min_weight=inf", "min_weight"),
        ("min_weight=nan", "min_weight"),
        ("min_weight=0x1", "min_weight"),
        ("tags=%FF", None),
    ],
)
async def test_query_when_malformed_then_400_names_it(http: httpx.AsyncClient, query: str, param: str | None) -> None:
    found = error(await http.get(f"/v1/scratch/things?{query}"), 400)
    assert found["param"] == param
    assert found["code"] == "invalid_argument"


async def test_query_when_the_body_takes_all_then_400(http: httpx.AsyncClient) -> None:
    assert error(await http.post("/v1/scratch/things?name=a", json={}), 400)["param"] == "name"


async def test_query_when_bool_then_read(http: httpx.AsyncClient) -> None:
    made = await make(http, owner="bob")
    url = f"/v1/scratch/things/{made['id']}?owner=bob&loud="
    assert (await http.get(url + "true")).status_code == 200
    assert error(await http.get(url + "yes"), 400)["param"] == "loud"


async def test_patch_when_body_names_fields_then_the_mask_names_them(http: httpx.AsyncClient) -> None:
    made = await make(http, name="a", weight=1)
    answer = await http.patch(f"/v1/scratch/things/{made['id']}", json={"weight": 2, "name": None})
    data = answer.json()["data"]
    assert data["error"] == "weight"
    assert (data["name"], data["weight"]) == ("a", 2)


async def test_patch_when_body_repeats_the_id_then_only_the_same_is_taken(http: httpx.AsyncClient) -> None:
    made = await make(http)
    answer = await http.patch(f"/v1/scratch/things/{made['id']}", json={"id": made["id"], "name": "b"})
    assert answer.json()["data"]["error"] == "name"
    found = error(await http.patch(f"/v1/scratch/things/{made['id']}", json={"id": "other", "name": "b"}), 400)
    assert found["param"] == "id"


@pytest.mark.parametrize("body", [{"update_mask": "name"}, {"kind": "faq"}, {"colour": 1}])
async def test_patch_when_body_names_what_cannot_change_then_400(http: httpx.AsyncClient, body: Any) -> None:
    made = await make(http)
    answer = await http.patch(f"/v1/scratch/things/{made['id']}", json=body)
    assert error(answer, 400)["param"] == next(iter(body))
    assert answer.json()["success"] is False


@pytest.mark.parametrize("body", [None, {}])
async def test_patch_when_body_names_nothing_then_the_server_refuses(http: httpx.AsyncClient, body: Any) -> None:
    made = await make(http)
    error(await http.request("PATCH", f"/v1/scratch/things/{made['id']}", json=body), 400)


async def test_delete_when_the_field_comes_in_body_or_query_then_taken(http: httpx.AsyncClient) -> None:
    for how in ({"json": {"kind": "big_one"}}, {"params": {"kind": "BigOne"}}):
        await make(http, kind="big_one")
        answer = await http.request("DELETE", "/v1/scratch/things", **how)  # type: ignore[arg-type]
        assert answer.json() == {"success": True, "data": {"deleted": 1}}


async def test_delete_when_the_field_comes_nowhere_or_twice_then_400(http: httpx.AsyncClient) -> None:
    assert error(await http.delete("/v1/scratch/things"), 400)["param"] == "kind"
    answer = await http.request("DELETE", "/v1/scratch/things?kind=faq", json={"kind": "faq"})
    assert error(answer, 400)["param"] == "kind"


async def test_put_when_body_is_one_field_then_the_body_is_its_value(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/scratch/things/t1/start", json={"fast": True})
    assert answer.status_code == 202
    assert answer.json()["message"] == "Thing started"
    assert (answer.json()["id"], answer.json()["live"]) == ("t1", True)
    assert (await http.put("/v1/scratch/things/t1/start")).json()["live"] is False
    assert error(await http.put("/v1/scratch/things/t1/start", json={"slow": 1}), 400)["param"] == "slow"


async def test_status_when_a_field_has_the_value_then_that_status(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/scratch/probe")).status_code == 200
    answer = await http.get("/v1/scratch/probe?state=tired")
    assert (answer.status_code, answer.json()["state"]) == (503, "tired")


async def test_unreachable_when_an_answer_is_declared_then_given_else_503() -> None:
    async with run_bridge("127.0.0.1:1") as bridge:
        answer = await bridge.client.get("/v1/scratch/probe")
        assert answer.status_code == 503
        assert answer.json()["state"] == "tired"
        assert answer.json()["at"].endswith("Z")
        live = await bridge.client.get("/health/live")
        assert (live.status_code, live.json()["status"]) == (200, "ok")
        status = await bridge.client.get("/health/status")
        assert (status.status_code, status.json()) == (503, {"mode": "not_ready", "redis": "down", "qdrant": "down"})
        found = error(await bridge.client.get("/v1/scratch/things"), 503)
        assert (found["type"], found["code"]) == ("ServiceUnavailable", "server_unavailable")
        assert (await bridge.client.get("/metrics")).text.startswith("# HELP memoryos_bridge_requests")


async def test_head_when_get_exists_then_head_only(http: httpx.AsyncClient) -> None:
    answer = await http.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(b'{"status":"ok"}')


async def test_method_when_the_route_takes_others_then_405_lists_them(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/scratch/things")
    assert error(answer, 405)["type"] == "MethodNotAllowed"
    assert answer.headers["allow"] == "DELETE, GET, HEAD, POST"
    answer = await http.delete("/v1/scratch/things/saved")
    assert answer.headers["allow"] == "GET, HEAD, PATCH"


async def test_method_when_the_others_say_success_then_405_says_that_there_was_none(http: httpx.AsyncClient) -> None:
    answer = await http.put("/v1/scratch/things/1")
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert answer.json()["success"] is False
    assert "success" not in (await http.put("/v1/scratch/fail/1")).json()
    assert "success" not in (await http.post("/v1/scratch/things/1/start")).json()


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/scratch/things/", "/v1/scratch/owners//things/1", "/V1/scratch/things"]
)
async def test_path_when_unknown_then_404(http: httpx.AsyncClient, path: str) -> None:
    found = error(await http.get(path), 404)
    assert (found["type"], found["code"]) == ("NotFound", "not_found")


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_argument"),
        (b"[]", "application/json", 400, "invalid_argument"),
        (b"null", "application/json", 400, "invalid_argument"),
        (b'"x"', "application/json", 400, "invalid_argument"),
        (b"\xff\xfe", "application/json", 400, "invalid_argument"),
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{}", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type"),
        (b"{}", None, 415, "unsupported_media_type"),
    ],
)
async def test_body_when_it_is_no_json_object_then_refused(
    http: httpx.AsyncClient, content: bytes, kind: str | None, status: int, code: str
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = await http.post("/v1/scratch/things", content=content, headers=headers)
    assert error(answer, status)["code"] == code


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", "Application/JSON", "application/vnd.x+json"])
async def test_body_when_it_says_json_in_another_way_then_taken(http: httpx.AsyncClient, kind: str) -> None:
    answer = await http.post("/v1/scratch/things", content=b'{"name":"a"}', headers={"content-type": kind})
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_when_over_the_routes_limit_then_413(http: httpx.AsyncClient, chunked: bool) -> None:
    body = b'{"note":"' + b"x" * 1000 + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    headers = {"content-type": "application/json"}
    answer = await http.post("/v1/scratch/export", content=chunks() if chunked else body, headers=headers)
    found = error(answer, 413)
    assert (found["type"], found["code"]) == ("PayloadTooLarge", "too_large")
    assert "1000" in found["message"]


async def test_body_when_twelve_megabytes_then_413_still_reaches_the_client(http: httpx.AsyncClient) -> None:
    body = b'{"name":"' + b"x" * (12 << 20) + b'"}'
    answer = await http.post("/v1/scratch/things", content=body, headers={"content-type": "application/json"})
    error(answer, 413)


def test_table_when_two_entries_have_one_route_then_refused() -> None:
    async def nothing(*_: Any) -> None: ...

    with pytest.raises(schema.SchemaError):
        RouteTable([Entry("GET", "/a/{x}", nothing)] * 2, nothing, Admission(0, 1.0, lambda _: "", Metrics()))


async def test_log_when_served_then_one_line_by_template_without_path(system: System) -> None:
    await system.http.get("/v1/scratch/things/secret-key-abc", headers={"x-request-id": "r1"})
    await system.http.get("/secret-key-abc")
    lines = system.bridge.lines()
    assert [line["route"] for line in lines] == ["/v1/scratch/things/{id}", "unmatched"]
    assert lines[0]["request_id"] == "r1"
    assert lines[0]["status"] == 404
    assert lines[0]["code"] == "not_found"
    assert b"secret-key-abc" not in system.bridge.log.getvalue()
    text = (await system.http.get("/metrics")).text
    assert "secret-key-abc" not in text
    assert 'memoryos_bridge_requests_total{code="404",method="GET",route="/v1/scratch/things/{id}"} 1.0' in text
    assert "memoryos_rpc_requests_total" in text


async def test_auth_when_two_users_ask_then_each_sees_only_his_own() -> None:
    def key(user: str) -> ApiKey:
        return ApiKey(f"key_{user}", user, "default", frozenset({"memory"}), "", datetime.now(UTC), None)

    keys = MemoryKeys({"alice-key": key("alice"), "bob-key": key("bob")})
    async with run_system(auth_enabled=True, admin_key="the-admin-key", keys=keys) as system:
        alice, bob = ({"authorization": f"Bearer {name}-key"} for name in ("alice", "bob"))
        made = (await system.http.post("/v1/scratch/things", json={"name": "a"}, headers=alice)).json()
        assert made["owner"] == "alice"
        path = f"/v1/scratch/things/{made['id']}"
        assert (await system.http.get(path, headers=alice)).status_code == 200
        answer = await system.http.get(path, headers=bob)
        assert error(answer, 404)["code"] == "not_found"
        assert answer.json()["success"] is False
        answer = await system.http.get(path, headers=bob | {"x-user-id": "alice"})
        assert "act_as" in error(answer, 403)["message"]
        answer = await system.http.get(path)
        assert error(answer, 401)["type"] == "Unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert error(await system.http.post("/v1/scratch/admin", json={}, headers=bob), 403)["type"] == "Forbidden"
        assert (await system.http.get("/health")).status_code == 200
