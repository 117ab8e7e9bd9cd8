"""Writing a configuration and judging it: what most tests of this room do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from gateway.conf.faults import ConfError
from gateway.conf.load import load
from gateway.conf.schema import Conf

LISTEN = 'listen = [{ bind = "127.0.0.1:8080" }]\n'


@pytest.fixture(scope="session")
def pem() -> bytes:
    """A key and its certificate in one file: good as `cert`, as `key` and as an authority."""
    return trustme.CA().issue_cert("a.test").private_key_and_cert_chain_pem.bytes()


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Conf]:
    """Loads a text, with a listener in front where it has none of its own."""

    def run(text: str, *overrides: str, **environ: str) -> Conf:
        path = tmp_path / "egressd.toml"
        path.write_text(text if "listen" in text else LISTEN + text)
        return load(path, overrides, environ)

    return run


@pytest.fixture
def judged(loaded: Callable[..., Conf]) -> Callable[..., list[str]]:
    """The faults of a text as `LINE: key: message`; lines count from the text's own first."""

    def run(text: str, *overrides: str, **environ: str) -> list[str]:
        before = 0 if "listen" in text else LISTEN.count("\n")
        try:
            loaded(text, *overrides, **environ)
        except ConfError as error:
            return [
                f"{fault.line - before if fault.line else fault.file}: {fault.key}: {fault.message}"
                for fault in error.faults
            ]
        return []

    return run
