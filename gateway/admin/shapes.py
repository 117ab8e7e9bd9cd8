"""Shapes of JSON values: the words of JSON Schema that the API needs, and the judge of a value.

What the OpenAPI document shows of a request is the very shape that judges it, so the two cannot
part. The words are a subset of draft 2020-12: type, enum, pattern, minLength, maxLength, minimum,
maximum, properties, required, additionalProperties, items; whatever else is only told.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Shape", "faults", "integer", "listed", "maybe", "number", "record", "text", "truth"]

Shape = dict[str, Any]

_FAULTS_MAX = 20  # nobody reads more of one request
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def text(about: str = "", **words: Any) -> Shape:
    """A string."""
    return _told({"type": "string", **words}, about)


def integer(about: str = "", **words: Any) -> Shape:
    """A whole number; counted things are never below 0 unless `minimum` says so."""
    return _told({"type": "integer", "minimum": 0, **words}, about)


def number(about: str = "", **words: Any) -> Shape:
    """A number, 0 or more."""
    return _told({"type": "number", "minimum": 0, **words}, about)


def truth(about: str = "") -> Shape:
    """true or false."""
    return _told({"type": "boolean"}, about)


def maybe(shape: Shape) -> Shape:
    """Such a value, or null."""
    return {**shape, "type": [shape["type"], "null"]}


def listed(items: Shape, about: str = "") -> Shape:
    """A list of such values."""
    return _told({"type": "array", "items": items}, about)


def record(
    properties: dict[str, Shape], about: str = "", *, optional: tuple[str, ...] = ()
) -> Shape:
    """An object with these keys and no others; all but the optional ones are there."""
    return _told(
        {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name not in optional],
            "additionalProperties": False,
        },
        about,
    )


def faults(value: Any, shape: Shape, at: str = "body") -> list[str]:
    """What is wrong with a value, a sentence each, at most _FAULTS_MAX; none: it has the shape."""
    found: list[str] = []
    _judge(value, shape, at, found)
    return found[:_FAULTS_MAX]


def _told(shape: Shape, about: str) -> Shape:
    return {**shape, "description": about} if about else shape


def _judge(value: Any, shape: Shape, at: str, found: list[str]) -> None:
    kinds = shape["type"] if isinstance(shape["type"], list) else [shape["type"]]
    if not any(_is(value, kind) for kind in kinds):
        found.append(f"{at} must be {' or '.join(kinds)}")
    elif isinstance(value, dict):
        _judge_object(value, shape, at, found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _judge(item, shape["items"], f"{at}[{index}]", found)
    elif isinstance(value, str):
        _judge_text(value, shape, at, found)
    elif value is not None and not isinstance(value, bool):
        if value < shape.get("minimum", value):
            found.append(f"{at} must be at least {shape['minimum']}")
        if value > shape.get("maximum", value):
            found.append(f"{at} must be at most {shape['maximum']}")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def _judge_text(value: str, shape: Shape, at: str, found: list[str]) -> None:
    if len(value) < shape.get("minLength", 0):
        found.append(f"{at} must have at least {shape['minLength']} characters")
    elif len(value) > shape.get("maxLength", len(value)):
        found.append(f"{at} must have at most {shape['maxLength']} characters")
    elif "enum" in shape and value not in shape["enum"]:
        found.append(f"{at} must be one of {', '.join(shape['enum'])}")
    # Python's `$` would also match before a newline at the end.
    elif not re.fullmatch(shape.get("pattern", "(?s).*").strip("^$"), value):
        found.append(f"{at} must match {shape['pattern']}")


def _judge_object(value: dict[str, Any], shape: Shape, at: str, found: list[str]) -> None:
    properties: dict[str, Shape] = shape.get("properties", {})
    others = shape.get("additionalProperties", False)
    found += [f"{at}.{name} is missing" for name in shape.get("required", ()) if name not in value]
    for name, item in value.items():
        if name in properties:
            _judge(item, properties[name], f"{at}.{name}", found)
        elif others:
            _judge(item, others, f"{at}.{name[:40]!a}", found)
        else:
            found.append(f"{at} has no key {name[:40]!a}; it has {', '.join(properties)}")
