"""What the server takes and gives, as OpenAPI 3.1; the schemas are those that it checks with."""

from __future__ import annotations

from typing import Any

import msgspec

from capt_local.serve.protocol import IGNORED, NEUTRAL, ChatBody, CompletionBody
from capt_local.version import __version__

_ERRORS = {
    "400": "the request cannot be understood or done, or does not fit into the context",
    "401": "no key, or a wrong one",
    "403": "a Host or an origin that is not allowed",
    "404": "no such path or model",
    "408": "it took too long to arrive",
    "413": "too large",
    "415": "a kind of file that is not read",
    "503": "all places are taken",
}


def description() -> dict[str, Any]:
    """The description, as a JSON value."""
    (chat, completion), schemas = msgspec.json.schema_components(
        [ChatBody, CompletionBody], ref_template="#/components/schemas/{name}"
    )
    for name in ("ChatBody", "CompletionBody"):
        fields = schemas[name]["properties"]
        fields |= {each: {} for each in sorted(IGNORED)}
        fields |= {each: {"enum": [*values, None]} for each, values in sorted(NEUTRAL.items())}
        schemas[name]["additionalProperties"] = False
    schemas["ChatBody"]["properties"]["messages"] = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {"type": "string", "minLength": 1},
            },
            "additionalProperties": False,
        },
    }
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": ["message", "type", "code"]}},
    }
    document = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    kind = {"name": "kind", "in": "query", "required": True, "schema": {"type": "string"}}
    report = {"type": "object", "required": ["answer", "note"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "capt-local", "version": __version__},
        "security": [{"key": []}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            "/v1/models": {"get": _operation("The bundle and its methods")},
            "/v1/models/{model}": {
                "get": _operation("One of them")
                | {"parameters": [{"name": "model", "in": "path", "required": True,
                                   "schema": {"type": "string"}}]}
            },
            "/v1/chat/completions": {"post": _operation("An answer", _json(chat), stream=True)},
            "/v1/completions": {"post": _operation("Text", _json(completion), stream=True)},
            "/count": {"post": _operation("Tokens of a conversation", _json(chat))},
            "/report": {
                "post": _operation("An answer as a page", _json(report), kind="text/html")
            },
            "/documents": {
                "post": _operation("The text of a file", document) | {"parameters": [kind]}
            },
            "/about": {"get": _operation("Models, limits and tasks")},
            "/health": {"get": _operation("Whether it runs") | {"security": []}},
            "/metrics": {"get": _operation("Counts for Prometheus", kind="text/plain")},
        },
    }  # fmt: skip


def _json(schema: Any) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str,
    body: dict[str, Any] | None = None,
    *,
    kind: str = "application/json",
    stream: bool = False,
) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {}}
    if stream:
        content["text/event-stream"] = {}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {code: {"description": why, "content": error} for code, why in _ERRORS.items()}
    found: dict[str, Any] = {"summary": summary}
    if body is not None:
        found["requestBody"] = body
    return found | {"responses": {"200": {"description": summary, "content": content}} | responses}
