"""Helpers of the dialers' tests: plans, played resolvers and attempts, ports that accept."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gateway.clock import SECOND
from gateway.connectors.address import Endpoint, parse_ip
from gateway.connectors.dial import DialPlan, TcpDialer
from gateway.errors import ErrorKind, GatewayError, Phase

__all__ = [
    "Attempts",
    "Connection",
    "dial",
    "endpoint",
    "fails",
    "knows_nothing",
    "listening",
    "never",
    "plan",
    "says",
]

Resolve = Callable[[str, int], Awaitable[list[Endpoint]]]


def plan(host: str = "api.test", port: int = 443, **facts: Any) -> DialPlan:
    usual = {
        "addresses": (),
        "tls": None,
        "connect_timeout_ns": 3 * SECOND,
        "tls_timeout_ns": 5 * SECOND,
    }
    return DialPlan(host, port, **(usual | facts))


def endpoint(text: str, port: int = 443) -> Endpoint:
    parsed = parse_ip(text)
    assert parsed is not None
    return Endpoint(parsed[0], port)


def says(*texts: str) -> Resolve:
    """A resolver with one answer to everything."""

    async def resolve(host: str, port: int) -> list[Endpoint]:
        return [endpoint(text, port) for text in texts]

    return resolve


async def knows_nothing(host: str, port: int) -> list[Endpoint]:
    raise AssertionError(f"{host} was looked up")


async def never(*_: object) -> Any:
    await asyncio.get_running_loop().create_future()


class Attempts:
    """Stands for tcp_connect: notes the targets and refuses."""

    def __init__(self) -> None:
        self.targets: list[str] = []

    async def __call__(self, target: Endpoint) -> socket.socket:
        self.targets.append(str(target))
        raise GatewayError(ErrorKind.CONNECTION_REFUSED, str(target), phase=Phase.CONNECT)


class Connection(asyncio.Protocol):
    """What the pool would make; only the transport matters here."""

    transport: Any  # uvloop's are not asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


async def dial(dialer: TcpDialer) -> Connection:
    return await dialer(Connection)  # type: ignore[arg-type,return-value]


async def fails(dialer: TcpDialer) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await dial(dialer)
    assert caught.value.phase is Phase.CONNECT
    return caught.value


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that accepts; the kernel completes handshakes without anybody's help."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        sock.listen()
        yield sock.getsockname()[1]
