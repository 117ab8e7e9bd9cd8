"""Loops for the dialers' tests: the two real ones, and one whose time jumps. A gateway for h2."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fakes.gateway import Gateway
from fakes.h2_gateway import AUTHORITY, CONF, Make, server_context
from fakes.h2_origin import H2Origin, H2Script, h2_answer

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

# A transport that was aborted closes its socket within a few turns of the loop; TLS needs most.
TURNS_MAX = 20


def open_sockets() -> int:
    """Other files do not count: libuv opens /dev/null once for each loop and keeps it."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


@pytest.fixture(scope="package", autouse=True)
def _small_heap() -> Iterator[None]:
    """What is imported by now is left out of the collections, one or two a test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer it moves the clock to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "nothing will ever happen again"
        if not ready and timeout is not None and timeout > 0:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time passes only while everybody waits, and then at once."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


async def _checked(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test's body and demands that it leaves no task and no open socket behind."""
    gc.collect()
    before = open_sockets()
    async with asyncio.timeout(10):  # a test that hangs is one that fails
        await main()
    for _ in range(TURNS_MAX):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
    gc.collect()  # what nobody closed warns here, and a warning is a failure
    assert open_sockets() == before


def _runner(factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            faults: list[dict[str, Any]] = []
            runner.get_loop().set_exception_handler(lambda _, context: faults.append(context))
            runner.run(_checked(main))
            assert not faults, faults

    return run


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on a real loop; nothing may be left over."""
    return _runner(request.param)


@pytest.fixture
def run_virtual() -> Run:
    """Runs a coroutine function in virtual time; nothing may be left over."""
    return _runner(JumpingLoop)


@pytest.fixture
def h2_folder(tmp_path: Path) -> Path:
    """A folder with the certificate of who signed the origins'."""
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path


@pytest.fixture(params=[("httptools", "uvloop"), ("h11", "asyncio")], ids=["fast", "reference"])
def make_h2(request: pytest.FixtureRequest, h2_folder: Path) -> Iterator[Make]:
    """An HTTP/2 origin with a script and a gateway in front of it."""
    codec, loop = request.param
    with contextlib.ExitStack() as stack:

        def build(
            script: H2Script | None = None, upstream: str = "", **facts: Any
        ) -> tuple[Gateway, H2Origin]:
            facts.setdefault("ssl_context", server_context())
            origin = stack.enter_context(H2Origin(script or h2_answer(), **facts))
            text = CONF.format(port=origin.port, folder=h2_folder, upstream=upstream)
            gateway = stack.enter_context(Gateway(text, h2_folder, loop=loop, codec=codec))
            return gateway, origin

        yield build
