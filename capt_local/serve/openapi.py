"""What the server takes and gives, as OpenAPI 3.1; the schemas are those that it checks with."""

from __future__ import annotations

from typing import Any

import msgspec

from capt_local.serve.protocol import IGNORED, NEUTRAL, ChatBody, CompletionBody
from capt_local.version import __version__

_ERRORS = {400: "cannot be understood, done or read by the models", 401: "needs a key",
           403: "Host or origin is not allowed", 404: "no such path or model", 408: "too slow",
           413: "too large", 415: "no file that is read here", 503: "full"}  # fmt: skip


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
    kind = {"name": "kind", "in": "query", "required": True, "schema": {"type": "string"}}
    model = kind | {"name": "model", "in": "path"}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {"post": _operation("An answer", chat)},
        "/v1/completions": {"post": _operation("A text, continued", completion)},
        "/count": {"post": _operation("Tokens of a conversation", chat)},
        "/report": {"post": _operation("An answer as a page", {"required": ["answer", "note"]})},
        "/documents": {"post": _operation("The text of a file", {}) | {"parameters": [kind]}},
        "/v1/models": {"get": _operation("The bundle and its methods")},
        "/v1/models/{model}": {"get": _operation("One of them") | {"parameters": [model]}},
        "/about": {"get": _operation("Models, limits and tasks")},
        "/metrics": {"get": _operation("Counts for Prometheus")},
        "/health": {"get": _operation("Whether it runs") | {"security": []}},
    }
    bearer = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "capt-local", "version": __version__},
        "security": [{"key": []}],
        "components": {"schemas": schemas, "securitySchemes": bearer},
        "paths": paths,
    }


def _operation(summary: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    kinds = ("application/json", "text/event-stream", "text/html", "text/plain")
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        str(code): {"description": why, "content": error} for code, why in _ERRORS.items()
    }
    responses["200"] = {"description": summary, "content": {kind: {} for kind in kinds}}
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found
