"""Secrets: where they are read, and how they stay out of sight afterwards.

A configuration names a secret, it never holds one: `{ env = "NAME" }`, `{ file = "PATH" }` or
`{ credential = "NAME" }` (systemd's credentials directory). The value is read once, when the file
is loaded, so that a missing secret is a fault at its key and not a failure hours later. From then
on it can only be had by `reveal`: printing, dumping or pickling shows where it came from.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gateway.conf.units import shown

__all__ = ["SEALING_KEY_BYTES", "SealingKey", "Secret", "Surroundings", "read_key", "read_secret"]

# An environment variable is at most 128 KiB on Linux, a header field at most what an upstream
# takes; the longest real secrets (JWTs with certificates) stay below 16 KiB.
_SECRET_BYTES_MAX = 64 * 1024
SEALING_KEY_BYTES = 32  # ChaCha20-Poly1305 and AES-256-GCM both take 256 bits
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_FORMS = '{ env = "NAME" }, { file = "PATH" } or { credential = "NAME" }'


class Surroundings(NamedTuple):
    """What a configuration's texts refer to: the main file's folder and the environment."""

    folder: str
    environ: Mapping[str, str]

    def path(self, text: str) -> str:
        """The absolute path that a text means; a relative one counts from `folder`."""
        return str(Path(self.folder) / text)


class Secret:
    """A secret's value, behind `reveal`; `source` says where it was read, e.g. "env TOKEN"."""

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str) -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        """The value itself: for the one place that sends or compares it."""
        return self._value

    def __repr__(self) -> str:
        return f"<secret from {self.source}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


class SealingKey(Secret):
    """A key of the mesh, 32 octets; `reveal` gives it as hex."""

    __slots__ = ()

    def reveal_bytes(self) -> bytes:
        """The 32 octets."""
        return bytes.fromhex(self.reveal())


def read_secret(value: object, around: Surroundings) -> Secret:
    """Reads the secret that a table names. Raises ValueError, never with the value in it."""
    if isinstance(value, str):
        raise ValueError(f"a secret is never a literal; use {_FORMS}")
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"must name one source: {_FORMS}")
    form, name = next(iter(value.items()))
    if form not in ("env", "file", "credential"):
        raise ValueError(f"unknown source {shown(form)}; use {_FORMS}")
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a secret must be a text; use {_FORMS}")
    if form == "env":
        text = _read_env(name, around.environ)
    elif form == "credential":
        text = _read_credential(name, around.environ)
    else:
        text = _read_file(around.path(name))
    source = f"{form} {name}"
    if not text:
        raise ValueError(f"the secret from {shown(source)} is empty")
    if any(octet < " " or octet == "\x7f" for octet in text if octet != "\t"):
        raise ValueError(f"the secret from {shown(source)} holds control characters")
    return Secret(text, source)


def read_key(value: object, around: Surroundings) -> SealingKey:
    """Reads a key of the mesh: 32 octets as hex or base64 text. Raises ValueError."""
    secret = read_secret(value, around)
    text = secret.reveal().strip()
    key = b""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        try:
            # urlsafe alphabets are taken too: key generators print either.
            key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            key = b""
    if len(key) != SEALING_KEY_BYTES:
        raise ValueError(
            f"the key from {shown(secret.source)} must be {SEALING_KEY_BYTES} octets as hex or "
            "base64 text, as `openssl rand -hex 32` prints them"
        )
    return SealingKey(key.hex(), secret.source)


def _read_env(name: str, environ: Mapping[str, str]) -> str:
    text = environ.get(name)
    if text is None:
        raise ValueError(f"the environment variable {shown(name)} is not set")
    if len(text) > _SECRET_BYTES_MAX:
        raise ValueError(f"the environment variable {shown(name)} is longer than 64KiB")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the environment variable {shown(name)} is not UTF-8 text")
    return text


def _read_credential(name: str, environ: Mapping[str, str]) -> str:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ValueError(
            f"the credential {shown(name)} cannot be read: CREDENTIALS_DIRECTORY is not set "
            "(systemd sets it for LoadCredential=)"
        )
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise ValueError(f"{shown(name)} is not a credential's name; letters, digits, _ . - only")
    return _read_file(str(Path(folder) / name))


def _read_file(path: str) -> str:
    """The text of a file without one trailing newline. Raises ValueError."""
    try:
        if not Path(path).is_file():  # a device or a fifo could block or never end
            raise ValueError(f"the file {shown(path)} does not exist or is not a plain file")
        with Path(path).open("rb") as file:
            data = file.read(_SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"the file {shown(path)} cannot be read: {error.strerror}") from None
    if len(data) > _SECRET_BYTES_MAX:
        raise ValueError(f"the file {shown(path)} is longer than 64KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the file {shown(path)} is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")
