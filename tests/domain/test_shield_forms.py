"""What goes to providers: every member of every form of OpenAI's two interfaces is walked, as its own package describes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin

import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionPredictionContentParam
from openai.types.responses import ResponseInputItemParam, ResponsePromptParam
from typing_extensions import get_type_hints, is_typeddict

from memoryos_server.domain.chat.form import CHAT_COMPLETIONS, Form
from memoryos_server.domain.chat.outside import passed_on
from memoryos_server.domain.chat.responses import RESPONSES
from memoryos_server.domain.shield.redaction import KINDS, redactor

MAIL = "ann@mail.example"
CLEAN = "[redacted:email]"
ALTERNATIVES = (Union, UnionType)

NO_TEXTS = {
    "id", "call_id", "tool_call_id", "container_id", "file_id", "approval_request_id", "caller_id", "type", "name",
    "namespace", "server_label", "url", "file_url", "image_url", "data", "file_data", "filename", "path",
    "working_directory", "user", "encrypted_content", "fingerprint",
}  # fmt: skip
"""Members that are names, addresses, places or data: whoever changes one breaks the request."""


def samples(kind: Any, depth: int = 0) -> Iterator[Any]:
    """Values of a type in all its alternatives, with an address in the place of every text."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Required, NotRequired):
        yield from samples(inner[0], depth)
    elif origin is Literal:
        yield inner[0]
    elif origin in ALTERNATIVES:
        for one in inner:
            yield from samples(one, depth)
    elif is_typeddict(kind):
        yield from objects(kind, depth)
    elif kind is str:
        yield MAIL
    elif kind in (int, float, bool, type(None)):
        yield {int: 1, float: 0.5, bool: True, type(None): None}[kind]
    elif origin is dict or kind in (object, Any):
        yield from ({"any": one} for one in samples(inner[1] if inner else str, depth + 1))
    elif isinstance(origin, type) and issubclass(origin, Iterable):
        yield [one for one in samples(inner[0], depth + 1)]
    else:
        raise AssertionError(f"a form that the test does not know: {kind}")


def objects(kind: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth > 8:
        return
    made = {name: list(samples(hint, depth + 1)) for name, hint in get_type_hints(kind, include_extras=True).items()}
    for at in range(max(map(len, made.values()), default=0)):
        yield {name: values[min(at, len(values) - 1)] for name, values in made.items() if values}


def kept(value: Any, name: str = "", within: str = "") -> Iterator[tuple[str, str]]:
    """(member, member it is in) of the texts that still hold the address."""
    if isinstance(value, dict):
        for inner, one in value.items():
            yield from kept(one, inner, name)
    elif isinstance(value, list):
        for one in value:
            yield from kept(one, name, within)
    elif isinstance(value, str) and MAIL in value:
        yield name, within


def passed(form: Form, body: dict[str, Any]) -> dict[str, Any]:
    text = passed_on(form.parse(json.dumps({"model": "m", **body}), stream=False), redactor(["email"]))
    return body if text is None else json.loads(text)


def items() -> Iterator[tuple[Form, str, dict[str, Any]]]:
    for message in samples(ChatCompletionMessageParam):
        yield CHAT_COMPLETIONS, "messages", message
    for item in samples(ResponseInputItemParam):
        yield RESPONSES, "input", item


def test_item_when_it_has_any_form_there_is_then_all_that_somebody_wrote_is_cleaned() -> None:
    left: dict[str, set[str]] = {}
    kinds: set[str] = set()
    for form, member, one in items():
        made = passed(form, {member: [one]})[member][0]
        made.pop("tools", None)  # definitions go on as those beside the messages do
        if one.get("type") == "image_generation_call":
            assert made.pop("result") == one["result"]
        for name, within in kept(made):
            left.setdefault(name, set()).add(f"{one.get('type')}/{within}")
        kinds.add(f"{one.get('role')}:{one.get('type')}")
    assert len(kinds) > 30
    assert set(left) == NO_TEXTS, left


@pytest.mark.parametrize(
    "item",
    [
        {"type": "custom_tool_call", "call_id": "c", "name": "write", "input": f"to {MAIL}"},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": MAIL}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": MAIL}]},
        {"type": "local_shell_call", "action": {"type": "exec", "command": ["mail", MAIL], "env": {"name": MAIL}}},
        {"type": "shell_call_output", "output": [{"stdout": MAIL, "stderr": MAIL}]},
        {"type": "code_interpreter_call", "code": MAIL, "outputs": [{"type": "logs", "logs": MAIL}]},
        {"type": "apply_patch_call", "operation": {"type": "update_file", "path": "a", "diff": MAIL}},
        {"type": "mcp_call", "arguments": json.dumps({"id": MAIL}), "output": MAIL, "error": MAIL},
        {"type": "file_search_call", "queries": [MAIL], "results": [{"text": MAIL, "attributes": {"name": MAIL}}]},
        {"type": "some_call_of_tomorrow", "whatever": {"deep": [MAIL]}},
    ],
)
def test_item_when_a_call_or_a_thought_then_nothing_of_it_goes_on_as_it_was(item: dict[str, Any]) -> None:
    assert MAIL not in json.dumps(passed(RESPONSES, {"input": [item]}))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "w", "input": MAIL}}]},
        {"role": "assistant", "content": "hi", "reasoning_content": MAIL},
        {"role": "assistant", "content": "hi", "reasoning": MAIL, "reasoning_details": [{"summary": MAIL}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": MAIL}]},
        {"role": "assistant", "content": [{"type": "tool_use", "name": "w", "input": {"id": MAIL, "url": MAIL}}]},
        {"role": "assistant", "function_call": {"name": "w", "arguments": MAIL}},
    ],
)
def test_message_when_it_calls_or_thinks_then_nothing_of_it_goes_on_as_it_was(message: dict[str, Any]) -> None:
    assert MAIL not in json.dumps(passed(CHAT_COMPLETIONS, {"messages": [message]}))


def test_request_when_texts_stand_beside_its_messages_then_they_are_cleaned_too() -> None:
    for prediction in samples(ChatCompletionPredictionContentParam):
        made = passed(CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": "hi"}], "prediction": prediction})
        assert MAIL not in json.dumps(made)
    for prompt in samples(ResponsePromptParam):
        made = passed(RESPONSES, {"input": "hi", "instructions": f"Be kind to {MAIL}", "prompt": prompt})
        assert made["instructions"] == f"Be kind to {CLEAN}"
        assert {name for name, _ in kept(made["prompt"])} <= {*NO_TEXTS, "version"}
    named = passed(RESPONSES, {"input": "hi", "prompt": {"id": MAIL, "variables": {"id": MAIL, "name": MAIL}}})
    assert named["prompt"] == {"id": MAIL, "variables": {"id": CLEAN, "name": CLEAN}}
    other = {"user": MAIL, "metadata": {"who": MAIL}, "safety_identifier": MAIL}
    made = passed(RESPONSES, {"input": MAIL, **other})
    assert {name: made[name] for name in other} == other


SECRET = "hunter2x9"


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        ({"phone": 13812345678}, {"phone": "[redacted:phone]"}),
        ({"all": [13812345678, 5, -1.5e3, True, None]}, {"all": ["[redacted:phone]", 5, -1.5e3, True, None]}),
        ({"password": 12345678, "n": 1}, {"password": "[redacted:secret]", "n": 1}),
        (
            {"password": SECRET, "inner": {"pwd": SECRET}},
            {"password": "[redacted:secret]", "inner": {"pwd": "[redacted:secret]"}},
        ),
        ({"to": f"first line\n{MAIL}"}, {"to": f"first line\n{CLEAN}"}),
        ({"to": f'"{MAIL}"\\'}, {"to": f'"{CLEAN}"\\'}),
        ({MAIL: {"id": MAIL}}, {CLEAN: {"id": CLEAN}}),
        ({"key": "-----BEGIN PRIVATE KEY-----\nabc", "n": 1}, {"key": "[redacted:secret]", "n": 1}),
        ([MAIL, {}, []], [CLEAN, {}, []]),
    ],
)
def test_arguments_when_they_are_json_then_they_are_cleaned_and_still_are(arguments: Any, made: Any) -> None:
    for given in (json.dumps(arguments), json.dumps(arguments, indent=2, ensure_ascii=False)):
        call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": given}}
        body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}
        text = passed_on(CHAT_COMPLETIONS.parse(json.dumps(body), stream=False), redactor(list(KINDS)))
        assert text is not None
        left = json.loads(text)["messages"][0]["tool_calls"][0]["function"]["arguments"]
        assert json.loads(left) == made
        item = {"type": "function_call", "call_id": "c", "name": "w", "arguments": given}
        text = passed_on(
            RESPONSES.parse(json.dumps({"model": "m", "input": [item]}), stream=False), redactor(list(KINDS))
        )
        assert text is not None
        assert json.loads(json.loads(text)["input"][0]["arguments"]) == made


def test_arguments_when_nothing_is_found_in_them_then_they_go_on_letter_by_letter() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "w", "arguments": '{ "a" :1.50, "b": "\\u00e9" }'}}
    body = {"model": "m", "messages": [{"role": "assistant", "tool_calls": [call]}]}
    assert passed_on(CHAT_COMPLETIONS.parse(json.dumps(body), stream=False), redactor(list(KINDS))) is None


def test_thoughts_when_they_are_signed_then_they_go_back_as_they_came() -> None:
    thought = {"type": "thinking", "thinking": "ask ann@mail.example", "signature": "c2ln"}
    messages = [
        {"role": "user", "content": "ask bob@mail.example"},
        {"role": "assistant", "content": None, "thinking_blocks": [thought]},
    ]
    body = CHAT_COMPLETIONS.parse(json.dumps({"model": "m", "messages": messages}), stream=False)
    changed = passed_on(body, redactor(["email"]))
    assert changed is not None
    assert json.loads(changed)["messages"] == [{"role": "user", "content": "ask [redacted:email]"}, messages[1]]
