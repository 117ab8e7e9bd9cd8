"""What pydantic found, in the words of the file's author: what is wrong, what is allowed.

pydantic speaks of models and inputs, and may show the input, which can be a misplaced secret. Here
each of its error types becomes a sentence; an unknown key gets the nearest known one.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.conf.faults import Finding, Path, did_you_mean
from gateway.conf.fields import Section
from gateway.conf.schema import Conf
from gateway.conf.units import shown

__all__ = ["FINDINGS_MAX", "error_details", "explain", "keys_at"]

FINDINGS_MAX = 1000  # nobody reads more, and each one costs a search of near words

_BOUNDS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_TYPES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "int_parsing_size": "is a number of too many digits",
}


def explain(error: ValidationError) -> list[Finding]:
    """A finding for each of pydantic's errors; beyond FINDINGS_MAX without its explanation."""
    details = error_details(error)
    findings = [_finding(detail) for detail in details[:FINDINGS_MAX]]
    findings += [Finding(detail["loc"], "is wrong as well") for detail in details[FINDINGS_MAX:]]
    return findings


def error_details(error: ValidationError) -> list[ErrorDetails]:
    """pydantic's errors that are faults of their own.

    A default that is made from other keys is not made where those are wrong: that is no other one.
    """
    return [
        detail
        for detail in error.errors(include_url=False)
        if detail["type"] != "default_factory_not_called"
    ]


def keys_at(path: Path) -> tuple[str, ...]:
    """The keys that the table at a path may have; none where any or no key may stand."""
    annotation: Any = Conf
    for part in path:
        annotation = _inner(_bare(annotation), part)
    annotation = _bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return tuple(annotation.model_fields)
    return ()


def _finding(detail: ErrorDetails) -> Finding:
    path: Path = detail["loc"]
    if path[-1:] == ("[key]",) and detail["type"] != "extra_forbidden":
        path = path[:-1]  # pydantic's mark for the name of a table's key
    return Finding(path, _MESSAGES.get(detail["type"], _other)(detail, path))


def _unknown(detail: ErrorDetails, path: Path) -> str:
    known = keys_at(path[:-1])
    allowed = ", ".join(known)
    return f"unknown key{did_you_mean(str(path[-1]), known)}; allowed: {allowed}"


def _missing(detail: ErrorDetails, path: Path) -> str:
    return "is missing; it must be set"


def _value_error(detail: ErrorDetails, path: Path) -> str:
    return str(detail["ctx"]["error"])


def _literal(detail: ErrorDetails, path: Path) -> str:
    expected = detail["ctx"]["expected"].replace("'", '"')
    value = detail["input"]
    known = [word.strip('"') for word in expected.replace(" or ", ", ").split(", ")]
    near = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"{shown(value)} is not allowed; use {expected}{near}"


def _length(detail: ErrorDetails, path: Path) -> str:
    context = detail["ctx"]
    if "max_length" in context:
        return f"has too many entries; at most {context['max_length']}"
    return f"has too few entries; at least {context['min_length']}"


def _other(detail: ErrorDetails, path: Path) -> str:
    kind = detail["type"]
    bound = _BOUNDS.get(kind)
    if bound is not None:
        name, words = bound
        return f"{shown(detail['input'])} is out of range; {words} {detail['ctx'][name]}"
    return _TYPES.get(kind, "is not of the right kind")


_MESSAGES: dict[str, Callable[[ErrorDetails, Path], str]] = {
    "extra_forbidden": _unknown,
    "missing": _missing,
    "value_error": _value_error,
    "literal_error": _literal,
    "too_long": _length,
    "too_short": _length,
}


def _bare(annotation: Any) -> Any:
    """A type without Annotated and without `| None`."""
    while True:
        origin = typing.get_origin(annotation)
        arguments = typing.get_args(annotation)
        if origin is Annotated:
            annotation = arguments[0]
        elif origin in (types.UnionType, typing.Union) and type(None) in arguments:
            rest = [argument for argument in arguments if argument is not type(None)]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def _inner(annotation: Any, part: str | int) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field is not None else None
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return arguments[1]
    if typing.get_origin(annotation) is tuple:
        return arguments[0]
    return None
