"""A configuration as plain values in the file's own words: for the admin interface, never a secret.

Durations, sizes and rates are the texts that the file would have; a secret is where it came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from typing import Any

from gateway.conf.fields import Printed, Section
from gateway.conf.schema import Conf

__all__ = ["digest_steps", "shown_steps"]

DIGEST_CHARACTERS = 16  # 64 bits: two nodes of a cluster do not have one by chance
ITEMS_A_STEP = 20  # an upstream takes some 100 us; a file has up to 10,000, and 100,000 routes

Steps = Generator[None, None, Any]


def shown_steps(conf: Conf) -> Steps:
    """All keys with the values in force, defaults included; absent ones are left out.

    A large file takes a second: the caller decides what happens between two steps.
    """
    shown: dict[str, Any] = {}
    for name in type(conf).model_fields:
        value = getattr(conf, name)
        if value is None:
            continue
        if isinstance(value, dict):
            shown[name] = table = {}
            for count, (key, item) in enumerate(value.items()):
                table[key] = _value(item)
                if count % ITEMS_A_STEP == 0:
                    yield
        elif type(value) is tuple:
            shown[name] = items = []
            for count, item in enumerate(value):
                items.append(_value(item))
                if count % ITEMS_A_STEP == 0:
                    yield
        else:
            shown[name] = _value(value)
            yield
    return shown


def digest_steps(conf: Conf) -> Steps:
    """A short hash of everything in force but what is this node's own: name and addresses.

    Nodes that were given the same file show the same one. Secrets count by where they are read.
    """
    shown = yield from shown_steps(conf)
    for section, own in _OWN.items():
        for key in own:
            shown.get(section, {}).pop(key, None)
    shown.pop("listen", None)
    state = hashlib.sha256()
    for name in sorted(shown):
        value = shown[name]
        items = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
        for place, item in items:
            line = json.dumps([name, place, item], sort_keys=True, separators=(",", ":"))
            state.update(line.encode() + b"\n")
            yield
    return state.hexdigest()[:DIGEST_CHARACTERS]


_OWN = {"node": ("name",), "mesh": ("bind", "advertise"), "admin": ("bind",)}


def _section(section: Section) -> dict[str, Any]:
    shown = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None:
            continue
        printed = next((item for item in field.metadata if isinstance(item, Printed)), None)
        shown[name] = _value(value) if printed is None else printed.text(value)
    return shown


def _value(value: Any) -> Any:
    if isinstance(value, Section):
        return _section(value)
    if isinstance(value, dict):
        return {str(name): _value(item) for name, item in value.items()}
    if type(value) is tuple:
        return [_value(item) for item in value]
    if isinstance(value, bool | int | float):
        return value
    return str(value)  # secrets, rates, addresses, networks: each prints itself
