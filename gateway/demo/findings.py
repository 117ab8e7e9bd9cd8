"""What the demo found, and whether that is what was promised.

Pure, so that a test can show it a demo that went wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Findings", "RateSpan", "faults"]

# What a window may see over rate * w + burst while all nodes hear each other: about a token for
# each of them.
NODES = 3


@dataclass(frozen=True, slots=True)
class RateSpan:
    """Requests that all nodes together admitted in a span of time, under one limit."""

    admitted: int
    seconds: float
    rate: int  # tokens/s
    burst: int

    @property
    def per_second(self) -> float:
        return self.admitted / self.seconds if self.seconds > 0 else 0.0

    @property
    def allowed(self) -> float:
        """The most that the limit and the mesh's residue let through in this span."""
        return self.rate * self.seconds + self.burst + NODES


@dataclass(slots=True)
class Findings:
    """Everything that the acts wrote down.

    `stopped_ms` is, for each node, from the origin's 429 to the opening of the node's breaker; None
    for a node that did not stop. `reloaded_ms` is from SIGHUP likewise. `crashed` are sentences.
    """

    origin_limit: int
    nodes: tuple[str, ...]
    steady: RateSpan | None = None
    steady_peak: int = 0
    refused_unasked: int = 0
    asked: bool = False
    stopped_ms: dict[str, float | None] = field(default_factory=dict)
    after_asked: int = 0
    trials: int = 0
    resumed_ms: float | None = None
    reloaded_ms: dict[str, float | None] = field(default_factory=dict)
    reload: RateSpan | None = None
    reload_peak: int = 0
    crashed: list[str] = field(default_factory=list)


def faults(findings: Findings) -> list[str]:
    """Each broken promise as a sentence; none: the demo succeeded. An act not played is one, but
    where the demo could not go on only the reason is named, not all that is missing therefore."""
    broken = list(findings.crashed)
    if findings.refused_unasked:
        broken.append(f"the origin refused {findings.refused_unasked} requests unasked")
    if findings.crashed:
        return broken
    if not findings.asked:
        broken.append("the origin never got to answer the 429 that it was asked for")
    for node in findings.nodes:
        if findings.stopped_ms.get(node) is None:
            broken.append(f"{node} did not stop after the 429")
        if findings.reloaded_ms.get(node) is None:
            broken.append(f"{node} did not take over the edited file")
    for span, act in ((findings.steady, "the first act"), (findings.reload, "the reload")):
        if span is None or not span.admitted:
            broken.append(f"nothing was admitted in {act}")
        elif span.admitted > span.allowed:
            broken.append(
                f"in {act} {span.admitted} were admitted in {span.seconds:.1f} s, "
                f"the limit allows {span.allowed:.0f}"
            )
    return broken
