"""Memory management through the whole system: what the documentation shows, over REST and gRPC."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

import pytest

from memoryos import AsyncClient, Client
from memoryos.errors import InvalidArgument, NotFound
from memoryos.segments import StoredSegment
from tests.bridge.endpoints import TIME
from tests.system import System

MANAGE = "/v1/memory/manage"


def a_user() -> str:
    return f"u-{uuid.uuid4()}"


def bring(system: System, user: str, *segments: dict[str, Any], tenant: str = "default") -> dict[str, Any]:
    body = {"user_id": user, "segments": list(segments)}
    # Ten thousand are embedded; a slow machine with much else to do needs over half a minute for that.
    status, answer, _ = system.call("POST", f"{MANAGE}/import", body, {"X-Tenant-ID": tenant}, timeout=120)
    assert status == 200, answer
    return dict(answer)


def export(system: System, user: str, *, tenant: str = "default", form: str = "json") -> Any:
    status, answer, headers = system.post(
        f"{MANAGE}/export", {"user_id": user, "format": form}, {"X-Tenant-ID": tenant}
    )
    assert status == 200, answer
    assert headers["Content-Type"] == "application/json"
    return answer


def test_manage_when_used_as_documented_then_the_documented_answers(shared: System) -> None:
    user = a_user()
    imported = bring(shared, user, {"summary": "Alice likes hiking", "tags": ["hobby"], "memory_type": "qa"})
    assert (imported["status"], imported["imported"]) == ("ok", 1)
    (segment,) = imported["ids"]
    body = {"user_id": user, "segment_id": segment, "tags": ["important", "work"]}
    status, answer, _ = shared.post(f"{MANAGE}/tags", body)
    assert status == 200
    assert answer == {
        "status": "ok",
        "message": "Tags added successfully",
        "version": 2,
        "tags": ["hobby", "important", "work"],
    }
    status, answer, _ = shared.post(f"{MANAGE}/search/tags", {"user_id": user, "tags": ["work"], "limit": 50})
    assert (status, answer["status"], answer["count"]) == (200, "ok", 1)
    (found,) = answer["segments"]
    assert found.pop("heat_score") > 0
    assert found == {
        "id": segment,
        "summary": "Alice likes hiking",
        "tags": ["hobby", "important", "work"],
        "memory_type": "QA",
        "version": 2,
    }
    exported = export(shared, user)
    assert list(exported) == ["status", "format", "data"]
    assert (exported["status"], exported["format"]) == ("ok", "json")
    data = exported["data"]
    assert list(data) == ["user_id", "exported_at", "segment_count", "segments"]
    assert (data["user_id"], data["segment_count"]) == (user, 1)
    assert TIME.fullmatch(data["exported_at"])
    assert data["segments"][0]["memory_type"] == "qa"
    status, answer, _ = shared.post(f"{MANAGE}/versions", {"user_id": user, "segment_id": segment})
    assert (status, answer["status"], answer["segment_id"], answer["version_count"]) == (200, "ok", segment, 2)
    assert [(v["id"], v["version"], v["summary"], v["tags"]) for v in answer["history"]] == [
        (segment, 2, "Alice likes hiking", ["hobby", "important", "work"]),
        (segment, 1, "Alice likes hiking", ["hobby"]),
    ]
    assert all(TIME.fullmatch(v[key]) for v in answer["history"] for key in ("created_at", "updated_at"))


def test_tags_when_removed_by_body_or_query_then_gone(shared: System) -> None:
    user = a_user()
    (segment,) = bring(shared, user, {"summary": "x", "tags": ["a", "b", "c"]})["ids"]
    status, answer, _ = shared.call(
        "DELETE", f"{MANAGE}/tags", {"user_id": user, "segment_id": segment, "tags": ["a", "zz"]}
    )
    assert (status, answer["message"], answer["version"]) == (200, "Tags removed successfully", 2)
    status, answer, _ = shared.call("DELETE", f"{MANAGE}/tags?user_id={user}&segment_id={segment}&tags=b&tags=zz")
    assert (status, answer["version"], answer["tags"]) == (200, 3, ["c"])


def test_types_when_imported_in_any_spelling_then_shown_as_documented(shared: System) -> None:
    user = a_user()
    kinds = ["qa", "QA", "faq_candidate", "FaqCandidate", "FAQ", "Faq"]
    bring(shared, user, *({"summary": kind, "tags": ["t"], "memory_type": kind} for kind in kinds))
    found = shared.post(f"{MANAGE}/search/tags", {"user_id": user, "tags": ["t"]})[1]["segments"]
    shown = {segment["summary"]: segment["memory_type"] for segment in found}
    assert shown == {
        "qa": "QA",
        "QA": "QA",
        "faq_candidate": "FaqCandidate",
        "FaqCandidate": "FaqCandidate",
        "FAQ": "Faq",
        "Faq": "Faq",
    }
    kept = {segment["memory_type"] for segment in export(shared, user)["data"]["segments"]}
    assert kept == {"qa", "faq_candidate", "faq"}


def whole(n: int) -> dict[str, Any]:
    """A segment with every field that export gives."""
    name = str(uuid.uuid4())
    day = f"2026-03-{n % 28 + 1:02}"
    return {
        "id": name,
        "summary": f'Ann saw bird number b{n:05} — "鸟" `and` # more\nin two lines',
        "tags": [f"t{n % 7}", "鸟"],
        "memory_type": ("qa", "faq_candidate", "faq")[n % 3],
        "heat_score": n / 7,
        "version": 3,
        "access_count": n,
        "created_at": f"{day}T01:02:03.000004Z",
        "updated_at": f"{day}T02:02:03Z",
        "last_accessed": f"{day}T03:02:03.999999Z",
        "source_ids": [f"source {n}"],
        "session_id": f"session {n % 3}",
        "history": [
            {
                "id": name,
                "version": 1,
                "summary": f"Ann saw a bird, {n}",
                "tags": [],
                "created_at": f"{day}T01:02:03.000004Z",
                "updated_at": f"{day}T01:02:03.000004Z",
            }
        ],
        "since": f"{day}T00:00:00Z",
        "data": {"by": "rules", "derived_tags": [f"t{n % 7}"], "nested": {"n": [n, None, 1.5]}},
    }


def without_time(text: str) -> str:
    return re.sub(r"\nExported \S+, ", "\nExported, ", text)


def test_segment_when_its_id_is_taken_in_another_tenant_then_history_and_deletion_take_it(shared: System) -> None:
    user, name = a_user(), str(uuid.uuid4())
    bring(shared, user, {"id": name, "summary": "Herons nest in trees"})
    bring(shared, user, {"id": name, "summary": "Egrets nest in reeds"}, tenant="aliased")
    headers = {"X-Tenant-ID": "aliased", "X-User-ID": user}
    status, versions, _ = shared.get(f"/v1/memory/{name}/history", headers)
    assert (status, [version["content"] for version in versions]) == (200, ["Egrets nest in reeds"])
    assert shared.call("DELETE", f"/v1/memory/{name}", headers=headers)[0] == 200
    assert export(shared, user, tenant="aliased")["data"]["segments"] == []
    assert shared.get(f"/v1/memory/{name}/history", headers)[0] == 404
    assert shared.call("DELETE", f"/v1/memory/{name}", headers=headers)[0] == 404
    (left,) = export(shared, user)["data"]["segments"]
    assert (left["id"], left["summary"]) == (name, "Herons nest in trees")


def test_export_when_imported_into_an_empty_tenant_then_equal_in_both_forms(shared: System) -> None:
    user = a_user()
    given = [whole(n) for n in range(250)]
    imported = bring(shared, user, *given)
    assert (imported["imported"], imported["created"]) == (250, 250)
    first = export(shared, user)["data"]
    assert first["segments"] == sorted(given, key=lambda segment: segment["id"])
    bring(shared, user, *first["segments"], tenant="empty")
    second = export(shared, user, tenant="empty")["data"]
    assert second | {"exported_at": None} == first | {"exported_at": None}
    texts = [export(shared, user, tenant=tenant, form="markdown") for tenant in ("default", "empty")]
    assert [(text["status"], text["format"]) for text in texts] == [("ok", "markdown")] * 2
    assert without_time(texts[0]["content"]) == without_time(texts[1]["content"])
    assert texts[0]["content"].count("\n## ") == 250
    again = bring(shared, user, *first["segments"])
    assert (again["created"], again["updated"], again["unchanged"]) == (0, 0, 250)
    assert export(shared, user)["data"] | {"exported_at": None} == first | {"exported_at": None}


def test_export_when_ten_thousand_then_complete_and_equal_after_a_round_trip(shared: System) -> None:
    user = a_user()
    given = [whole(n) for n in range(10_000)]
    assert bring(shared, user, *given)["imported"] == 10_000
    first = export(shared, user)["data"]
    assert (first["segment_count"], len(first["segments"])) == (10_000, 10_000)
    assert first["segments"] == sorted(given, key=lambda segment: segment["id"])
    bring(shared, user, *first["segments"], tenant="many")
    second = export(shared, user, tenant="many")["data"]
    assert second | {"exported_at": None} == first | {"exported_at": None}
    one, two = (export(shared, user, tenant=tenant, form="markdown")["content"] for tenant in ("default", "many"))
    assert without_time(one) == without_time(two)
    status, found, _ = shared.post(f"{MANAGE}/search/tags", {"user_id": user, "tags": ["鸟"], "limit": 1000})
    assert (status, found["count"], found["total"]) == (200, 1000, 10_000)


def test_export_when_there_is_nothing_then_empty(shared: System) -> None:
    data = export(shared, a_user())["data"]
    assert (data["segment_count"], data["segments"]) == (0, [])
    assert export(shared, a_user(), form="markdown")["content"].endswith("0 segments.\n")


def test_import_when_retrieved_then_a_segment_answers(shared: System) -> None:
    user = a_user()
    bring(shared, user, {"summary": "Ann repairs old clocks in her workshop", "tags": ["craft"]}, {"summary": "Tea"})
    _, found, _ = shared.post("/v1/memory/retrieve", {"user_id": user, "query": "Who repairs old clocks?"})
    assert "Ann repairs old clocks in her workshop" in [segment["summary"] for segment in found["mid_term"]]


def test_import_when_many_then_found_by_meaning_at_once_or_soon(shared: System) -> None:
    for count in (1000, 1001):
        user = a_user()
        bills = ({"summary": f"Invoice {n} was paid by wire transfer"} for n in range(count - 1))
        bring(shared, user, *bills, {"summary": "She adopted a puppy from the shelter"})
        end = time.monotonic() + (0 if count == 1000 else 60)
        while True:
            body = {"user_id": user, "query": "Does she own a dog?"}
            topics = shared.post("/v1/memory/retrieve", body)[1]["mid_term"]
            if any("puppy" in topic["summary"] for topic in topics):
                break
            assert time.monotonic() < end, (count, topics)
            time.sleep(0.1)


def test_history_when_of_a_segment_then_its_versions(shared: System) -> None:
    user = a_user()
    (segment,) = bring(shared, user, {"summary": "Ann sails"})["ids"]
    shared.post(f"{MANAGE}/tags", {"user_id": user, "segment_id": segment, "tags": ["boat"]})
    bring(shared, user, {"id": segment, "summary": "Ann sails on Sundays"})
    status, versions, _ = shared.call("GET", f"/v1/memory/{segment}/history", headers={"X-User-ID": user})
    assert status == 200
    assert [(v["version"], v["content"]) for v in versions] == [
        (3, "Ann sails on Sundays"),
        (2, "Ann sails"),
        (1, "Ann sails"),
    ]
    assert all(TIME.fullmatch(v["changed_at"]) for v in versions)


BAD = [
    ("tags", {"tags": ["x"]}, "segment_id"),
    ("tags", {"segment_id": "s"}, "tags"),
    ("tags", {"segment_id": "s", "tags": []}, "tags"),
    ("tags", {"segment_id": "s", "tags": [""]}, "tags"),
    ("tags", {"segment_id": "s", "tags": ["x" * 65]}, "tags"),
    ("tags", {"segment_id": "s", "tags": [f"t{n}" for n in range(65)]}, "tags"),
    ("tags", {"segment_id": "s", "tags": ["a\u0000"]}, "tags"),
    ("tags", {"segment_id": "s", "tags": "x"}, "tags"),
    ("tags", {"segment_id": "s", "tags": [5]}, "tags[0]"),
    ("tags", {"segment_id": "s" * 257, "tags": ["x"]}, "segment_id"),
    ("tags", {"segment_id": "s", "tags": ["x"], "tag": "y"}, "tag"),
    ("search/tags", {}, "tags"),
    ("search/tags", {"tags": ["x"], "limit": 0}, "limit"),
    ("search/tags", {"tags": ["x"], "limit": 1001}, "limit"),
    ("search/tags", {"tags": ["x"], "limit": "ten"}, "limit"),
    ("search/tags", {"tags": ["x"], "match": "some"}, "match"),
    ("export", {"format": "xml"}, "format"),
    ("export", {"formt": "json"}, "formt"),
    ("import", {}, "segments"),
    ("import", {"segments": []}, "segments"),
    ("import", {"segments": {"summary": "x"}}, "segments"),
    ("import", {"segments": [{"summary": "x"}, {"tags": ["y"]}]}, "segments[1].summary"),
    ("import", {"segments": [{"summary": "x"}] * 3 + [{"summary": " "}]}, "segments[3].summary"),
    ("import", {"segments": [{"summary": "y" * 100_001}]}, "segments[0].summary"),
    ("import", {"segments": [{"summary": "x", "tags": ["t" * 65]}]}, "segments[0].tags"),
    ("import", {"segments": [{"summary": "x", "memory_type": "rule"}]}, "segments[0].memory_type"),
    ("import", {"segments": [{"summary": "x", "id": "7"}]}, "segments[0].id"),
    ("import", {"segments": [{"summary": "x", "version": 0}]}, "segments[0].version"),
    ("import", {"segments": [{"summary": "x", "heat_score": -1}]}, "segments[0].heat_score"),
    ("import", {"segments": [{"summary": "x", "created_at": "yesterday"}]}, "segments[0].created_at"),
    ("import", {"segments": [{"summary": "x", "history": [{"version": 1}]}]}, "segments[0].history[0].created_at"),
    ("import", {"segments": [{"summary": "x", "data": [1]}]}, "segments[0].data"),
    ("import", {"segments": [{"summary": "x", "sumary": "y"}]}, "segments[0].sumary"),
    ("import", {"segments": [{"summary": "x"}] * 10_001}, "segments"),
    ("versions", {}, "segment_id"),
    ("versions", {"segment_id": ""}, "segment_id"),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_when_sent_then_400_names_the_field(
    shared: System, path: str, body: dict[str, Any], param: str
) -> None:
    user = a_user()
    status, answer, _ = shared.post(f"{MANAGE}/{path}", {"user_id": user} | body)
    assert status == 400, answer
    error = answer["error"]
    assert (error["type"], error["code"], error["param"]) == ("BadRequest", "invalid_argument", param)
    assert export(shared, user)["data"]["segments"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("tags", {"segment_id": "s", "tags": ["x"]}),
        ("search/tags", {"tags": ["x"]}),
        ("export", {}),
        ("import", {"segments": [{"summary": "x"}]}),
        ("versions", {"segment_id": "s"}),
    ],
)
def test_user_when_malformed_then_400(shared: System, path: str, body: dict[str, Any]) -> None:
    for user in ("  ", "a\u0000b", "x" * 257):
        status, answer, _ = shared.post(f"{MANAGE}/{path}", {"user_id": user} | body)
        assert (status, answer["error"]["param"]) == (400, "user_id")


def test_segment_when_unknown_then_404(shared: System) -> None:
    for path in ("tags", "versions"):
        body = {"user_id": a_user(), "segment_id": str(uuid.uuid4())} | ({"tags": ["x"]} if path == "tags" else {})
        status, answer, _ = shared.post(f"{MANAGE}/{path}", body)
        assert (status, answer["error"]["type"], answer["error"]["code"]) == (404, "NotFound", "not_found")


def test_import_when_the_body_is_large_then_taken(shared: System) -> None:
    user = a_user()
    big = [{"summary": f"n{n} " + "x" * 90_000} for n in range(150)]
    assert len(json.dumps(big)) > 13_000_000
    assert bring(shared, user, *big)["imported"] == 150
    assert [len(s["summary"]) for s in export(shared, user)["data"]["segments"]] == [len(s["summary"]) for s in big]


def test_client_when_it_manages_then_the_same_as_over_rest(shared: System) -> None:
    user = a_user()
    with Client(shared.grpc, user_id=user) as client:
        done = client.segments.import_segments([StoredSegment("Ann sails", ("boat",), "faq"), "Ann hikes"])
        assert (done.imported, done.created) == (2, 2)
        assert client.segments.add_tags(done.ids[0], ["boat", "sport"]).tags == ("boat", "sport")
        assert client.segments.remove_tags(done.ids[0], ["boat"]).version == 3
        (found,) = client.segments.search(["sport", "x"])
        assert (found.id, found.memory_type, found.version) == (done.ids[0], "faq", 3)
        assert client.segments.search(["sport", "x"], match_all=True) == []
        assert [v.tags for v in client.segments.versions(done.ids[0])] == [("sport",), ("boat", "sport"), ("boat",)]
        exported = list(client.segments.export())
        assert [s.summary for s in exported] == ["Ann sails", "Ann hikes"]
        text = "".join(client.segments.export_markdown())
        assert without_time(text) == without_time(export(shared, user, form="markdown")["content"])
        with pytest.raises(NotFound):
            client.segments.versions(str(uuid.uuid4()))
        with pytest.raises(InvalidArgument) as raised:
            client.segments.import_segments(["x", " "])
        assert raised.value.param == "segments[1].summary"
    with Client(shared.grpc, user_id=user, tenant_id="by-client") as client:
        assert client.segments.import_segments(exported).ids == tuple(s.id for s in exported)
        assert list(client.segments.export()) == exported


async def test_async_client_when_it_manages_then_the_same(shared: System) -> None:
    user = a_user()
    async with AsyncClient(shared.grpc, user_id=user) as client:
        done = await client.segments.import_segments(["Ann sails", StoredSegment("Ann hikes", ("foot",))])
        assert (await client.segments.add_tags(done.ids[0], ["boat"])).version == 2
        assert (await client.segments.remove_tags(done.ids[1], ["foot"])).tags == ()
        assert [s.id for s in await client.segments.search(["boat"])] == [done.ids[0]]
        assert [v.version for v in await client.segments.versions(done.ids[1])] == [2, 1]
        exported = [segment async for segment in client.segments.export()]
        assert [(s.id, s.tags) for s in exported] == [(done.ids[0], ("boat",)), (done.ids[1], ())]
        text = "".join([piece async for piece in client.segments.export_markdown()])
        assert text.count("\n## ") == 2
