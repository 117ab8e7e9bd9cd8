"""The order and the race of RFC 8305, in virtual time; the attempts are played, sockets are real.

Each test also shows, by the `run_virtual` fixture, that no task and no socket is left over.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import MS, SECOND
from gateway.connectors.address import Endpoint, parse_ip
from gateway.connectors.happy_eyeballs import ATTEMPT_DELAY_NS, first_connected, interleave
from gateway.errors import ErrorKind, GatewayError, Phase


def endpoint(text: str, port: int = 443) -> Endpoint:
    parsed = parse_ip(text)
    assert parsed is not None
    return Endpoint(parsed[0], port)


FOUR, FOUR_B, SIX, SIX_B = map(endpoint, ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))
FOREVER = 1e9


class World:
    """Plays the network: each endpoint answers after some seconds, with a socket or an error.

    `log` has (milliseconds, endpoint) of each start, `opened` every socket ever given out.
    """

    def __init__(self, plays: dict[Endpoint, tuple[float, BaseException | None]]) -> None:
        self.plays = plays
        self.log: list[tuple[int, Endpoint]] = []
        self.ended: list[Endpoint] = []
        self.opened: dict[Endpoint, socket.socket] = {}

    async def connect(self, target: Endpoint) -> socket.socket:
        self.log.append((now_ms(), target))
        seconds, error = self.plays[target]
        sock = socket.socket()
        self.opened[target] = sock
        try:
            await asyncio.sleep(seconds)
            if error is not None:
                raise error
        except BaseException:
            sock.close()
            raise
        finally:
            self.ended.append(target)
        return sock

    def close(self) -> None:
        for sock in self.opened.values():
            sock.close()


def now_ms() -> int:
    return round(asyncio.get_running_loop().time() * 1000)


def failure(kind: ErrorKind = ErrorKind.CONNECTION_REFUSED, detail: str = "") -> GatewayError:
    return GatewayError(kind, detail, phase=Phase.CONNECT)


@pytest.mark.parametrize(
    ("given_order", "expected"),
    [
        ([], []),
        ([FOUR], [FOUR]),
        ([SIX, SIX_B, FOUR, FOUR_B], [SIX, FOUR, SIX_B, FOUR_B]),
        ([FOUR, FOUR_B, SIX, SIX_B], [FOUR, SIX, FOUR_B, SIX_B]),
        ([SIX, SIX_B, FOUR], [SIX, FOUR, SIX_B]),
        ([SIX, FOUR, FOUR_B], [SIX, FOUR, FOUR_B]),
        ([FOUR, FOUR, SIX, FOUR], [FOUR, SIX]),
    ],
)
def test_the_families_alternate_from_the_resolvers_first(
    given_order: list[Endpoint], expected: list[Endpoint]
) -> None:
    assert interleave(given_order) == expected


@given(st.lists(st.builds(Endpoint, st.ip_addresses(), st.just(443)), max_size=30))
def test_interleaving_loses_nothing_and_keeps_each_familys_order(found: list[Endpoint]) -> None:
    mixed = interleave(found)
    assert set(mixed) == set(found)
    assert len(mixed) == len(set(found))
    for is_v6 in (True, False):
        kept = [one for one in mixed if one.is_v6 is is_v6]
        assert kept == [one for one in dict.fromkeys(found) if one.is_v6 is is_v6]
    if found:
        assert mixed[0] == found[0]


def test_the_delay_is_the_rfcs() -> None:
    assert ATTEMPT_DELAY_NS == 250 * MS


def test_a_healthy_first_address_is_the_only_one_tried(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (0.2, None), FOUR: (0.0, None)})
        sock = await first_connected([SIX, FOUR], world.connect)
        assert sock is world.opened[SIX]
        assert sock.fileno() >= 0
        assert world.log == [(0, SIX)]
        assert now_ms() == 200
        world.close()

    run_virtual(main)


def test_a_silent_first_address_costs_a_quarter_of_a_second(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (FOREVER, None), FOUR: (0.03, None)})
        sock = await first_connected([SIX, FOUR], world.connect)
        assert sock is world.opened[FOUR]
        assert world.log == [(0, SIX), (250, FOUR)]
        assert now_ms() == 280
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.ended == [FOUR, SIX]
        assert world.opened[SIX].fileno() == -1
        sock.close()

    run_virtual(main)


def test_the_first_may_still_win_after_the_second_has_begun(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (0.3, None), FOUR: (0.2, None)})
        sock = await first_connected([SIX, FOUR], world.connect)
        assert sock is world.opened[SIX]
        assert now_ms() == 300
        sock.close()

    run_virtual(main)


def test_the_next_starts_at_once_when_one_fails(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (0.01, failure()), FOUR: (0.02, failure()), FOUR_B: (0.0, None)})
        sock = await first_connected([SIX, FOUR, FOUR_B], world.connect)
        assert world.log == [(0, SIX), (10, FOUR), (30, FOUR_B)]
        sock.close()

    run_virtual(main)


def test_a_late_failure_of_the_first_starts_the_third_before_its_time(
    run_virtual: Callable,
) -> None:
    async def main() -> None:
        world = World(
            {SIX: (0.3, failure()), FOUR: (FOREVER, None), FOUR_B: (0.0, None)},
        )
        sock = await first_connected([SIX, FOUR, FOUR_B], world.connect)
        assert world.log == [(0, SIX), (250, FOUR), (300, FOUR_B)]
        sock.close()

    run_virtual(main)


def test_each_attempt_waits_its_own_delay(run_virtual: Callable) -> None:
    async def main() -> None:
        silent = [endpoint(f"192.0.2.{last}") for last in range(1, 5)]
        world = World({**dict.fromkeys(silent, (FOREVER, None)), SIX: (0.1, None)})
        sock = await first_connected([*silent, SIX], world.connect, 100 * MS)
        assert [start for start, _ in world.log] == [0, 100, 200, 300, 400]
        sock.close()

    run_virtual(main)


def test_two_in_one_turn_the_earlier_wins_and_the_other_is_closed(run_virtual: Callable) -> None:
    async def main() -> None:
        # Both come about at 300 ms, and are seen in one turn of the loop.
        world = World({SIX: (0.3, None), FOUR: (0.05, None)})
        sock = await first_connected([SIX, FOUR], world.connect)
        assert now_ms() == 300
        assert sock is world.opened[SIX]
        await asyncio.sleep(0)
        assert world.opened[FOUR].fileno() == -1
        sock.close()

    run_virtual(main)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([ErrorKind.CONNECTION_REFUSED, ErrorKind.UNREACHABLE], 0),
        ([ErrorKind.UNREACHABLE, ErrorKind.CONNECTION_REFUSED], 1),
        ([ErrorKind.UNREACHABLE, ErrorKind.UNREACHABLE], 0),
        ([ErrorKind.CONNECTION_REFUSED, ErrorKind.CONNECT_TIMEOUT], 0),
    ],
)
def test_if_all_fail_the_most_telling_error_is_raised(
    run_virtual: Callable, kinds: list[ErrorKind], told: int
) -> None:
    errors = [failure(kind, str(position)) for position, kind in enumerate(kinds)]

    async def main() -> None:
        # The second fails sooner: the order is that of the addresses, not of the failures.
        world = World({SIX: (0.4, errors[0]), FOUR: (0.0, errors[1])})
        with pytest.raises(GatewayError) as caught:
            await first_connected([SIX, FOUR], world.connect)
        assert caught.value is errors[told]

    run_virtual(main)


def test_a_fault_of_ours_is_not_taken_for_a_failed_attempt(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (FOREVER, None), FOUR: (0.0, KeyError("ours")), FOUR_B: (0, None)})
        with pytest.raises(KeyError, match="ours"):
            await first_connected([SIX, FOUR, FOUR_B], world.connect)
        assert FOUR_B not in world.opened

    run_virtual(main)


@pytest.mark.parametrize("after_ms", range(0, 600, 50))
def test_cancelled_at_any_time_it_leaves_nothing(run_virtual: Callable, after_ms: int) -> None:
    async def main() -> None:
        world = World(
            {SIX: (0.3, failure()), FOUR: (FOREVER, None), SIX_B: (FOREVER, None)},
        )
        dial = asyncio.ensure_future(first_connected([SIX, FOUR, SIX_B], world.connect))
        await asyncio.sleep(after_ms / 1000)
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(sock.fileno() == -1 for sock in world.opened.values())

    run_virtual(main)


def test_cancelled_in_the_turn_of_success_the_connection_is_closed(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World({SIX: (0.1, None)})
        dial = asyncio.ensure_future(first_connected([SIX], world.connect))
        await asyncio.sleep(0.05)
        attempt = next(
            task for task in asyncio.all_tasks() if task not in (dial, asyncio.current_task())
        )
        # Runs when the attempt is done and before the race has heard of it.
        attempt.add_done_callback(lambda _: dial.cancel())
        with pytest.raises(asyncio.CancelledError):
            await dial
        assert attempt.result() is world.opened[SIX]
        assert world.opened[SIX].fileno() == -1

    run_virtual(main)


def test_a_time_limit_from_outside_ends_all_attempts(run_virtual: Callable) -> None:
    async def main() -> None:
        world = World(dict.fromkeys((SIX, FOUR, SIX_B, FOUR_B), (FOREVER, None)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await first_connected([SIX, FOUR, SIX_B, FOUR_B], world.connect)
        assert now_ms() == 600
        assert [target for _, target in world.log] == [SIX, FOUR, SIX_B]
        assert 3 * ATTEMPT_DELAY_NS > 0.6 * SECOND

    run_virtual(main)
