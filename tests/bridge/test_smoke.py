async def test_health_when_the_server_runs_then_ok(http):
    r = await http.get("/health")
    assert (r.status_code, r.json()) == (200, {"status": "ok"})
    r = await http.post("/v1/scratch/things", json={"name": "a", "owner": "bob", "parts": [{"label": "x", "count": 2}]})
    print(r.status_code, r.headers, r.text)
    assert r.status_code == 200
    r = await http.post("/v1/scratch/export", json={"count": 3})
    print(r.text)
    for p in ("/openapi.json", "/docs", "/docs/favicon.png", "/metrics", "/nothing"):
        r = await http.get(p)
        print(r.status_code, r.headers["content-type"], r.text[:300])
