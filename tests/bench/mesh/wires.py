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
    """Where a node hears the others: "udp" or "tcp", and its port on loopback. Or, with `store`,
    where the node of that number reaches a store, on an address of loopback that is its own."""

    protocol: str
    port: int
    node: int
    host: str = "127.0.0.1"
    store: bool = False


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
    """An nftables ruleset: `loss` on all links, and none passes between groups. A store is on the
    side of the last group.

    It is in the hook of what arrives: a drop on the way out would be told to the sender.
    """
    lines = []
    group = {number: g for g, numbers in enumerate(groups) for number in numbers}
    nodes = [link for link in links if not link.store]
    for link in nodes:
        for source in nodes:
            if group.get(link.node) != group.get(source.node):
                # Datagrams name both ends; of a stream nobody sees which node began it.
                lines.append(
                    f"{link.protocol} sport {source.port} {link.protocol} dport {link.port} drop"
                )
    for link in links:
        if link.store and groups and group.get(link.node) != len(groups) - 1:
            lines.append(f"ip daddr {link.host} {link.protocol} dport {link.port} drop")
            lines.append(f"ip saddr {link.host} {link.protocol} sport {link.port} drop")
    if loss:
        chance = f"numgen random mod 10000 < {round(loss * 10000)} drop"
        for protocol in sorted({link.protocol for link in links}):
            ports = sorted({link.port for link in links if link.protocol == protocol})
            named = ", ".join(map(str, ports))
            lines.append(f"{protocol} dport {{ {named} }} {chance}")
            if protocol == "tcp":  # its answers, which datagrams do not have
                lines.append(f"{protocol} sport {{ {named} }} {chance}")
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
        self.links = list(links)
        self._nft = nft
        self._relay: Relay | None = None
        self._stack = ExitStack()
        self._fronts = [(link.host, link.port) for link in self.links]
        if relayed and self.links:
            self._fronts = [("127.0.0.1", free_port()) for _ in self.links]

    def __enter__(self) -> Wires:
        backs = [(link.host, link.port) for link in self.links]
        if self._fronts != backs:
            pairs = list(zip(self._fronts, backs, strict=True))
            self._relay = self._stack.enter_context(Relay(pairs))
        return self

    def __exit__(self, *exc: object) -> None:
        self.calm()
        self._stack.close()

    def front(self, number: int) -> int:
        """The port that others use to reach this link."""
        return self._fronts[number][1]

    def address(self, number: int) -> tuple[str, int]:
        """The same with its host, for a store's link."""
        return self._fronts[number]

    def can(self, *, delay: bool = False) -> bool:
        """Whether what is asked can be done to these links."""
        if not self.links:
            return True  # nothing is told, nothing is lost
        if delay:
            return self._relay is not None
        if self._relay is not None:
            return all(link.protocol == "udp" for link in self.links)
        return self._nft

    def set(
        self, *, loss: float = 0.0, groups: Sequence[Sequence[int]] = (), delay_ms: float = 0.0
    ) -> None:
        """What befalls these links from now on. Raises CalledProcessError where nft refuses."""
        if self._relay is not None:
            self._relay.set(delay_ms=delay_ms, loss=loss, groups=groups)
        elif self._nft:
            drop = f"table inet {_TABLE} {{}}\ndelete table inet {_TABLE}\n"
            text = drop + (rules(self.links, loss, groups) if loss or groups else "")
            subprocess.run([which("nft") or "nft", "-f", "-"], input=text, text=True, check=True)

    def calm(self) -> None:
        """Everything passes again."""
        if self.links:
            self.set()
