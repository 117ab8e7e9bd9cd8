"""The scene without its processes: its file, its edit of it, its spans, both displays."""

from pathlib import Path

import pytest

from gateway.clock import SECOND
from gateway.conf.load import load
from gateway.demo import scene as module
from gateway.demo.display import LiveDisplay, PlainDisplay, make_display
from gateway.demo.findings import Findings
from gateway.demo.processes import SceneError
from gateway.demo.reading import NodeReading, Rates, Reading
from gateway.demo.scene import NAMES, Scene

ROOT = Path(module.__file__).parents[2]


def test_the_example_in_conf_is_the_demos_file() -> None:
    packaged = (ROOT / "gateway/demo/mesh.toml").read_bytes()
    assert (ROOT / "conf/mesh.toml").read_bytes() == packaged


def test_the_scene_says_what_the_file_says() -> None:
    conf = load(str(ROOT / "conf/mesh.toml"))
    (limit,) = conf.upstream["api"].limit
    assert limit.rate is not None
    assert (limit.rate.per_second, limit.burst) == (module.RATE, module.BURST)
    assert limit.sync == "mesh"
    assert conf.upstream["api"].breaker.scope == "upstream"


def test_the_edit_changes_the_limit_and_nothing_else(tmp_path: Path) -> None:
    scene = Scene(tmp_path, PlainDisplay())
    before = load(str(tmp_path / "mesh.toml"))
    scene._edit()
    after = load(str(tmp_path / "mesh.toml"))
    (limit,) = after.upstream["api"].limit
    assert limit.rate is not None
    assert (limit.rate.per_second, limit.burst) == (module.RELOAD_RATE, module.RELOAD_BURST)
    api = after.upstream["api"].model_copy(update={"limit": before.upstream["api"].limit})
    assert after.model_copy(update={"upstream": {"api": api}}) == before
    with pytest.raises(SceneError, match="no longer says"):
        scene._edit()


def reading(now_ns: int, admitted: int) -> Reading:
    nodes = tuple(
        NodeReading(name, now_ns, 2 * admitted, admitted, 3, 0, 1, 0, "open", 1500, 0, 0)
        for name in NAMES
    )
    origin = {"now_ns": now_ns, "last_second": 44, "peak": 49, "limit": 50, "refused_unasked": 2}
    return Reading(nodes, origin, {})


def test_a_span_is_counted_between_two_readings() -> None:
    span = module._span(reading(SECOND, 10), reading(3 * SECOND, 40), 45, 5)
    assert (span.admitted, span.seconds, span.per_second) == (90, 2.0, 45.0)
    assert span.allowed == 98


def test_plain_lines_come_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainDisplay()
    rates = Rates()
    for tick in range(21):
        read = reading(5 * SECOND + tick * SECOND // 10, tick)
        rates.add(read)
        display.show("steady", read, rates, "45/s burst 5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert [line.split()[0] for line in lines] == ["0.0", "1.0", "2.0"]
    for words in ("gw-1  10.0/s open", "sum  30.0/s of 45/s burst 5", "peak 49/50", "refused 2"):
        assert words in lines[2]


def test_the_live_table_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    display = LiveDisplay()
    rates = Rates()
    for tick in range(12):
        rates.add(reading(5 * SECOND + tick * SECOND // 10, tick))
    display.note("something happens")
    display.show("steady", reading(6 * SECOND, 11), rates, "45/s burst 5")
    display.summary(Findings(50, NAMES, crashed=["gw-1 ended with status 1"]))
    display.note("and goes on")
    display.close()
    out = capsys.readouterr().out
    for words in ("45/s burst 5 allowed", "gw-3", "open 1.5 s", "peak 49 of 50", "• something"):
        assert words in out
    assert "FAILED: gw-1 ended with status 1" in out
    assert "and goes on" in out


def test_what_is_no_terminal_gets_lines() -> None:
    assert isinstance(make_display(None), PlainDisplay)  # pytest's capture is none
    assert isinstance(make_display(True), PlainDisplay)
    assert isinstance(make_display(False), LiveDisplay)
