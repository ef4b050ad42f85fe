from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoryos_server.domain.chat.request import build_body, parse_body
from memoryos_server.domain.core.faults import Invalid

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
    optional={"content": st.text(max_size=20) | st.none() | values, "x": values},
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(messages, min_size=1, max_size=6),
    st.dictionaries(
        st.text(max_size=6).filter(lambda k: k not in ("model", "messages", "stream", "temperature", "max_tokens")),
        values,
        max_size=4,
    ),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.booleans(),
)
def test_injection_when_any_json_then_only_one_message_is_added(
    sent: list[dict[str, Any]], more: dict[str, Any], indent: Any, ascii_only: bool, first: bool
) -> None:
    head = {"messages": sent, "model": "m"}
    text = json.dumps(head | more if first else more | head, indent=indent, ensure_ascii=ascii_only)
    body = parse_body(text, stream=False)
    users = [i for i, m in enumerate(sent) if m["role"] == "user"]
    injected = body.with_system_message('memo "ries"\n')
    if not users:
        assert injected == text
        return
    at = users[-1]
    after = json.loads(injected)
    assert after["messages"].pop(at) == {"role": "system", "content": 'memo "ries"\n'}
    assert json.dumps(after) == json.dumps(json.loads(text))
    # Every character but the new message is where it was.
    start, new = body.spans[at][0], len(injected) - len(text)
    assert injected[:start] + injected[start + new :] == text


def test_injection_when_numbers_and_keys_are_odd_then_kept_to_the_letter() -> None:
    text = (
        '{"seed":1.0,"a":1e400,"a":12345678901234567890123,"model":"m",'
        '"messages":[ {"role":"user","content":"h\\u00e9\\ud83d\\ude00","n":-0.0} ,{"content":null,"role":"assistant"} ] , "z":'
        + "9" * 5000
        + "}"
    )
    injected = parse_body(text, stream=False).with_system_message("x")
    assert injected == text.replace('[ {"role":"user"', '[ {"role": "system", "content": "x"},{"role":"user"')


def test_stream_flag_when_missing_or_null_then_spliced_in() -> None:
    plain = '{"model":"m","messages":[{"role":"user","content":"x"}], "n":1 }'
    assert parse_body(plain, stream=True).text == plain.replace('"n":1 }', '"n":1,"stream":true }')
    null = '{"stream": null,"model":"m","messages":[{"role":"user","content":"x"}]}'
    assert parse_body(null, stream=True).text == null.replace("null", "true")
    for text, stream in ((plain[:-1] + ',"stream":false}', True), (plain[:-1] + ',"stream":true}', False)):
        with pytest.raises(Invalid) as caught:
            parse_body(text, stream=stream)
        assert caught.value.param == "stream"


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("", None),
        ("[]", None),
        ("{", None),
        ('{"model":"m","messages":[{"role":"user"}]} x', None),
        ('{"model":"m","messages":[{"role":"user","content":NaN}]}', None),
        ('{"model":"m","messages":' + "[" * 100_000, None),
        ('{"messages":[{"role":"user"}]}', "model"),
        ('{"model":" ","messages":[{"role":"user"}]}', "model"),
        ('{"model":5,"messages":[{"role":"user"}]}', "model"),
        (r'{"model":"open/\ud800","messages":[{"role":"user"}]}', "model"),
        (r'{"model":"open/\u0000","messages":[{"role":"user"}]}', "model"),
        ('{"model":"' + "m" * 257 + '","messages":[{"role":"user"}]}', "model"),
        ('{"model":"m"}', "messages"),
        ('{"model":"m","messages":[]}', "messages"),
        ('{"model":"m","messages":"x"}', "messages"),
        ('{"model":"m","messages":[{"role":"user"},3]}', "messages[1]"),
        ('{"model":"m","messages":[{"content":"x"}]}', "messages[0].role"),
        ('{"model":"m","messages":[{"role":"user"}],"temperature":2.1}', "temperature"),
        ('{"model":"m","messages":[{"role":"user"}],"temperature":"1"}', "temperature"),
        ('{"model":"m","messages":[{"role":"user"}],"temperature":true}', "temperature"),
        ('{"model":"m","messages":[{"role":"user"}],"max_tokens":0}', "max_tokens"),
        ('{"model":"m","messages":[{"role":"user"}],"max_tokens":1.5}', "max_tokens"),
        ('{"model":"m","messages":[{"role":"user"}],"stream":1}', "stream"),
    ],
)
def test_body_when_wrong_then_invalid_names_the_field(text: str, param: str | None) -> None:
    with pytest.raises(Invalid) as caught:
        parse_body(text, stream=False)
    assert caught.value.param == param


def test_question_when_parts_then_their_texts() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "text", "text": "b"},
    ]
    sent = [{"role": "user", "content": "old"}, {"role": "user", "content": parts}, {"role": "tool", "content": "t"}]
    body = parse_body(json.dumps({"model": "m", "messages": sent}), stream=False)
    assert (body.question, body.question_text, body.in_tool_loop) == (1, "a\nb", True)
    assert body.conversation.endswith(json.dumps(sent[1]))


def test_typed_fields_when_built_then_extra_is_verbatim() -> None:
    text = build_body(
        "m",
        [("user", "hé", "al", None), ("", "", None, ' {"role":"tool","n":1.0} ')],
        0.5,
        7,
        ' { "seed":1.0, "x" : [] } ',
    )
    assert text == (
        '{"model":"m","messages":[{"role": "user", "content": "hé", "name": "al"},{"role":"tool","n":1.0}],'
        '"temperature":0.5,"max_tokens":7,"seed":1.0, "x" : []}'
    )
    with pytest.raises(Invalid, match="extra_json"):
        build_body("m", [("user", "x", None, None)], None, None, '{"temperature":1}')
    with pytest.raises(Invalid) as caught:
        build_body("m", [("user", "x", None, "{}")], None, None, None)
    assert caught.value.param == "messages[0].message_json"
