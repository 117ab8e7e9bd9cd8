"""Clients that people use, against a real node, on both codecs; and what signals do to them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest
import requests
import trio
import urllib3
from fakes.nodes import NodeProcess, until
from fakes.origin import Connection, Origin, Received, answer

pytestmark = pytest.mark.e2e

MakeNode = Callable[..., NodeProcess]
MakeOrigin = Callable[..., Origin]

LARGE_BYTES = 8 << 20  # more than all buffers between origin and client together
PIECES = 40
PIECE = b"0123456789abcdef" * 512


async def api(connection: Connection, request: Received) -> bool | None:
    """/large gives LARGE_BYTES, /chunks a chunked body; anything else tells what came."""
    path = request.target
    if path == b"/large":
        return await answer(body=bytes(LARGE_BYTES))(connection, request)
    if path == b"/chunks":
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await connection.send(b"5\r\nhello\r\n")
        await connection.send(b"0\r\n\r\n")
        return None
    if path == b"/slow":
        await trio.sleep(1.0)
    digest = hashlib.sha256(decoded(request)).hexdigest()
    method = request.request_line.split(b" ")[0].decode()
    told = json.dumps({"method": method, "path": path.decode(), "sha256": digest}).encode()
    return await answer(body=told, fields=b"Content-Type: application/json\r\n")(
        connection, request
    )


def decoded(request: Received) -> bytes:
    """The request's body without its chunks' frames."""
    if not request.values(b"transfer-encoding"):
        return request.body
    rest, found = request.body, b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        found, rest = found + rest[:length], rest[length + 2 :]
    return found


def pieces() -> Iterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


UPLOAD_SHA256 = hashlib.sha256(PIECE * PIECES).hexdigest()
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture(params=["httptools", "h11"])
def served(request: pytest.FixtureRequest, node: MakeNode, make_origin: MakeOrigin) -> NodeProcess:
    """A node with that codec in front of `api`."""
    process = node(make_origin(api), settings=(f"node.codec={request.param}",))
    assert process.document()["node"]["codec"] == request.param
    return process


def test_clients_in_base_url_form(served: NodeProcess) -> None:
    """One node for all of them: its start costs more than they do."""
    with_httpx(served.url)
    with_requests(served.url)
    with_urllib3(served.url)
    # Keep-alive on both sides: three clients with a connection each, one at a time.
    assert served.upstream()["pool"]["open"] <= 2
    asyncio.run(with_aiohttp(served.url))
    document = served.document()
    assert document["upstreams"]["api"]["failed"] == 0
    assert document["counts"].get("access_log_dropped", 0) == 0
    assert not [count for count in document["counts"] if count.startswith("bad_requests")]


def with_httpx(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/a?b=c").json() == {
            "method": "GET", "path": "/a?b=c", "sha256": EMPTY_SHA256,
        }  # fmt: skip
        posted = client.post("/p", content=PIECE).json()
        assert posted["sha256"] == hashlib.sha256(PIECE).hexdigest()
        assert client.post("/p", content=pieces()).json()["sha256"] == UPLOAD_SHA256
        head = client.head("/h")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        assert client.get("/chunks").content == b"hello" * 20
        with client.stream("GET", "/large") as response:
            assert sum(map(len, response.iter_bytes())) == LARGE_BYTES


def with_requests(url: str) -> None:
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(url + "/a").json()["method"] == "GET"
        assert session.post(url + "/p", data=pieces()).json()["sha256"] == UPLOAD_SHA256
        assert session.head(url + "/h").content == b""
        assert session.delete(url + "/d").json()["method"] == "DELETE"
        with session.get(url + "/large", stream=True) as response:
            assert sum(map(len, response.iter_content(65536))) == LARGE_BYTES


def with_urllib3(url: str) -> None:
    with urllib3.PoolManager() as pool:
        assert pool.request("GET", url + "/a").json()["path"] == "/a"
        response = pool.request("PUT", url + "/p", body=b"x" * 100_000)
        assert response.json()["sha256"] == hashlib.sha256(b"x" * 100_000).hexdigest()
        assert pool.request("HEAD", url + "/h").data == b""
        assert pool.request("GET", url + "/chunks").data == b"hello" * 20


async def with_aiohttp(url: str) -> None:
    async def stream() -> object:
        for piece in pieces():
            yield piece

    async with aiohttp.ClientSession(url) as session:
        async with session.get("/a") as response:
            assert (await response.json())["method"] == "GET"
        async with session.post("/p", data=stream()) as response:
            assert (await response.json())["sha256"] == UPLOAD_SHA256
        async with session.head("/h") as response:
            assert (response.status, await response.read()) == (200, b"")
        async with session.get("/large") as response:
            assert len(await response.read()) == LARGE_BYTES
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(told_its_own_path(session, f"/n{number}"))


async def told_its_own_path(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as response:
        assert (await response.json())["path"] == path


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(served: NodeProcess, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(PIECE * PIECES)

    def curl(*arguments: str) -> bytes:
        command = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=10).stdout

    url = served.url
    assert json.loads(curl(url + "/a"))["method"] == "GET"
    assert json.loads(curl("-T", str(upload), url + "/p"))["sha256"] == UPLOAD_SHA256
    chunked = ("-X", "POST", "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{upload}")
    assert json.loads(curl(*chunked, url + "/p"))["sha256"] == UPLOAD_SHA256
    assert b"HTTP/1.1 200 OK" in curl("--head", url + "/h")
    assert len(curl(url + "/large")) == LARGE_BYTES
    assert json.loads(curl("--http1.0", url + "/old"))["path"] == "/old"
    # Two in one run go over one connection.
    twice = curl("--write-out", "%{num_connects} ", url + "/1", url + "/2").decode()
    assert twice.count("1 ") == 1
    assert twice.count("0 ") == 1
    # As a proxy: the upstream's own origin is what the proxy form may name.
    origin_url = served.path.read_text().split('origin = "')[1].split('"')[0]
    proxied = ["--proxy", url, "--noproxy", "", origin_url + "/proxied"]
    assert json.loads(curl(*proxied))["path"] == "/proxied"


NODE_FETCH = """
const [url, count] = [process.argv[1], 40];
const assert = require("assert");
const sha256 = data => require("crypto").createHash("sha256").update(data).digest("hex");
const piece = Buffer.from("0123456789abcdef".repeat(512));
const told = async (path, init) => (await fetch(url + path, init)).json();
(async () => {
  assert.deepStrictEqual(
    await told("/a?b=c"), {method: "GET", path: "/a?b=c", sha256: sha256("")});
  assert.strictEqual((await told("/p", {method: "POST", body: piece})).sha256, sha256(piece));
  async function* pieces() { for (let i = 0; i < count; i++) yield piece; }
  const streamed = {method: "POST", body: pieces(), duplex: "half"};
  assert.strictEqual(
    (await told("/p", streamed)).sha256, sha256(Buffer.concat(Array(count).fill(piece))));
  const head = await fetch(url + "/h", {method: "HEAD"});
  assert.strictEqual(head.status, 200);
  assert.ok(Number(head.headers.get("content-length")) > 0);
  assert.strictEqual(await head.text(), "");
  assert.strictEqual(await (await fetch(url + "/chunks")).text(), "hello".repeat(20));
  let large = 0;
  for await (const part of (await fetch(url + "/large")).body) large += part.length;
  const many = await Promise.all([...Array(20).keys()].map(n => told("/n" + n)));
  many.forEach((one, n) => assert.strictEqual(one.path, "/n" + n));
  const gone = new AbortController();
  const slow = fetch(url + "/slow", {signal: gone.signal});
  setTimeout(() => gone.abort(), 100);
  await assert.rejects(slow, {name: "AbortError"});
  console.log(large);
})();
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_nodes_fetch(served: NodeProcess) -> None:
    """Base-url form: undici, its keep-alive, its streams, and a fetch that is called off."""
    command = ["node", "-e", NODE_FETCH, served.url]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) == LARGE_BYTES
    until(lambda: served.upstream()["aborted"] == 1, 3.0, "the call that was called off is seen")
    assert served.upstream()["failed"] == 0
    assert not [count for count in served.document()["counts"] if count.startswith("bad_requests")]


def test_sigterm_lets_a_slow_answer_finish(node: MakeNode, make_origin: MakeOrigin) -> None:
    served = node(make_origin(api))
    with (
        socket.create_connection(served.address, timeout=10) as slow,
        socket.create_connection(served.address, timeout=10) as idle,
    ):
        slow.sendall(b"GET /slow HTTP/1.1\r\nHost: api.test\r\n\r\n")
        until(lambda: served.upstream()["admitted"] == 1, 3.0, "the request is under way")
        served.ask_to_end()
        assert idle.recv(1) == b""

        def refused() -> bool:
            try:
                socket.create_connection(served.address, timeout=1).close()
            except ConnectionRefusedError:
                return True
            return False

        until(refused, 2.0, "new connections are refused")
        status, body = served.ask("/ready")
        assert (status, json.loads(body)["why"]) == (503, "draining")
        assert served.running()
        data = b""
        while piece := slow.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"path": "/slow"' in data
    assert served.wait() == 0
    assert [line["event"] for line in served.log()][-2:] == ["draining", "stopped"]


def test_sigterm_ends_in_bounded_time(node: MakeNode, make_origin: MakeOrigin) -> None:
    """An exchange that outlasts `drain` is cut, and said so; the exit is in order all the same."""

    async def never(connection: Connection, request: Received) -> None:
        await trio.sleep_forever()

    process = node(make_origin(never), settings=("node.drain=300ms",))
    with socket.create_connection(process.address, timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        until(lambda: process.upstream()["admitted"] == 1, 3.0, "the request is under way")
        assert process.terminate() == 0
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""
    assert 1 in process.log("stopped")[0].values()


def test_sigterm_said_again_ends_at_once_and_in_order(
    node: MakeNode, make_origin: MakeOrigin
) -> None:
    """Whoever asks twice, at whatever moment of the way out, gets exit status 0."""

    async def never(connection: Connection, request: Received) -> None:
        await trio.sleep_forever()

    process = node(make_origin(never), settings=("node.drain=1m",))
    with socket.create_connection(process.address, timeout=10) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        until(lambda: process.upstream()["admitted"] == 1, 3.0, "the request is under way")
        process.ask_to_end()
        until(lambda: process.log("draining"), 3.0, "it drains")

        def asked_again() -> bool:
            if process.running():
                process.signal(signal.SIGTERM)
            return not process.running()

        until(asked_again, 5.0, "it has ended")
        process.killed = True  # its status is judged here
    assert process.wait() == 0, process.log_text()


def test_sigterm_ends_although_nobody_reads_the_access_log(
    node: MakeNode, make_origin: MakeOrigin, tmp_path: Path
) -> None:
    """A log collector that stands still must not keep the process alive."""
    fifo = tmp_path / "access.fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # Less than it takes to fill a pipe of one page, which the kernel lets nobody go below.
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        process = node(make_origin(api), settings=(f"log.access={fifo}", "node.drain=300ms"))
        with httpx.Client(base_url=process.url, trust_env=False) as client:
            for _ in range(50):  # some 300 octets a line
                assert client.get("/a").status_code == 200
        until(lambda: _readable(reader) == 4096, 3.0, "the pipe is full")
        process.ask_to_end()
        begun = time.monotonic()
        try:
            assert process.wait(4.0) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("it does not end on SIGTERM while the access log's reader stands still")
        assert time.monotonic() - begun < 4.0
    finally:
        os.close(reader)


def _readable(fd: int) -> int:
    """Octets that are in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def test_lines_that_cannot_be_written_are_counted(node: MakeNode, make_origin: MakeOrigin) -> None:
    """A full disk: the service goes on, and the loss is seen."""
    process = node(make_origin(api), settings=("log.access=/dev/full",))
    for _ in range(3):
        assert httpx.get(process.url + "/a", trust_env=False).status_code == 200
    until(
        lambda: process.document()["counts"]["access_log_dropped"] == 3,
        2.0,
        "the lost lines are counted",
    )


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_that_comes_while_it_starts_ends_nothing(
    node: MakeNode, make_origin: MakeOrigin, number: signal.Signals
) -> None:
    """`systemctl reload` right after the start, or logrotate: the default action would be death."""
    process = node(make_origin(api), wait=False)
    # Before the program runs the signal's disposition is the kernel's default: not ours to judge.
    until(lambda: b"gateway" in Path(f"/proc/{process.pid}/cmdline").read_bytes(), 3.0, "exec")
    until(lambda: _maps(process.pid, "uvloop"), 5.0, "it has begun to load")
    process.signal(number)
    process.wait_ready()
    assert httpx.get(process.url + "/a", trust_env=False).status_code == 200


def _maps(pid: int, what: str) -> bool:
    return what in Path(f"/proc/{pid}/maps").read_text()


def test_sigusr1_opens_the_access_log_again(
    node: MakeNode, make_origin: MakeOrigin, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    process = node(make_origin(api), settings=(f"log.access={log}",))

    def paths(file: Path) -> list[str]:
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)["path"] for line in lines]

    with httpx.Client(base_url=process.url, trust_env=False) as client:
        client.get("/before?secret=1")
        until(lambda: paths(log) == ["/before"], 3.0, "the line is written")
        old = log.rename(tmp_path / "access.log.1")
        process.signal(signal.SIGUSR1)
        until(log.exists, 3.0, "the path is opened again")
        client.get("/after")
        until(lambda: paths(log) == ["/after"], 3.0, "the new file has the new line")
    assert paths(old) == ["/before"]
    assert "secret" not in old.read_text()
