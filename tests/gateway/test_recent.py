"""What was logged last, kept beside the log."""

from typing import Any

from gateway.recent import LINES_MAX, Recent


class Log:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **facts: self.told.append((level, event, facts))


def test_everything_is_passed_on_and_the_last_lines_are_kept() -> None:
    log = Log()
    recent = Recent(log)
    for number in range(LINES_MAX + 5):
        recent.info("step", number=number)
    recent.warning("odd", why=ValueError("x"), changes=["a: 1 -> 2", "b"], text="y" * 9999)
    recent.error("bad", ok=False)
    assert len(log.told) == LINES_MAX + 7
    lines = recent.lines()
    assert len(lines) == LINES_MAX
    assert [line["level"] for line in lines[-3:]] == ["info", "warning", "error"]
    facts = lines[-2]["facts"]
    assert (facts["why"], facts["changes"], len(facts["text"])) == ("x", "a: 1 -> 2, b", 500)
    assert lines[-1]["facts"] == {"ok": False}
    assert lines[-1]["wall_ms"] > 1_700_000_000_000
