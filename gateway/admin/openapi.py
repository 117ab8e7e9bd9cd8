"""The OpenAPI 3.1 document of the admin interface, made from the table of operations."""

from __future__ import annotations

import re
from typing import Any

from gateway.admin.api import (
    BODY_BYTES_MAX,
    EVENTS_QUERY,
    NAME_PATTERN,
    OPERATIONS,
    PREFIX,
    Operation,
)
from gateway.admin.problems import PROBLEM
from gateway.admin.shapes import Shape, text
from gateway.build import egressd_version

__all__ = ["openapi_document"]

_PATH_PARAMETERS: dict[str, Shape] = {
    "upstream": text("An upstream's name.", pattern=NAME_PATTERN),
    "limit": text("A limit's name.", pattern=NAME_PATTERN),
    "record": text("What a 202 named.", minLength=1, maxLength=320, pattern="^[^/]+$"),
    "member": text("A member's name.", minLength=1, maxLength=64, pattern="^[^/]+$"),
}
_JSON = "application/json"


def openapi_document() -> dict[str, Any]:
    """The document, served at /api/v1/openapi.json."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        entry = paths.setdefault(PREFIX + operation.path, {})
        entry[operation.method.lower()] = _operation(operation)
    paths[f"{PREFIX}/events"] = {"get": _EVENTS}
    paths[f"{PREFIX}/openapi.json"] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document.",
            "responses": {"200": _content("The document.", {"type": "object"}), "default": _WRONG},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "egressd admin",
            "version": egressd_version(),
            "description": (
                "What a node knows, and what an operator may change. Lists name the node of each "
                f"item. A verb has a JSON body of at most {BODY_BYTES_MAX} octets; where no token "
                "is configured, Host must name this host."
            ),
        },
        "security": [{"token": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": PROBLEM},
        },
    }


def _content(about: str, shape: Shape, kind: str = _JSON) -> dict[str, Any]:
    return {"description": about, "content": {kind: {"schema": shape}}}


_WRONG = _content(
    "It was not done, and why.",
    {"$ref": "#/components/schemas/Problem"},
    "application/problem+json",
)
_EVENTS = {
    "operationId": "events",
    "summary": "Server-sent events: one snapshot a second, the newest only for a slow reader.",
    "parameters": [
        {"name": name, "in": "query", "schema": shape} for name, shape in EVENTS_QUERY.items()
    ],
    "responses": {
        "200": _content(
            "Events `snapshot`, each with one object of the lists nodes, members, upstreams, "
            "limits, breakers, waits and recent, `truncated`, and `head_bounds_ms`, the bounds of "
            "the classes of `heads`.",
            {"type": "string"},
            "text/event-stream",
        ),
        "default": _WRONG,
    },
}


def _operation(operation: Operation) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": shape} for name, shape in operation.query.items()
    ]
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.about,
        "parameters": parameters,
        "responses": {"200": _content("Done.", operation.gives), "default": _WRONG},
    }
    if operation.takes is not None:
        document["requestBody"] = {
            "required": True,
            "content": {_JSON: {"schema": operation.takes}},
        }
    return document
