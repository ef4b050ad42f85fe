"""A request in each provider's words: what is refused goes, what is called otherwise is renamed, all else stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryos_server.domain.ports import Asked
from memoryos_server.tools.llm.provider import Dialect, Provider
from memoryos_server.tools.llm.shaping import shaped
from memoryos_server.tools.llm.table import kind_of, known, of_kind, read_table

HI = {"role": "user", "content": "hi"}


def asked(**more: Any) -> str:
    return json.dumps({"model": "m", "messages": [HI], **more})


def in_words_of(kind: str, body: str, model: str = "m", block: str = "") -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a provider of a kind is sent, and what it is not."""
    text = f'[providers.one]\nkind = "{kind}"\nbase_url = "http://127.0.0.1:1"\n' + (
        'api_key = "k"' if "api_key_env" in known()[kind] else ""
    )
    provider = read_table(text, {}).providers["one"]
    sent, dropped = shaped(Asked("m", body, block), model, provider.dialect_of(model))
    value = json.loads(sent)
    assert isinstance(value, dict)
    return value, dropped


@pytest.mark.parametrize(
    ("kind", "model", "given", "sent", "dropped"),
    [
        ("openai", "gpt-4o", {"max_tokens": 5}, {"max_tokens": 5}, ()),
        ("openai", "o3-mini", {"max_tokens": 5}, {"max_completion_tokens": 5}, ()),
        (
            "openai",
            "gpt-5",
            {"max_tokens": 5, "max_completion_tokens": 6},
            {"max_completion_tokens": 6},
            ("max_tokens",),
        ),
        ("groq", "m", {"logprobs": True, "n": 2, "seed": 1}, {"seed": 1}, ("logprobs", "n")),
        ("mistral", "m", {"seed": 7, "tool_choice": "required"}, {"random_seed": 7, "tool_choice": "any"}, ()),
        ("mistral", "m", {"max_completion_tokens": 9, "user": "u"}, {"max_tokens": 9}, ("user",)),
        ("gemini", "m", {"temperature": 1, "logit_bias": {}}, {"temperature": 1}, ("logit_bias",)),
        ("anthropic", "claude-opus-4-7", {"temperature": 1, "stop": "x"}, {"stop": "x"}, ("temperature",)),
        ("anthropic", "claude-3-opus", {"reasoning_effort": "low"}, {}, ("reasoning_effort",)),
        ("cohere", "m", {"n": 1, "store": True, "seed": 2}, {"seed": 2}, ("n", "store")),
        ("deepseek", "m", {"logprobs": True}, {"logprobs": True}, ()),
        ("ollama", "m", {"x": [1]}, {"x": [1]}, ()),
        ("azure", "m", {"x": [1]}, {"x": [1]}, ()),
        ("openrouter", "m", {"provider": {"sort": "price"}}, {"provider": {"sort": "price"}}, ()),
    ],
)
def test_request_when_for_a_provider_then_in_its_words(
    kind: str, model: str, given: dict[str, Any], sent: dict[str, Any], dropped: tuple[str, ...]
) -> None:
    value, lost = in_words_of(kind, asked(**given), model)
    assert value == {"model": model, "messages": [HI], **sent}
    assert lost == dropped


def test_request_when_nothing_differs_then_the_same_bytes() -> None:
    body = ' {"model" : "m",\n "messages":[{"role":"user","content":"\\u00e9"}], "seed":1.0 }'
    assert shaped(Asked("m", body), "m", Dialect()) == (body, ())


def test_request_when_only_the_model_is_called_otherwise_then_all_else_stays() -> None:
    body = '{"seed":1.0, "model" : "m",  "messages":[{"role":"user","content":"m"}]}'
    assert shaped(Asked("m", body), "é/2", Dialect())[0] == body.replace('"model" : "m"', '"model" : "é/2"')


def test_request_when_members_of_messages_are_refused_then_they_alone_go() -> None:
    messages = [{"name": "x", "role": "system", "content": "s"}, {"role": "user", "content": "a", "name": "Bo"}]
    value, dropped = in_words_of("groq", json.dumps({"model": "m", "messages": messages}))
    assert value["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    assert dropped == ("messages.name",)


@pytest.mark.parametrize(
    ("messages", "sent"),
    [
        (
            [
                {"role": "system", "content": "s"},
                HI,
                {"role": "system", "content": "block"},
                {"role": "user", "content": "q"},
            ],
            [
                {"role": "system", "content": "s"},
                HI,
                {"role": "user", "content": [{"type": "text", "text": "block"}, {"type": "text", "text": "q"}]},
            ],
        ),
        (
            [
                HI,
                {"role": "developer", "content": [{"type": "text", "text": "a"}]},
                {"role": "system", "content": "b"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            ],
            [
                HI,
                {"role": "assistant", "content": "c"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "text", "text": "b"},
                        {"type": "image_url", "image_url": {"url": "u"}},
                    ],
                },
            ],
        ),
        ([HI, {"role": "system", "content": "last"}], [HI, {"role": "user", "content": "last"}]),
        ([{"role": "system", "content": "s"}, HI], [{"role": "system", "content": "s"}, HI]),
        (
            [HI, {"role": "system", "content": "b"}, {"role": "user"}],
            [HI, {"content": [{"type": "text", "text": "b"}], "role": "user"}],
        ),
    ],
)
def test_request_when_system_messages_are_hoisted_then_those_amid_the_talk_are_parts_of_it(
    messages: list[Any], sent: list[Any]
) -> None:
    value, dropped = in_words_of("gemini", json.dumps({"model": "m", "messages": messages}, indent=1))
    assert value["messages"] == sent
    assert dropped == ()


def test_request_when_memory_s_block_comes_first_then_it_is_a_part_of_the_question_and_the_system_prompt_is_not() -> (
    None
):
    messages = [{"role": "system", "content": "s"}, {"role": "system", "content": "block"}, HI]
    value, _ = in_words_of("gemini", json.dumps({"model": "m", "messages": messages}), block="block")
    part = [{"type": "text", "text": "hi"}, {"type": "text", "text": "block"}]
    assert value["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": part}]


def test_request_when_very_many_system_messages_are_hoisted_then_all_are_parts_of_the_next_message() -> None:
    messages = [HI, *[{"role": "system", "content": "s"}] * 15_000, HI]
    value, _ = in_words_of("gemini", json.dumps({"model": "m", "messages": messages}))
    assert len(value["messages"]) == 2
    assert len(value["messages"][1]["content"]) == 15_001


def test_request_when_a_member_is_named_twice_then_the_last_counts() -> None:
    body = '{"model":"m","messages":5,"messages":[{"role":"user","name":"x","content":"hi"}]}'
    value, dropped = in_words_of("groq", body)
    assert (value["messages"], dropped) == ([HI], ("messages.name",))


_TEXT = st.text('ab"\\{}[]:, \n\u00e9\U0001f600', max_size=6)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | _TEXT, lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
_NAMES = ("seed", "n", "user", "x y", "max_tokens", "tools")


@given(
    st.dictionaries(st.sampled_from(_NAMES), _VALUE),
    st.sets(st.sampled_from(_NAMES)),
    st.none() | st.integers(0, 2),
    st.booleans(),
)
def test_request_when_members_go_then_the_rest_is_equal_and_in_its_order(
    members: dict[str, Any], drop: set[str], indent: int | None, last: bool
) -> None:
    needed = {"model": "m", "messages": [HI]}
    whole = {**members, **needed} if last else {**needed, **members}
    sent, dropped = shaped(Asked("m", json.dumps(whole, indent=indent)), "m2", Dialect(drop=frozenset(drop)))
    expected = {name: value for name, value in {**whole, "model": "m2"}.items() if name not in drop}
    assert list(json.loads(sent).items()) == list(expected.items())
    assert set(dropped) == drop & set(members)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://me.openai.azure.com/openai/v1/", "azure"),
        ("http://127.0.0.1:11434/v1", ""),
        ("https://example.com/v1", ""),
        ("nonsense", ""),
    ],
)
def test_kind_when_an_address_is_known_then_its_words_are_too(url: str, kind: str) -> None:
    assert kind_of(url) == kind


def test_known_when_read_then_the_ten_providers_are_all_usable() -> None:
    assert sorted(known()) == [
        "anthropic", "azure", "cohere", "deepseek", "gemini", "groq", "mistral", "ollama", "openai", "openrouter",
    ]  # fmt: skip
    for kind in known():
        assert of_kind(kind, Provider("p", "http://x")).name == "p"
    assert of_kind("azure", Provider("p", "http://x")).auth == "api-key"
