"""The demo's verdict: every broken promise makes it fail, and is named."""

from dataclasses import replace

import pytest

from gateway.demo.display import summary_rows
from gateway.demo.findings import Findings, RateSpan, faults

NODES = ("gw-1", "gw-2", "gw-3")


def good() -> Findings:
    return Findings(
        origin_limit=50,
        nodes=NODES,
        steady=RateSpan(448, 10.0, 45, 5),
        steady_peak=50,
        asked=True,
        stopped_ms=dict.fromkeys(NODES, 1.5),
        after_asked=1,
        trials=1,
        resumed_ms=3050.0,
        reloaded_ms=dict.fromkeys(NODES, 40.0),
        reload=RateSpan(120, 6.0, 20, 2),
        reload_peak=21,
    )


def test_a_demo_that_kept_its_promises_has_no_faults() -> None:
    assert faults(good()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"refused_unasked": 1}, "refused 1 requests unasked"),
        ({"asked": False}, "never got to answer"),
        ({"stopped_ms": {"gw-1": 1.0, "gw-2": None, "gw-3": 1.0}}, "gw-2 did not stop"),
        ({"stopped_ms": {"gw-1": 1.0, "gw-2": 1.0}}, "gw-3 did not stop"),
        ({"reloaded_ms": {"gw-1": 1.0, "gw-2": 1.0, "gw-3": None}}, "gw-3 did not take over"),
        ({"steady": None}, "nothing was admitted in the first act"),
        ({"steady": RateSpan(0, 10.0, 45, 5)}, "nothing was admitted in the first act"),
        # Three nodes that each think they are alone: 45 + 20 + 10 a second.
        ({"steady": RateSpan(750, 10.0, 45, 5)}, "750 were admitted in 10.0 s"),
        # A reload that did nothing.
        ({"reload": RateSpan(270, 6.0, 20, 2)}, "the limit allows 125"),
        ({"crashed": ["gw-1 ended with status 1"]}, "gw-1 ended"),
    ],
)
def test_a_broken_promise_is_named(change: dict[str, object], words: str) -> None:
    broken = faults(replace(good(), **change))  # type: ignore[arg-type]
    assert len(broken) == 1
    assert words in broken[0]


def test_a_demo_that_was_not_played_has_failed() -> None:
    assert len(faults(Findings(50, NODES))) == 9


def test_where_it_could_not_go_on_only_the_reason_is_named() -> None:
    lost = Findings(50, NODES, crashed=["gw-1 ended with status 1"], refused_unasked=2)
    assert faults(lost) == ["gw-1 ended with status 1", "the origin refused 2 requests unasked"]


def test_the_summary_tells_what_was_found() -> None:
    text = "\n".join(" ".join(row) for row in summary_rows(good()))
    for words in ("44.8/s", "1.5 ms", "3050.0 ms", "20.0/s", "trials sent by all nodes together 1"):
        assert words in text
    lost = replace(good(), stopped_ms={"gw-2": None})
    assert ("from the 429 to gw-2 stopped", "never", "a round trip") in summary_rows(lost)


def test_the_summary_has_no_rows_for_acts_that_were_not_played() -> None:
    assert summary_rows(Findings(50, NODES)) == [("refused by the origin, unasked", "0", "0")]
