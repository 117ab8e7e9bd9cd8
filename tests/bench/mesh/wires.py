"""What happens to the words that nodes tell each other: loss, cuts and delay, and nobody else's.

As root with nftables the bench runs in a network namespace of its own, where rules on the loopback
interface drop what they are told to; the host's network is never touched. A delay needs netem,
which not every kernel has, so it is always the relay's (tests/fakes/relay.py), which also loses and
cuts datagrams where nftables may not be used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from bench.packages import which
from fakes.nodes import free_port
from fakes.relay import Relay

__all__ = ["Link", "Wires", "enter_namespace", "in_namespace", "rules"]

_MARK = "EGRESSD_BENCH_NAMESPACE"
_TABLE = "egressd_bench"


class Link(NamedTuple):
    """Where a node (or a store) hears the others: "udp" or "tcp", and its port on loopback."""

    protocol: str
    port: int


def in_namespace() -> bool:
    return _MARK in os.environ


def enter_namespace() -> str:
    """Runs this program again in a namespace of its own, and does not return; or says why not."""
    if os.geteuid() != 0 or which("unshare") is None or which("nft") is None:
        return (
            "loss and cuts by the relay, for datagrams only: nftables needs root, nft and unshare"
        )
    argv = [which("unshare") or "unshare", "--net", "--", "sh", "-c",
            'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.orig_argv[1:]]  # fmt: skip
    trial = subprocess.run([*argv[:3], "true"], capture_output=True, check=False)
    if trial.returncode:
        return f"loss and cuts by the relay: {trial.stderr.decode().strip()}"
    os.environ[_MARK] = "1"
    os.execv(argv[0], argv)  # does not come back
    raise AssertionError(argv)


def rules(links: Sequence[Link], loss: float, groups: Sequence[Sequence[int]]) -> str:
    """An nftables ruleset: `loss` on all links, and none passes between groups.

    It is in the hook of what arrives: a drop on the way out would be told to the sender.
    """
    lines = []
    group = {number: g for g, numbers in enumerate(groups) for number in numbers}
    for number, link in enumerate(links):
        for other, source in enumerate(links):
            if group.get(number) != group.get(other):
                # Datagrams name both ends; of a stream nobody sees which node began it.
                lines.append(
                    f"{link.protocol} sport {source.port} {link.protocol} dport {link.port} drop"
                )
    ports = ", ".join(str(link.port) for link in links)
    if loss and links:
        chance = f"numgen random mod 10000 < {round(loss * 10000)} drop"
        lines.append(f"{links[0].protocol} dport {{ {ports} }} {chance}")
        if links[0].protocol == "tcp":  # its answers, which datagrams do not have
            lines.append(f"tcp sport {{ {ports} }} {chance}")
    body = "\n".join(f"    {line}" for line in lines)
    return f"""table inet {_TABLE} {{
  chain arriving {{
    type filter hook input priority 0
{body}
  }}
}}
"""


class Wires:
    """The links of one contender. Use as a context manager."""

    def __init__(self, links: Sequence[Link], nft: bool, relayed: bool) -> None:
        self._links = list(links)
        self._nft = nft
        self._relay: Relay | None = None
        self._stack = ExitStack()
        self._fronts = [link.port for link in self._links]
        if relayed and self._links:
            self._fronts = [free_port() for _ in self._links]

    def __enter__(self) -> Wires:
        backs = [link.port for link in self._links]
        if self._fronts != backs:
            pairs = [
                (("127.0.0.1", front), ("127.0.0.1", back))
                for front, back in zip(self._fronts, backs, strict=True)
            ]
            self._relay = self._stack.enter_context(Relay(pairs))
        return self

    def __exit__(self, *exc: object) -> None:
        self.calm()
        self._stack.close()

    def front(self, number: int) -> int:
        """The port that others use to reach this link."""
        return self._fronts[number]

    def can(self, *, delay: bool = False) -> bool:
        """Whether what is asked can be done to these links."""
        if not self._links:
            return True  # nothing is told, nothing is lost
        if delay:
            return self._relay is not None
        if self._relay is not None:
            return self._links[0].protocol == "udp"
        return self._nft

    def set(
        self, *, loss: float = 0.0, groups: Sequence[Sequence[int]] = (), delay_ms: float = 0.0
    ) -> None:
        """What befalls these links from now on. Raises CalledProcessError where nft refuses."""
        if self._relay is not None:
            self._relay.set(delay_ms=delay_ms, loss=loss, groups=groups)
        elif self._nft:
            drop = f"table inet {_TABLE} {{}}\ndelete table inet {_TABLE}\n"
            text = drop + (rules(self._links, loss, groups) if loss or groups else "")
            subprocess.run([which("nft") or "nft", "-f", "-"], input=text, text=True, check=True)

    def calm(self) -> None:
        """Everything passes again."""
        if self._links:
            self.set()
