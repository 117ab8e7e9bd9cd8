"""Secrets: read from where they are named, and never shown by anything."""

from __future__ import annotations

import base64
import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conf.schema import Admin, Conf
from gateway.conf.secret import SealingKey, Secret, Surroundings, read_key, read_secret

VALUE = "hunter2"


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    (tmp_path / "token").write_text(VALUE + "\n")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "token").write_text(VALUE)
    environ = {"TOKEN": VALUE, "CREDENTIALS_DIRECTORY": str(tmp_path / "credentials")}
    return Surroundings(str(tmp_path), environ)


@pytest.mark.parametrize("table", [{"env": "TOKEN"}, {"file": "token"}, {"credential": "token"}])
def test_a_secret_is_read_and_not_shown(table: dict[str, str], around: Surroundings) -> None:
    secret = read_secret(table, around)
    assert secret.reveal() == VALUE
    name = next(iter(table.values()))
    assert name in secret.source
    conf = Conf(admin=Admin.model_construct(token=secret))
    texts = (repr(secret), str(secret), f"{secret}", repr(conf), str(conf), conf.model_dump_json())
    assert all(VALUE not in text for text in texts)
    assert name in conf.model_dump_json()
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert copy.copy(secret) is copy.deepcopy(secret) is secret


def test_secrets_are_equal_by_value(around: Surroundings) -> None:
    one, two = read_secret({"env": "TOKEN"}, around), read_secret({"file": "token"}, around)
    assert one == two
    assert hash(one) == hash(two)
    assert one != Secret("other", "env TOKEN")
    assert one != VALUE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (VALUE, "never a literal"),
        ({}, "must name one source"),
        ({"env": "A", "file": "B"}, "must name one source"),
        ({"environment": "A"}, "unknown source"),
        ({"env": 3}, "must be a text"),
        ({"env": ""}, "must be a text"),
        ({"env": "NOT_THERE"}, "is not set"),
        ({"env": "EMPTY"}, "is empty"),
        ({"env": "LINES"}, "control characters"),
        ({"env": "LONG"}, "longer than 64KiB"),
        ({"env": "SURROGATE"}, "not UTF-8"),
        ({"file": "missing"}, "does not exist"),
        ({"file": "."}, "does not exist or is not a plain file"),
        ({"file": "a\0b"}, "does not exist"),
        ({"file": "long"}, "longer than 64KiB"),
        ({"file": "latin"}, "not UTF-8"),
        ({"credential": "../token"}, "is not a credential's name"),
        ({"credential": ".."}, "is not a credential's name"),
        ({"credential": "token"}, "CREDENTIALS_DIRECTORY is not set"),
    ],
)
def test_a_bad_secret_is_refused(value: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("a" * 70_000)
    (tmp_path / "latin").write_bytes(b"\xff")
    environ = {"EMPTY": "", "LINES": "a\nb", "LONG": "a" * 70_000, "SURROGATE": "a\udcff"}
    if "token" not in str(value) or "../" in str(value):
        environ["CREDENTIALS_DIRECTORY"] = str(tmp_path)
    with pytest.raises(ValueError) as caught:
        read_secret(value, Surroundings(str(tmp_path), environ))
    assert words in str(caught.value)
    assert VALUE not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").touch(mode=0)
    with pytest.raises(ValueError, match="Permission denied"):
        read_secret({"file": "closed"}, Surroundings(str(tmp_path), {}))


def test_a_sealing_key_is_hex_or_base64() -> None:
    key = bytes(range(224, 256))
    texts = [key.hex(), key.hex().upper(), base64.b64encode(key).decode() + "\n"]
    texts.append(base64.urlsafe_b64encode(key).decode())
    for text in texts:
        environ = {"KEY": text.rstrip("\n")}
        read = read_key({"env": "KEY"}, Surroundings("/", environ))
        assert isinstance(read, SealingKey)
        assert read.reveal_bytes() == key
        assert key.hex() not in repr(read)


@given(st.text(min_size=1, max_size=80))
def test_what_is_not_32_octets_is_no_key(text: str) -> None:
    try:
        key = read_key({"env": "KEY"}, Surroundings("/", {"KEY": text}))
    except ValueError as error:
        assert text not in str(error) or len(text) < 40
    else:
        assert len(key.reveal_bytes()) == 32
