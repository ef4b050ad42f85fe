"""Which provider a name leads to, and to whom it turns when one fails; over real TCP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from memoryos.settings import UpstreamSettings
from memoryos_server.domain.core.faults import DeadlineExceeded, Invalid, Upstream, UpstreamRejected
from memoryos_server.domain.ports import Asked, Served
from memoryos_server.tools.llm import gateway as gateways
from memoryos_server.tools.llm import reloading, transport
from memoryos_server.tools.llm.gateway import Gateway
from memoryos_server.tools.llm.reloading import Reloading, catalog_of
from memoryos_server.tools.llm.steadiness import REST_SECONDS
from memoryos_server.tools.llm.table import read_table
from tests import upstream as fake
from tests.providers import Clock
from tests.upstream import Die, Reply, Sleep, error_reply, json_reply, stream_reply


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "BACKOFF_SECONDS", 0.01)


class Two:
    """Two providers, `a` and `b`, and a gateway to them by a table."""

    def __init__(self, a: fake.Upstream, b: fake.Upstream) -> None:
        self.a, self.b, self.clock = a, b, Clock()

    def open(self, table: str = "", a: str = "", b: str = "") -> Gateway:
        text = f"""{table}
            [providers.a]
            base_url = "{self.a.base_url}"
            api_key = "key-a"
            {a}
            [providers.b]
            base_url = "{self.b.base_url}"
            api_key_env = "KEY_B"
            auth = "api-key"
            {b}"""
        return Gateway(read_table(text, {"KEY_B": "key-b"}), clock=self.clock)


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    async with fake.Upstream(("a-1", "both")) as a, fake.Upstream(("b-1", "both")) as b:
        yield Two(a, b)


def body(model: str) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]})


async def whose(llm: Gateway, model: str) -> str | None:
    """Who answers."""
    served = (await llm.complete(Asked(model, body(model)))).served
    assert served is not None
    return served.provider


MODELS = """
    default = "b-1"
    [models.exact]
    deployments = ["a/a-1"]
    aliases = ["short", "a/with-slash"]
    [models."claude-*"]
    deployments = ["b"]
    [models."*-mini"]
    deployments = [{ provider = "a", model = "a-1" }]
"""


@pytest.mark.parametrize(
    ("named", "provider", "sent"),
    [
        ("exact", "a", "a-1"),
        ("short", "a", "a-1"),
        ("a/with-slash", "a", "a-1"),
        ("b/anything/at:all", "b", "anything/at:all"),
        ("claude-9", "b", "claude-9"),
        ("gpt-mini", "a", "a-1"),
        ("b-1", "b", "b-1"),
        ("both", "a", "both"),
        ("unheard-of", "b", "b-1"),
    ],
)
async def test_call_when_named_then_it_goes_where_the_name_leads(
    two: Two, named: str, provider: str, sent: str
) -> None:
    async with two.open(MODELS) as llm:
        assert await llm.serves(named)
        assert await whose(llm, named) == provider
    (request,) = (two.a if provider == "a" else two.b).received
    assert request.json["model"] == sent
    assert request.headers.get("authorization" if provider == "a" else "api-key") in ("Bearer key-a", "key-b")
    assert "key-b" not in str(two.a.received) + str(request.headers.get("authorization"))


async def test_call_when_nobody_serves_the_name_then_invalid(two: Two) -> None:
    async with two.open() as llm:
        assert not await llm.serves("gpt-9")
        with pytest.raises(Invalid, match="Invalid model name"):
            await llm.complete(Asked("gpt-9", body("gpt-9")))


async def test_serves_when_a_provider_names_its_models_then_its_list_is_not_asked(two: Two) -> None:
    async with two.open(a='models = ["x-*", "y"]', b="models = []") as llm:
        assert [await llm.serves(name) for name in ("x-1", "y", "a-1", "b-1")] == [True, True, False, False]
        assert [one["id"] for one in await llm.models()] == ["y"]
    assert (two.a.lists, two.b.lists) == (0, 0)


async def test_models_when_listed_then_those_of_the_file_come_first_and_once(two: Two) -> None:
    async with two.open(MODELS) as llm:
        assert [one["id"] for one in await llm.models()] == ["exact", "short", "a/with-slash", "a-1", "both", "b-1"]


async def test_models_when_one_provider_is_away_then_the_others_are_listed_and_any_name_may_be_its(two: Two) -> None:
    async with two.open(b='models = ["z"]') as llm:
        await two.a.__aexit__(None, None, None)
        assert [one["id"] for one in await llm.models()] == ["z"]
        assert await llm.serves("whatever")


BOTH = """
    retries = 2
    [models.m]
    deployments = ["a/a-1", "b/b-1"]
"""


async def test_call_when_a_deployment_fails_then_another_answers_at_once(two: Two) -> None:
    table = '[models.m]\ndeployments = [{ provider = "a", model = "a-1", weight = 1000000 }, "b/b-1"]'
    two.a.will(error_reply(503, Retry_After="60"))
    async with two.open(table) as llm:
        began = time.monotonic()
        assert await whose(llm, "m") == "b"
    assert time.monotonic() - began < 10
    assert (len(two.a.received), len(two.b.received)) == (1, 1)


async def test_call_when_weights_differ_then_calls_go_by_them(two: Two) -> None:
    table = '[models.m]\ndeployments = [{ provider = "a", model = "a-1", weight = 9 }, "b/b-1"]'
    async with two.open(table) as llm:
        seen = Counter([await whose(llm, "m") for _ in range(200)])
    assert 150 < seen["a"] < 199  # 180 +- 4.2 by the binomial distribution


async def test_call_when_a_deployment_keeps_failing_then_it_rests_and_one_call_probes_it(two: Two) -> None:
    table = '[models.m]\ndeployments = [{ provider = "a", model = "a-1", weight = 1000000 }, "b/b-1"]'
    async with two.open(table) as llm:
        two.a.will(*[error_reply(500)] * 3)
        assert [await whose(llm, "m") for _ in range(5)] == ["b"] * 5
        assert len(two.a.received) == 3
        two.clock.now += REST_SECONDS + 1
        two.a.will(Reply(before=[Sleep(0.3)], body=[b"{}"]))
        probe = asyncio.create_task(whose(llm, "m"))
        await asyncio.sleep(0.1)
        assert [await whose(llm, "m") for _ in range(3)] == ["b"] * 3  # one probe at a time
        assert await probe == "a"
        assert await whose(llm, "m") == "a"


async def test_call_when_all_deployments_rest_then_the_least_bad_is_asked(two: Two) -> None:
    async with two.open(BOTH) as llm:
        two.a.will(*[error_reply(500)] * 9)
        two.b.will(*[error_reply(500)] * 9)
        for _ in range(3):
            with pytest.raises(Upstream):
                await whose(llm, "m")
        two.a.script.clear()
        two.b.script.clear()
        assert await whose(llm, "m") in ("a", "b")


@pytest.mark.parametrize(
    ("bad", "falls"),
    [
        (error_reply(500), True),
        (error_reply(401), True),
        (error_reply(429, Retry_After="99"), True),
        (error_reply(429, {"error": {"message": "m", "code": "insufficient_quota"}}), True),
        (Reply(before=[Die()]), True),
        (error_reply(404), True),
        (error_reply(400), False),
        (error_reply(413), False),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_call_when_a_model_fails_then_its_fallback_answers_unless_the_request_is_wrong(
    two: Two, bad: Reply, falls: bool, streamed: bool
) -> None:
    table = 'retries = 1\n[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]'
    two.a.will(bad, bad)
    two.b.will(stream_reply("from b") if streamed else json_reply("from b"))
    async with two.open(table) as llm:
        if not falls:
            with pytest.raises(UpstreamRejected):
                await answered(llm, streamed)
            assert two.b.received == []
            return
        answer, served = await answered(llm, streamed)
    assert b"b" in answer
    assert served == Served("b")
    assert two.b.received[0].json["model"] == "b-1"


async def answered(llm: Gateway, streamed: bool) -> tuple[bytes, Served | None]:
    """An answer of the model `m`, and whose it is."""
    if not streamed:
        whole = await llm.complete(Asked("m", body("m")))
        return whole.body, whole.served
    seen: list[Served] = []
    async with aclosing(llm.stream(Asked("m", body("m")), seen.append)) as chunks:
        answer = b"".join([chunk async for chunk in chunks])
    (served,) = seen
    return answer, served


async def test_call_when_answers_break_off_again_and_again_then_the_deployment_rests(two: Two) -> None:
    table = '[models.m]\ndeployments = [{ provider = "a", model = "a-1", weight = 1000000 }, "b/b-1"]'
    two.a.will(*[Reply(body=[b'{"a":', Die()], length=100)] * 3)
    async with two.open(table) as llm:
        for _ in range(3):
            with pytest.raises(Upstream, match="broke off"):
                await llm.complete(Asked("m", body("m")))
        assert await whose(llm, "m") == "b"


async def test_call_when_one_rests_and_the_fallback_refuses_then_it_is_asked_after_all(two: Two) -> None:
    table = 'retries = 0\n[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]'
    two.a.will(error_reply(429, Retry_After="30"))
    async with two.open(table) as llm:
        assert await whose(llm, "m") == "b"
        two.b.will(error_reply(400))
        assert await whose(llm, "m") == "a"


async def test_call_when_one_asks_for_time_and_the_other_fails_once_then_the_other_is_asked_again(two: Two) -> None:
    two.a.will(error_reply(429, Retry_After="30"))
    two.b.will(error_reply(500))
    async with two.open('retries = 2\n[models.m]\ndeployments = ["a/a-1", "b/b-1"]') as llm:
        assert await whose(llm, "m") == "b"  # whichever of the two is tried first
    assert (len(two.a.received), len(two.b.received)) == (1, 2)


async def test_call_when_a_list_hangs_then_only_the_first_waits_for_it(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MODELS_TIMEOUT_SECONDS", 0.3)
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()  # and nobody accepts
        table = f'[providers.c]\nbase_url = "http://127.0.0.1:{hanging.getsockname()[1]}/v1"'
        async with two.open(table) as llm:
            assert await whose(llm, "b-1") == "b"
            for _ in range(3):
                two.clock.now += 100
                began = time.monotonic()
                assert await whose(llm, "b-1") == "b"
                assert time.monotonic() - began < 0.25


async def test_serves_when_a_provider_names_its_models_then_its_name_leads_to_no_others(two: Two) -> None:
    async with two.open(
        '[models.m]\ndeployments = ["b/dear"]\nfallbacks = ["b/dearer"]', b='models = ["cheap"]'
    ) as llm:
        assert [await llm.serves(name) for name in ("b/cheap", "b/dear", "m")] == [True, False, True]
        two.b.will(error_reply(500), error_reply(500), error_reply(500))
        assert await whose(llm, "m") == "b"
    assert two.b.received[-1].json["model"] == "dearer"


async def test_response_when_it_is_late_then_it_is_not_asked_for_twice(two: Two) -> None:
    two.a.will(Reply(before=[Sleep(5)]))
    table = '[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]'
    async with two.open(table, a="first_byte_timeout_seconds = 0.1") as llm:
        with pytest.raises(DeadlineExceeded):
            await llm.complete(Asked("m", body("m"), path="/responses"))
    assert (len(two.a.received), two.b.received) == (1, [])


async def test_refusal_when_it_holds_our_key_then_no_member_tells_it(two: Two) -> None:
    error = {"message": "key-a", "code": "key-a", "param": "key-a", "type": "key-a long-secret-header"}
    two.a.will(error_reply(400, {"error": error}))
    async with two.open(a='headers = { x-org = "long-secret-header" }') as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await llm.complete(Asked("a-1", body("a-1")))
        assert "key-a" not in f"{caught.value.message} {caught.value.code} {caught.value.param} {caught.value.metadata}"
        assert "long-secret-header" not in f"{caught.value.metadata} {llm._catalog!r}"


async def test_call_when_all_fail_then_the_fault_is_that_of_the_model_asked_for(two: Two) -> None:
    table = 'retries = 0\n[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]'
    two.a.will(error_reply(429, {"error": {"message": "slow down", "code": "rate"}}))
    two.b.will(error_reply(400, {"error": {"message": "no tools here"}}))
    async with two.open(table) as llm:
        with pytest.raises(UpstreamRejected, match="slow down"):
            await llm.complete(Asked("m", body("m")))


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too many", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 8192 tokens."},
        {"message": "prompt is too long: 210000 tokens > 200000 maximum"},
        {"message": "The input is too long for this model"},
    ],
)
async def test_call_when_it_is_too_long_then_the_model_for_long_ones_answers(two: Two, error: Any) -> None:
    table = '[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["a-1"]\ncontext_fallbacks = ["b-1"]'
    two.a.will(error_reply(400, {"error": error}))
    async with two.open(table) as llm:
        assert await whose(llm, "m") == "b"
    assert len(two.a.received) == 1


async def test_call_when_too_long_and_there_is_no_model_for_it_then_refused_as_the_provider_said(two: Two) -> None:
    two.a.will(error_reply(400, {"error": {"message": "m", "code": "context_length_exceeded"}}))
    async with two.open('[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]') as llm:
        with pytest.raises(UpstreamRejected) as caught:
            await llm.complete(Asked("m", body("m")))
    assert caught.value.code == "context_length_exceeded"
    assert two.b.received == []


async def test_call_when_models_fall_back_on_each_other_then_each_is_asked_once(two: Two) -> None:
    table = """
        retries = 0
        [models.m]
        deployments = ["a/a-1"]
        context_fallbacks = ["n"]
        aliases = ["m-too"]
        [models.n]
        deployments = ["b/b-1"]
        context_fallbacks = ["m", "m-too"]
    """
    long = error_reply(400, {"error": {"message": "m", "code": "context_length_exceeded"}})
    two.a.will(long, long)
    two.b.will(long, long)
    async with two.open(table) as llm:
        with pytest.raises(UpstreamRejected):
            await llm.complete(Asked("m", body("m")))
    assert (len(two.a.received), len(two.b.received)) == (1, 1)


async def test_call_when_the_provider_cannot_be_told_then_one_that_can_answers_and_else_the_place_is_named(
    two: Two,
) -> None:
    speech = {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}
    asked = Asked("m", json.dumps({"model": "m", "messages": [speech]}))
    async with two.open('[models.m]\ndeployments = ["a/a-1"]\nfallbacks = ["b-1"]', a='api = "anthropic"') as llm:
        served = (await llm.complete(asked)).served
        assert served is not None
        assert served.provider == "b"
        two.b.will(error_reply(400, {"error": {"message": "no speech"}}))
        with pytest.raises(Invalid) as caught:
            await llm.complete(asked)
    assert caught.value.param == "messages[0].content[0]"


async def test_call_when_first_byte_is_late_then_its_own_timeout_counts(two: Two) -> None:
    two.a.will(*[Reply(before=[Sleep(5)])] * 3)
    async with two.open("retries = 0", a="first_byte_timeout_seconds = 0.1") as llm:
        with pytest.raises(DeadlineExceeded):
            await llm.complete(Asked("a-1", body("a-1")))


async def test_call_when_the_providers_fail_all_the_time_then_retries_are_a_tenth_of_the_calls(two: Two) -> None:
    two.a.will(*[error_reply(500)] * 1000)
    async with two.open() as llm:
        for _ in range(100):
            with pytest.raises(Upstream):
                await llm.complete(Asked("a-1", body("a-1")))
    assert 120 <= len(two.a.received) <= 131  # 100 calls, 20 saved, 10 earned


async def test_file_when_it_changes_then_calls_go_by_it_and_a_bad_one_changes_nothing(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "POLL_SECONDS", 0.02)
    file = tmp_path / "providers.toml"

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        os.replace(tmp_path / "new", file)

    def to(url: str) -> str:
        return f'[providers.p]\nbase_url = "{url}"\nmodels = ["m"]'

    write(to(two.a.base_url))
    options = UpstreamSettings(providers_file=str(file))
    changed = asyncio.Event()
    async with Gateway(catalog_of(options)) as llm:

        def change(catalog: Any) -> None:
            llm.change(catalog)
            changed.set()

        async def until_changed() -> None:
            await asyncio.wait_for(changed.wait(), 5)
            changed.clear()

        async with Reloading(options, change):
            two.a.will(Reply(body=[b'{"a":', Sleep(0.5), b"1}"]))
            slow = asyncio.create_task(llm.complete(Asked("m", body("m"))))
            await asyncio.sleep(0.1)
            write(to(two.b.base_url))
            await until_changed()
            await llm.complete(Asked("m", body("m")))
            assert len(two.b.received) == 1
            assert (await slow).body == b'{"a":1}'  # what was under way ends where it began
            write('[providers.p]\nbase_url = "http://[::1"')
            await asyncio.sleep(0.1)
            await llm.complete(Asked("m", body("m")))
            assert len(two.b.received) == 2
            file.unlink()
            await asyncio.sleep(0.1)
            assert await llm.serves("m")
            write(to(two.a.base_url))
            await until_changed()
            await llm.complete(Asked("m", body("m")))
            assert len(two.a.received) == 2
