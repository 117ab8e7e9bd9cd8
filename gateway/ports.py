"""Ports on loopback for the mesh of a node's own workers, where no [mesh] names any."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

__all__ = ["free_mesh_ports"]

LOWEST = 10_000  # below it are ports that services are known by
LOWEST_EPHEMERAL = 32_768  # Linux's own, where the kernel does not say
TRIES = 1000


def free_mesh_ports(count: int, choose: Callable[[int, int], int]) -> tuple[int, ...]:
    """So many ports that are free for UDP and TCP; `choose(low, high)` gives a number below high.

    They are kept for the workers' whole lives, of which the supervisor may see several, so they
    are not among those that the kernel gives to outgoing connections. Raises OSError.
    """
    highest = _lowest_ephemeral()
    found: set[int] = set()
    for _ in range(TRIES):
        if len(found) == count:
            return tuple(sorted(found))
        port = choose(LOWEST, highest)
        if _is_free(port):
            found.add(port)
    raise OSError(f"mesh: {count} ports between {LOWEST} and {highest} are not free on loopback")


def _lowest_ephemeral() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        return max(int(text.split()[0]), LOWEST + TRIES)
    except (OSError, ValueError, IndexError):
        return LOWEST_EPHEMERAL


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True
