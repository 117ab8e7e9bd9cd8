"""Work in steps: the loop turns in between; the text is what the encoder would write."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admin import pace
from gateway.admin.pace import encoded_steps, paced
from gateway.admin.views import Steps, told_at_once

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
)


@given(value=JSON)
def test_the_text_is_the_encoders(value: Any) -> None:
    text = told_at_once(encoded_steps(value))
    assert text == json.dumps(value, separators=(",", ":")).encode()


def test_the_loop_turns_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    monkeypatch.setattr(pace, "monotonic_ns", lambda: now_ns)
    turns: list[int] = []

    def work() -> Steps[str]:
        nonlocal now_ns
        for _ in range(10):
            now_ns += pace.SLICE_NS // 2
            yield
        return "done"

    async def other() -> None:
        while True:
            turns.append(now_ns)
            await asyncio.sleep(0)

    async def run() -> str:
        beside = asyncio.ensure_future(other())
        done = await paced(work())
        beside.cancel()
        return done

    assert asyncio.run(run()) == "done"
    # A slice and one step at most between two turns of the loop.
    assert len(turns) == 5
    assert max(b - a for a, b in itertools.pairwise(turns)) <= pace.SLICE_NS * 3 // 2


def test_a_large_document_is_written_in_small_parts() -> None:
    value = {"limits": [{"name": f"limit-{number}", "rate": "5/s"} for number in range(10_000)]}
    assert sum(1 for _ in encoded_steps(value)) > 10_000
