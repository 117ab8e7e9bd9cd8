"""What was accepted for an upstream that has no spool any more, after a reload and a restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.origin import Origin
from fakes.spooled import Spooled

Make = Callable[..., tuple[Spooled, Origin]]
ONE_AN_HOUR = 'limit = [{ name = "l", rate = "1/h", burst = 1, sync = "local" }]'


def without_spool(text: str) -> str:
    return text.replace("[upstream.api.spool]\n", "")


@pytest.mark.parametrize("restarts", [False, True])
def test_it_is_told_of_and_expires(make: Make, tmp_path: Path, restarts: bool) -> None:
    gateway, origin = make(upstream=ONE_AN_HOUR)
    gateway.until_state(gateway.post().value(b"location"), "done")
    soon = b"X-Expires-At: %d\r\n" % (int(time.time()) + 3)
    path = gateway.post(b"x", soon).value(b"location")
    text = without_spool(gateway.path.read_text())
    if restarts:
        gateway.stop()
        with Spooled(text, tmp_path) as again:
            expires(again, path)
    else:
        assert gateway.reload(text)
        expires(gateway, path)
    assert len(origin.requests) == 1, "it was never sent"


def expires(gateway: Spooled, path: bytes) -> None:
    (line,) = [line for line in gateway.server.recent if line["event"] == "spool orphans"]
    assert line["level"] == "warning"
    assert line["facts"] == {"upstream": "api", "records": 1}
    assert gateway.state(path)["state"] == "queued"
    assert gateway.until_state(path, "dead")["reason"] == "upstream_gone"


def test_a_file_that_is_no_spool_stops_no_gateway_that_needs_none(
    make: Make, tmp_path: Path
) -> None:
    gateway, _ = make()
    text = without_spool(gateway.path.read_text())
    gateway.stop()
    for file in tmp_path.glob("spool.db*"):
        file.unlink()
    (tmp_path / "spool.db").write_text("something else")
    with Spooled(text, tmp_path) as again:
        assert again.spool is None
    assert (tmp_path / "spool.db").read_text() == "something else"
    assert not list(tmp_path.glob("spool.db.*"))
