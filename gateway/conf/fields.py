"""The types of the schema's keys: a parser, its JSON schema, and how a value is printed.

pydantic is told everything about a kind of key in one place, an `Annotated` type. Parsers that
read files or the environment get them from the validation context, a `Surroundings`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    ValidationInfo,
    WithJsonSchema,
)

from gateway.conf import units, values
from gateway.conf.faults import did_you_mean
from gateway.conf.secret import SealingKey, Secret, Surroundings, read_key, read_secret

__all__ = [
    "CONDITION_WORDS",
    "NAME_PATTERN",
    "Address",
    "Advertise",
    "BindField",
    "Condition",
    "CostField",
    "Duration",
    "FieldName",
    "FieldValue",
    "FilePath",
    "Flag",
    "Float",
    "HostField",
    "HostSent",
    "Int",
    "Join",
    "KeyField",
    "LogPath",
    "MethodName",
    "Name",
    "NetworkField",
    "NodeName",
    "OriginField",
    "Prefix",
    "Printed",
    "RateField",
    "SealingKeyField",
    "SecretField",
    "SecretOrText",
    "Section",
    "Size",
    "Status",
    "Target",
    "Text",
    "TimeZone",
    "Unique",
    "Via",
    "Wait",
    "Workers",
    "derived",
    "option",
    "required",
    "unique",
]

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,62}$"  # 63: a DNS label, and one metric label's worth
_NAME = re.compile(NAME_PATTERN[1:-1])
_NODE_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # 64: HOST_NAME_MAX of Linux
_NODE_NAME = re.compile(_NODE_NAME_PATTERN[1:-1])
_METHOD_PATTERN = r"^[A-Z][A-Z0-9_-]{0,31}$"
_METHOD = re.compile(_METHOD_PATTERN[1:-1])
# Segments of RFC 3986 pchar octets; a percent sign stands before two hex digits.
_PREFIX_PATTERN = r"^/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*$"
_PREFIX = re.compile(_PREFIX_PATTERN[1:-1])
_PREFIX_CHARACTERS_MAX = 1024
# RFC 9110 section 5.5: visible octets, space and tab; each character is one octet on the wire.
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_WORKERS_MAX = 32  # each is a member, and a full mesh is built for 32

CONDITION_WORDS = ("connect", "timeout", "reset")


class Section(BaseModel):
    """A table of the file: frozen, and no key that is not named here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )


class Printed(NamedTuple):
    """How a whole number is printed in the units that the file uses."""

    text: Callable[[int], str]


def option(default: Any, description: str, **constraints: Any) -> Any:
    """A key that may be left out; the default is written as in the file, and checked like it."""
    return Field(default, validate_default=True, description=description, **constraints)


def derived(factory: Callable[..., Any], description: str, **constraints: Any) -> Any:
    """A key whose default is made for each table; a factory may take the keys above it."""
    return Field(
        default_factory=factory, validate_default=True, description=description, **constraints
    )


def required(description: str, **constraints: Any) -> Any:
    """A key that must be there."""
    return Field(description=description, **constraints)


def unique(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """The items, of which no two are equal. Raises ValueError."""
    seen = set()
    for item in items:
        if item in seen:
            raise ValueError(f"{units.shown(str(item))} stands twice in the list")
        seen.add(item)
    return items


def _around(info: ValidationInfo) -> Surroundings:
    context = info.context
    if isinstance(context, Surroundings):
        return context
    return Surroundings(os.getcwd(), os.environ)  # noqa: PTH109 -- a text is wanted


def _secret(value: object, info: ValidationInfo) -> Secret:
    return value if isinstance(value, Secret) else read_secret(value, _around(info))


def _sealing_key(value: object, info: ValidationInfo) -> SealingKey:
    return value if isinstance(value, SealingKey) else read_key(value, _around(info))


def _secret_or_text(value: object, info: ValidationInfo) -> Secret | str:
    return _text(value) if isinstance(value, str) else _secret(value, info)


def _field_value(value: object, info: ValidationInfo) -> Secret | str:
    """A header field's value; whether a literal is allowed depends on the name (check.py)."""
    result = value if isinstance(value, str) else _secret(value, info)
    text = result.reveal() if isinstance(result, Secret) else result
    if not _FIELD_VALUE.fullmatch(text) or text != text.strip(" \t"):
        raise ValueError(
            "a field's value has no control characters, none beyond U+00FF, and no space around it"
        )
    return result


def _text(value: object) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 4096 or not value.isprintable():
        raise ValueError("must be a text of 1 to 4096 printable characters")
    return value


def _file_path(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 4096 or "\0" in value:
        raise ValueError("must be a file's path")
    return _around(info).path(value)


def _log_path(value: object, info: ValidationInfo) -> str:
    return str(value) if value in ("off", "stdout") else _file_path(value, info)


def _bind(value: object, info: ValidationInfo) -> values.Bind:
    bind = value if isinstance(value, values.Bind) else values.parse_bind(value)
    if bind.kind != "unix" or bind.path.startswith("/"):
        return bind
    return values.parse_bind("unix:" + _around(info).path(bind.path))


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"{units.shown(value)} is not a name; use a-z, 0-9 and -, at most 63 characters, "
            "not beginning with -"
        )
    return value


def _node_name(value: object) -> str:
    if not isinstance(value, str) or not _NODE_NAME.fullmatch(value):
        raise ValueError(
            f"{units.shown(value)} is not a node's name; use letters, digits, . _ -, at most 64"
        )
    return value


def _field_name(value: object) -> str:
    if not isinstance(value, str) or not values.HTTP_TOKEN.fullmatch(value) or len(value) > 128:
        raise ValueError(
            f"{units.shown(value)} does not name a header field (RFC 9110 section 5.1)"
        )
    return value


def _method(value: object) -> str:
    if not isinstance(value, str) or not _METHOD.fullmatch(value):
        raise ValueError(
            f"{units.shown(value)} is not a method; they are case-sensitive, as in 'GET'"
        )
    return value


def _prefix(value: object) -> str:
    if (
        not isinstance(value, str)
        or len(value) > _PREFIX_CHARACTERS_MAX
        or not _PREFIX.fullmatch(value)
    ):
        raise ValueError(f'{units.shown(value)} is not a path; it begins with "/", without query')
    if "//" in value or any(segment in (".", "..") for segment in value.split("/")):
        raise ValueError(f"{units.shown(value)} has an empty or dot segment, which never matches")
    return value


def _host_sent(value: object) -> str:
    if value in ("origin", "client"):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > 300:
        raise ValueError('must be "origin", "client" or a host')
    if ":" in value.rpartition("]")[2]:
        return str(values.parse_advertise(value))
    host = values.parse_host(value)
    return f"[{host}]" if ":" in host else host


def _workers(value: object) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _WORKERS_MAX:
        raise ValueError(f'{units.shown(value)}: use 1 to {_WORKERS_MAX} or "auto"')
    return value


def _status(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 400 <= value <= 599:
        raise ValueError(f"{units.shown(value)} is not an error status; use 400 to 599")
    return value


def _condition(value: object) -> int | str:
    if isinstance(value, str) and value in CONDITION_WORDS:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 400 <= value <= 599:
        words = ", ".join(f'"{word}"' for word in CONDITION_WORDS)
        near = did_you_mean(value, CONDITION_WORDS) if isinstance(value, str) else ""
        raise ValueError(f"{units.shown(value)}: use a status (400 to 599), {words}{near}")
    return value


def _time_zone(value: object) -> str:
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError('must be a time zone\'s name such as "Europe/Berlin"')
    try:
        ZoneInfo(value)
    except (OSError, ValueError, LookupError):
        # Missing zones are LookupErrors, folders OSErrors, paths out of the data ValueErrors.
        raise ValueError(
            f"{units.shown(value)} is no time zone of this host; use one such as 'Europe/Berlin'"
        ) from None
    return value


def _wait(value: object) -> int:
    return units.parse_duration(value, zero_ok=True)


def _kind(parse: Callable[..., Any], schema: dict[str, Any], *more: Any) -> tuple[Any, ...]:
    return (PlainValidator(parse), WithJsonSchema(schema), *more)


_AS_TEXT = PlainSerializer(str)
_STRING: dict[str, Any] = {"type": "string"}
_SECRET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Where a secret is read; it is never a literal.",
    "oneOf": [{"required": ["env"]}, {"required": ["file"]}, {"required": ["credential"]}],
    "properties": {"env": _STRING, "file": _STRING, "credential": _STRING},
    "additionalProperties": False,
}
_COST_SCHEMA: dict[str, Any] = {
    "oneOf": [
        {"type": "integer", "minimum": 1},
        {
            "type": "object",
            "oneOf": [{"required": ["header"]}, {"required": ["response_header"]}],
            "properties": {"header": _STRING, "response_header": _STRING},
            "additionalProperties": False,
        },
    ]
}
_STATUS_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 400, "maximum": 599}


def _pattern(pattern: str, *examples: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "examples": list(examples)}


_DURATION_SCHEMA = _pattern(units.DURATION_PATTERN, "250ms", "10s")

Duration = Annotated[
    int, *_kind(units.parse_duration, _DURATION_SCHEMA, Printed(units.duration_text))
]
Wait = Annotated[int, *_kind(_wait, _DURATION_SCHEMA, Printed(units.duration_text))]
Size = Annotated[
    int,
    *_kind(units.parse_size, _pattern(units.SIZE_PATTERN, "64KiB"), Printed(units.size_text)),
]
RateField = Annotated[
    units.Rate, *_kind(units.parse_rate, _pattern(units.RATE_PATTERN, "100/s"), _AS_TEXT)
]

Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, *_kind(_text, _STRING)]
Workers = Annotated[
    int | str,
    *_kind(_workers, {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}),
]

Name = Annotated[str, *_kind(_name, {"type": "string", "pattern": NAME_PATTERN})]
NodeName = Annotated[str, *_kind(_node_name, {"type": "string", "pattern": _NODE_NAME_PATTERN})]
FieldName = Annotated[str, *_kind(_field_name, _STRING)]
MethodName = Annotated[str, *_kind(_method, {"type": "string", "pattern": _METHOD_PATTERN})]
Prefix = Annotated[str, *_kind(_prefix, {"type": "string", "pattern": _PREFIX_PATTERN})]
TimeZone = Annotated[str, *_kind(_time_zone, _STRING)]
FilePath = Annotated[str, *_kind(_file_path, _STRING)]
LogPath = Annotated[str, *_kind(_log_path, _STRING)]

Status = Annotated[int, *_kind(_status, _STATUS_SCHEMA)]
Condition = Annotated[
    int | str, *_kind(_condition, {"anyOf": [_STATUS_SCHEMA, {"enum": list(CONDITION_WORDS)}]})
]

SecretField = Annotated[Secret, *_kind(_secret, _SECRET_SCHEMA, PlainSerializer(repr))]
SealingKeyField = Annotated[SealingKey, *_kind(_sealing_key, _SECRET_SCHEMA, PlainSerializer(repr))]
SecretOrText = Annotated[
    Secret | str, *_kind(_secret_or_text, {"anyOf": [_STRING, _SECRET_SCHEMA]}, _AS_TEXT)
]
FieldValue = Annotated[
    Secret | str, *_kind(_field_value, {"anyOf": [_STRING, _SECRET_SCHEMA]}, _AS_TEXT)
]

BindField = Annotated[values.Bind, *_kind(_bind, _STRING, _AS_TEXT)]
Address = Annotated[values.HostPort, *_kind(values.parse_address, _STRING, _AS_TEXT)]
Advertise = Annotated[values.HostPort, *_kind(values.parse_advertise, _STRING, _AS_TEXT)]
Join = Annotated[values.JoinAddress, *_kind(values.parse_join, _STRING, _AS_TEXT)]
OriginField = Annotated[
    values.Origin,
    *_kind(values.parse_origin, {"type": "string", "pattern": "^https?://"}, _AS_TEXT),
]
Via = Annotated[
    values.Origin,
    *_kind(values.parse_via, {"type": "string", "pattern": "^(http|socks5)://"}, _AS_TEXT),
]
HostField = Annotated[str, *_kind(values.parse_host_pattern, _STRING)]
HostSent = Annotated[str, *_kind(_host_sent, _STRING)]
NetworkField = Annotated[values.Network, *_kind(values.parse_network, _STRING, _AS_TEXT)]
Target = Annotated[values.TargetPattern, *_kind(values.parse_target, _STRING, _AS_TEXT)]
KeyField = Annotated[values.KeyPart, *_kind(values.parse_key_part, _STRING, _AS_TEXT)]
CostField = Annotated[values.Cost, *_kind(values.parse_cost, _COST_SCHEMA, _AS_TEXT)]

Unique = AfterValidator(unique)
