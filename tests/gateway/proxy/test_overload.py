"""More requests than there is room for: who is refused, who waits, and for how long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import ExitStack

import pytest
import trio
from fakes.origin import Connection, Received, answer

from gateway.clock import MS

SOURCES = {"noisy": "127.0.0.3", "quiet": "127.0.0.4", "vip": "127.0.0.5"}
CLIENTS = "".join(
    f'[[client]]\nname = "{name}"\nsource = ["{source}"]\n' for name, source in SOURCES.items()
)
VIP = CLIENTS + "priority = 5\n"
NOISY_COUNT = 80  # twice what fits into two seconds of 20/s

LIMIT = """
wait = { max = "2s" }
[[upstream.api.limit]]
name = "shared"
rate = "20/s"
burst = 1
"""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float, int]:
    """(status, seconds that it took, milliseconds that the refusal says)."""
    begun = time.monotonic()
    writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    await reader.readexactly(int(fields[b"content-length"]))
    told_ms = int(fields.get(b"retry-after-ms", b"0"))
    return int(head.split(b" ")[1]), time.monotonic() - begun, told_ms


async def noisy(port: int, told: list[int]) -> None:
    """Always one request more, refused or not, until it is cancelled."""
    address = (SOURCES["noisy"], 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address)
    try:
        while True:
            status, _, told_ms = await ask(reader, writer)
            if status == 429:
                told.append(told_ms)
                await asyncio.sleep(0.05)
    finally:
        writer.close()


async def among_noisy(port: int, name: str) -> tuple[list[int], list[float]]:
    """Five requests of that client, one after another, while the others fill the queue."""
    told: list[int] = []
    async with asyncio.TaskGroup() as tasks:
        crowd = [tasks.create_task(noisy(port, told)) for _ in range(NOISY_COUNT)]
        async with asyncio.timeout(10):
            while len(told) < NOISY_COUNT // 4:  # the queue has as many as can go in time
                await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(SOURCES[name], 0)
        )
        answers = [await ask(reader, writer) for _ in range(5)]
        writer.close()
        await writer.wait_closed()
        for task in crowd:
            task.cancel()
    assert min(told) > 1500  # to come again sooner would be to be refused again
    return [status for status, _, _ in answers], [took for _, took, _ in answers]


@pytest.mark.parametrize("name", ["quiet", "vip"])
def test_a_queue_full_of_a_noisy_clients_requests_keeps_nobody_else_out(make, name: str) -> None:
    gateway, _ = make(upstream=LIMIT, more=VIP)
    statuses, took = asyncio.run(among_noisy(gateway.address[1], name))
    assert statuses == [200] * 5
    assert min(took) < 1.0  # the noisy client's last one stands behind two seconds of its own


def held_origin(release: threading.Event):
    """An origin that answers /hold when it is told to, and everything else at once."""

    async def script(connection: Connection, request: Received) -> bool | None:
        if request.target == b"/hold":
            with trio.fail_after(10):
                while not release.is_set():
                    await trio.sleep(0.005)
        return await answer()(connection, request)

    return script


ONE_SLOT = {
    "in_flight": '[[upstream.api.limit]]\nname = "open"\nin_flight = 1\n',
    "connections": "",
}


def one_slot(kind: str, wait: str) -> str:
    head = "connections = 1\n" if kind == "connections" else ""
    return f'{head}wait = {{ max = "{wait}" }}\n{ONE_SLOT[kind]}'


@pytest.mark.parametrize("kind", list(ONE_SLOT))
def test_a_slot_that_comes_back_within_the_wait_is_waited_for(make, kind: str) -> None:
    """No wait for a slot is too short to be tried, and each that ends lets the next one go."""
    release = threading.Event()
    gateway, origin = make(held_origin(release), upstream=one_slot(kind, "1s"))
    waitroom = gateway.server.worker.waitroom
    with ExitStack() as stack:
        holder, *others = (stack.enter_context(gateway.client()) for _ in range(5))
        holder.send(b"GET /hold HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        for number, client in enumerate(others):
            client.send(b"GET /%d HTTP/1.1\r\nHost: api.test\r\n\r\n" % number)
            gateway.until(lambda count=number: waitroom.waiting_count == count + 1)
        release.set()
        assert [client.response().status for client in (holder, *others)] == [200] * 5
    assert [request.target for request in origin.requests[1:]] == [b"/0", b"/1", b"/2", b"/3"]


@pytest.mark.parametrize("kind", list(ONE_SLOT))
def test_a_slot_is_waited_for_until_the_deadline_and_not_a_second_less(make, kind: str) -> None:
    release = threading.Event()
    gateway, origin = make(held_origin(release), upstream=one_slot(kind, "1200ms"))
    with gateway.client() as holder, gateway.client() as client:
        holder.send(b"GET /hold HTTP/1.1\r\nHost: api.test\r\n\r\n")
        origin.next_request()
        refused = client.get()
        release.set()
        assert holder.response().status == 200
    assert refused.status == (429 if kind == "in_flight" else 503)
    assert json.loads(refused.body)["waited_ms"] >= 1200
    if kind == "in_flight":
        assert refused.value(b"retry-after") == b"1"


def test_who_leaves_while_it_waits_has_waited(make) -> None:
    gateway, _ = make(upstream=LIMIT.replace("20/s", "1/min").replace("2s", "5m"))
    worker = gateway.server.worker

    def write_down() -> None:
        worker.runtime = worker.runtime._replace(access_log=True, access_sample=1.0)

    gateway.call(write_down)
    with gateway.client() as client, gateway.client() as leaver:
        assert client.get().status == 200
        leaver.send(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        gateway.until(lambda: worker.waitroom.waiting_count == 1)
        (waiting,) = gateway.call(worker.waitroom.exchanges)
        gateway.until(lambda: worker.now_ns() >= waiting.arrival_ns + 20 * MS)
        leaver.sock.close()
        gateway.until(lambda: len(worker.ring) == 2)
    record = gateway.call(lambda: worker.ring[1])
    assert record.waited_ns >= 20 * MS
    assert record.limit == "shared"
    assert gateway.call(lambda: sum(gateway.upstream("api").counts.wait.counts)) == 1
