"""The OpenAPI document, made from the descriptors and the comments of the protos."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import Descriptor

import memoryos
from memoryos.schema import Method, Route, required_fields
from memoryos.v1 import options_pb2
from memoryos_bridge.answers import Answer
from memoryos_bridge.binding import Binding
from memoryos_bridge.codec import Codec, FieldCodec, MessageCodec
from memoryos_bridge.errors import TYPES

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "success": {"type": "boolean", "const": False, "description": "Only on some routes."},
        "error": {
            "type": "object",
            "required": ["type", "message", "details", "code", "param"],
            "properties": {
                "type": {"type": "string", "enum": sorted(set(TYPES.values()))},
                "message": {"type": "string", "description": "One sentence for people."},
                "details": {"type": ["string", "null"], "description": "More for people."},
                "code": {"type": "string", "description": "The machine-readable reason."},
                "param": {"type": ["string", "null"], "description": "The field at fault, dotted."},
            },
        },
    },
}

_HEADERS: dict[str, dict[str, Any]] = {
    "TenantId": {
        "name": "X-Tenant-ID",
        "in": "header",
        "description": "The tenant. Default: the key's.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "UserId": {
        "name": "X-User-ID",
        "in": "header",
        "description": "The user, percent-encoded UTF-8. Default: the key's; another one needs the permission act_as.",
        "schema": {"type": "string", "minLength": 1},
    },
    "RequestId": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "The id of the request, at most 128 visible ASCII characters; made anew if it is anything else or "
        "absent, and always returned.",
        "schema": {"type": "string"},
    },
}


def comments() -> Mapping[str, str]:
    """The comments of the protos by full name; descriptors loaded at run time do not carry them."""
    try:
        text = (files("memoryos.v1") / "descriptions.json").read_text("utf-8")
    except FileNotFoundError:
        return {}
    found: dict[str, str] = json.loads(text)
    return found


class _Schemas:
    """The component schemas of all messages that are met."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self.made: dict[str, dict[str, Any]] = {"Error": _ERROR}

    def name(self, descriptor: Descriptor) -> str:
        own = descriptor.full_name.removeprefix("memoryos.v1.")
        return str(own)

    def of(self, codec: MessageCodec) -> dict[str, Any]:
        """A reference to the schema of a message."""
        name = self.name(codec.descriptor)
        if name not in self.made:
            self.made[name] = {}
            self.made[name].update(self.object(codec, tuple(codec.fields.values()), strict=name.endswith("Request")))
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, codec: MessageCodec, fields: Sequence[FieldCodec], *, strict: bool) -> dict[str, Any]:
        """The schema of an object with some fields of a message."""
        needed = {f.name for f in required_fields(codec.descriptor)}
        made: dict[str, Any] = {"type": "object", "properties": {f.name: self.field(f) for f in fields}}
        required = [f.name for f in fields if f.field.name in needed]
        if not strict:
            required = [f.name for f in fields if not f.field.has_presence]
        if required:
            made["required"] = required
        if strict:
            made["additionalProperties"] = False
        text = self._texts.get(codec.descriptor.full_name)
        return ({"description": text} if text else {}) | made

    def field(self, field: FieldCodec) -> dict[str, Any]:
        """The schema of a field."""
        message = field.message or field.form
        single: dict[str, Any] = self.of(message) if message is not None else dict(_kind(field))
        made: dict[str, Any]
        if field.is_map:
            made = {"type": "object", "additionalProperties": single}
        elif field.field.is_repeated:
            made = {"type": "array", "items": single}
        else:
            made = single
        options = field.field.GetOptions().Extensions[options_pb2.field]
        if options.null_when_absent and "type" in made:
            made = made | {"type": [made["type"], "null"]}
        text = self._texts.get(field.field.full_name)
        return made | ({"description": text} if text else {})


def _kind(field: FieldCodec) -> dict[str, Any]:
    return field.kind.schema if field.kind is not None else {}


def document(methods: Sequence[Method], codec: Codec) -> dict[str, Any]:
    """The OpenAPI 3.1 document of every route of `methods`."""
    texts = comments()
    schemas = _Schemas(texts)
    paths: dict[str, dict[str, Any]] = {}
    tags: dict[str, str] = {}
    for method in methods:
        for index, route in enumerate(method.routes):
            tag = method.service.rpartition(".")[2].removesuffix("Service")
            tags[tag] = texts.get(method.service, "")
            operation = _operation(method, route, codec, schemas, texts)
            operation["operationId"] = method.name if index == 0 else f"{method.name}{index + 1}"
            operation["tags"] = [tag]
            paths.setdefault(route.template, {})[route.verb.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "MemoryOS", "version": memoryos.__version__, "license": {"name": "Apache-2.0"}},
        "security": [{"bearer": []}, {}],
        "tags": [{"name": name} | ({"description": text} if text else {}) for name, text in tags.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key. Needed unless auth is off."}
            },
            "parameters": _HEADERS,
            "responses": {
                "Error": {
                    "description": "What went wrong.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "schemas": dict(sorted(schemas.made.items())),
        },
    }


def _operation(
    method: Method, route: Route, codec: Codec, schemas: _Schemas, texts: Mapping[str, str]
) -> dict[str, Any]:
    text = texts.get(f"{method.service}.{method.name}", "")
    summary = text.partition(". ")[0].rstrip(".") or method.name
    public = method.permission == "public"
    made: dict[str, Any] = {"summary": summary} | ({"description": text} if text else {})
    if public:
        made["security"] = []
    else:
        made["description"] = f"{text} Needs the permission `{method.permission}`.".strip()
    fragment = _CUSTOM.get(method.path) if method.rest.custom else None
    if fragment is not None:
        made |= copy.deepcopy(fragment)
        _exemplify(made, method)
        return made
    if method.rest.custom:
        return made | {"responses": {"200": {"description": "The answer."}}}
    binding = Binding(codec, method, route)
    parameters = [_parameter(f, "path", schemas, method) for f in binding.path]
    parameters += [_parameter(f, "query", schemas, method) for f in binding.query.values()]
    if not public:
        parameters += [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS]
    if parameters:
        made["parameters"] = parameters
    if binding.body:
        made["requestBody"] = _body(method, route, binding, codec, schemas)
        _exemplify(made, method)
    made["responses"] = _responses(method, route, codec, schemas)
    return made


def _exemplify(operation: dict[str, Any], method: Method) -> None:
    """Gives the request body the example that the proto has."""
    if method.rest.example and "requestBody" in operation:
        operation["requestBody"]["content"]["application/json"]["example"] = json.loads(method.rest.example)


def _parameter(field: FieldCodec, where: str, schemas: _Schemas, method: Method) -> dict[str, Any]:
    schema = schemas.field(field)
    text = schema.pop("description", "")
    needed = any(f.name == field.field.name for f in required_fields(method.descriptor.input_type))
    # On DELETE a field may come in the body instead.
    required = where == "path" or (needed and not any(r.verb == "DELETE" and r.body == "*" for r in method.routes))
    made = {"name": field.name, "in": where, "required": required, "schema": schema}
    return made | ({"description": text} if text else {})


def _body(method: Method, route: Route, binding: Binding, codec: Codec, schemas: _Schemas) -> dict[str, Any]:
    request = codec.of(method.descriptor.input_type)
    if route.body != "*":
        schema = schemas.field(binding.body[0])
    elif len(binding.body) == len(request.fields):
        schema = schemas.of(request)
    else:
        schema = schemas.object(request, binding.body, strict=True)
    return {"required": route.verb != "DELETE", "content": {"application/json": {"schema": schema}}}


def _responses(method: Method, route: Route, codec: Codec, schemas: _Schemas) -> dict[str, Any]:
    response = codec.of(method.descriptor.output_type)
    schema = schemas.of(response)
    if route.response_body:
        schema = schemas.field(response.by_proto[route.response_body])
    envelope = method.rest.envelope
    extra: dict[str, Any] = {}
    if envelope == options_pb2.ENVELOPE_STATUS_OK:
        extra["status"] = {"type": "string"}
    elif envelope in (options_pb2.ENVELOPE_SUCCESS, options_pb2.ENVELOPE_SUCCESS_DATA):
        extra["success"] = {"type": "boolean", "const": True}
    if method.rest.message:
        extra["message"] = {"type": "string"}
    if envelope == options_pb2.ENVELOPE_SUCCESS_DATA:
        extra["data"] = schema
        schema = {"type": "object", "required": list(extra), "properties": extra}
    elif not route.response_body and extra:
        schema = {"allOf": [{"type": "object", "required": list(extra), "properties": extra}, schema]}
    content = {"application/json": {"schema": schema}}
    shape = Answer(codec, method, route)
    made = {str(code): {"description": "The answer.", "content": content} for code in shape.codes}
    return made | {"default": {"$ref": "#/components/responses/Error"}}


# The routes whose HTTP shape is not ours, as their authors describe them.
def _conversation(required: Sequence[str], properties: Mapping[str, Any]) -> dict[str, Any]:
    """The operation that continues a conversation in one of OpenAI's forms.

    Args:
        required: The members of the body that must be there.
        properties: The members that are checked.
    """
    return {
        "parameters": [
            *({"$ref": f"#/components/parameters/{name}"} for name in _HEADERS),
            {
                "name": "X-MemoryOS-Memory",
                "in": "header",
                "description": "What to do with memory. Default: recall and remember.",
                "schema": {"type": "string", "enum": ["off", "read", "write"]},
            },
            {
                "name": "X-MemoryOS-Report",
                "in": "header",
                "description": "`comment` ends a stream with an SSE comment that says what memory did.",
                "schema": {"type": "string", "enum": ["comment"]},
            },
            {
                "name": "X-MemoryOS-Session-ID",
                "in": "header",
                "description": "The conversation. Default: one per idle gap.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Dedupes the remembering, not the call to the provider.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": list(required),
                        "properties": {
                            "model": {"type": "string"},
                            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
                            "stream": {"type": "boolean"},
                            **properties,
                        },
                        "additionalProperties": True,
                    }
                }
            },
        },
        "responses": {
            "200": {
                "description": "OpenAI's answer, or with `stream` its server-sent events.",
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    # What each event holds is OpenAI's to say.
                    "text/event-stream": {},
                },
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }


_ITEMS = {"type": "array", "items": {"type": "object"}}
_CUSTOM: dict[str, dict[str, Any]] = {
    "/memoryos.v1.SystemService/GetMetrics": {
        "responses": {
            "200": {
                "description": "Prometheus text of the bridge and the server.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            }
        }
    },
    "/memoryos.v1.ChatService/CreateChatCompletion": _conversation(
        ["model", "messages"],
        {"messages": {**_ITEMS, "minItems": 1}, "max_tokens": {"type": "integer", "minimum": 1}},
    ),
    "/memoryos.v1.ChatService/CreateResponse": _conversation(
        ["model"], {"input": {"anyOf": [{"type": "string"}, _ITEMS]}, "instructions": {"type": "string"}}
    ),
}
