"""What egressd holds in memory: for itself, per connection, per slow reader, per row of a limit.

    PYTHONPATH=tests python -m bench.memory [--quick] [--only NAME]

Each figure has a process of its own, whose resident memory (proc(5): VmRSS, the peak VmHWM) is
read when it has come to rest. An idle connection is one that has had an answer and is kept; a slow
reader takes 4 KiB four times a second of a response of 1 GiB that the origin sends as fast as it
can. The clients and the origin are in this process, so that what they hold is not counted. Kernel
buffers are nobody's resident memory and not counted either.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import selectors
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import trustme
from bench.admission import local_set, mesh_set
from bench.process import BenchError, Process, wait_for_port
from fakes.nodes import free_port

__all__ = ["FIGURES", "Figure", "Measured", "lines_of", "resident_bytes"]

KIB = 1024
MIB = 1024 * KIB
HOST = "bench.test"
STREAM_BYTES = 1024 * MIB
SIP_BYTES = 4 * KIB
SIPS = 40
SIP_SECONDS = 0.25
SETTLE_SECONDS_MAX = 20.0
LOOK_SECONDS = 0.25
# A difference between two looks that is the interpreter breathing, not somebody still working.
SETTLED_BYTES = 128 * KIB
REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

CONF = """
[[listen]]
bind = "127.0.0.1:{port}"
{tls}
limits = {{ connections = 20000 }}
[log]
access = "{folder}/access.log"
[upstream.origin]
origin = "http://127.0.0.1:{origin}"
connections = 20000
timeout = {{ idle = "10m" }}
[[upstream.origin.limit]]
name = "all"
rate = "1000000/s"
burst = 100000
[[route]]
host = "{host}"
upstream = "origin"
"""


class Figure(NamedTuple):
    """What is measured and how much it may be; `unit` divides both for the table."""

    name: str
    what: str
    target_bytes: int
    unit: int


class Measured(NamedTuple):
    """A figure and what it came to; `remark` says how much of what."""

    figure: Figure
    held_bytes: float
    remark: str


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("worker", "idle worker", 60 * MIB, MIB),
        Figure("plain", "10,000 idle connections, plain", 80 * MIB, MIB),
        Figure("tls", "10,000 idle connections, TLS", 320 * MIB, MIB),
        Figure("slow", "1,000 slow readers of 1 GiB each, the whole process", 200 * MIB, MIB),
        Figure("local", "a local row", 400, 1),
        Figure("mesh", "a mesh row that no peer uses", 1_200, 1),
        Figure("peer", "a mesh row's part per active peer", 250, 1),
    )
}


def resident_bytes(status: str, key: str = "VmRSS") -> int:
    """A value of /proc/PID/status in bytes. Raises BenchError where it is not there."""
    for line in status.splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * KIB
    raise BenchError(f"no {key} in /proc/PID/status")


class Origin:
    """Answers at once on a thread of its own; with `endless` by a stream of STREAM_BYTES."""

    def __init__(self, *, endless: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._endless = endless
        self._left: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Origin:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, events in self._selector.select(LOOK_SECONDS):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    client, _ = sock.accept()
                    client.setblocking(False)
                    self._selector.register(client, selectors.EVENT_READ)
                    continue
                try:
                    self._serve(sock, events)
                except BlockingIOError:
                    pass
                except OSError:
                    self._selector.unregister(sock)
                    sock.close()

    def _serve(self, sock: socket.socket, events: int) -> None:
        if events & selectors.EVENT_READ:
            if not sock.recv(64 * KIB):
                raise ConnectionResetError
            if not self._endless:
                sock.sendall(ANSWER)
                return
            self._left[sock] = STREAM_BYTES
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES)
            self._selector.modify(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while self._left.get(sock):
            self._left[sock] -= sock.send(_PIECE[: self._left[sock]])


_PIECE = bytes(64 * KIB)


class Gateway:
    """One egressd on the first core, with an origin behind it. Use as a context manager."""

    def __init__(self, folder: Path, *, tls: str = "", endless: bool = False) -> None:
        self._folder = folder
        self._tls = tls
        self._origin = Origin(endless=endless)
        self._process: Process | None = None
        self.port = 0

    def __enter__(self) -> Gateway:
        self._origin.__enter__()
        self.port = free_port()
        conf = self._folder / "egressd.toml"
        conf.write_text(
            CONF.format(
                port=self.port,
                tls=self._tls,
                folder=self._folder,
                origin=self._origin.port,
                host=HOST,
            )
        )
        argv = [sys.executable, "-m", "gateway", "run", "-c", str(conf)]
        core = min(os.sched_getaffinity(0))
        self._process = Process(argv, core, self._folder / "egressd.log", os.environ)
        wait_for_port(self._process, self.port)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.stop()
        self._origin.__exit__()

    def read(self, key: str = "VmRSS") -> int:
        """That value of the process now."""
        assert self._process is not None
        (pid,) = self._process.pids()
        return resident_bytes(Path(f"/proc/{pid}/status").read_text(), key)

    def settled(self) -> int:
        """Resident bytes once they no longer move. Raises BenchError where they always do."""
        before = self.read()
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while time.monotonic() < deadline:
            time.sleep(4 * LOOK_SECONDS)
            now = self.read()
            if abs(now - before) < SETTLED_BYTES:
                return now
            before = now
        raise BenchError("memory does not settle")


def _connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    if context is None:
        return sock
    return context.wrap_socket(sock, server_hostname=HOST)


def _exchange(sock: socket.socket) -> None:
    """One request and its answer, which is read whole."""
    sock.sendall(REQUEST)
    data = b""
    while not data.endswith(b"hello"):
        more = sock.recv(4096)
        if not more:
            raise BenchError(f"connection ended: {data!r}")
        data += more


@contextlib.contextmanager
def _connections(count: int, port: int, context: ssl.SSLContext | None) -> Iterator[None]:
    """Connections that have had an answer each and are kept; all of them to the end."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks.append(_connect(port, context))
            _exchange(socks[-1])
        yield
        for sock in socks:
            _exchange(sock)
    finally:
        for sock in socks:
            sock.close()


def worker(folder: Path, count: int) -> list[Measured]:
    """A worker that has served one request and has no connection."""
    with Gateway(folder) as gateway:
        with _connections(1, gateway.port, None):
            pass
        return [Measured(FIGURES["worker"], gateway.settled(), "after one request")]


def plain(folder: Path, count: int) -> list[Measured]:
    """Idle connections without TLS."""
    with Gateway(folder) as gateway:
        return [_per_connection(gateway, "plain", count, None)]


def tls(folder: Path, count: int) -> list[Measured]:
    """Idle connections with TLS."""
    authority = trustme.CA()
    pem = folder / "server.pem"
    authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with Gateway(folder, tls=f'tls = {{ cert = "{pem}", key = "{pem}" }}') as gateway:
        return [_per_connection(gateway, "tls", count, context)]


def _per_connection(
    gateway: Gateway, name: str, count: int, context: ssl.SSLContext | None
) -> Measured:
    with _connections(1, gateway.port, context):  # what is loaded late is not the connections'
        pass
    before = gateway.settled()
    with _connections(count, gateway.port, context):
        grown = gateway.settled() - before
    figure = FIGURES[name]
    scaled = grown * 10_000 / count  # of fewer, where --quick says so
    return Measured(figure, scaled, f"{grown / count / KIB:.1f} KiB each, {count:,} measured")


def slow(folder: Path, count: int) -> list[Measured]:
    """The peak with slow readers, and that they go on getting something."""
    with Gateway(folder, endless=True) as gateway:
        before = gateway.settled()
        socks = [_connect(gateway.port, None) for _ in range(count)]
        try:
            for sock in socks:
                sock.sendall(REQUEST)
            taken = 0
            for _ in range(SIPS):
                time.sleep(SIP_SECONDS)
                for sock in socks:
                    taken += len(sock.recv(SIP_BYTES))
            peak = gateway.read("VmHWM")
        finally:
            for sock in socks:
                sock.close()
        remark = f"{before / MIB:.0f} before; {taken / MIB:,.0f} MiB were read"
        return [Measured(FIGURES["slow"], peak, remark)]


def rows(folder: Path, count: int) -> list[Measured]:
    """Rows of limits, each kind in an interpreter of its own."""
    local = _rows_apart("local", count)
    alone = _rows_apart("mesh-0", count)
    heard = _rows_apart("mesh-8", count)
    remark = f"{count:,} rows"
    return [
        Measured(FIGURES["local"], local, remark),
        Measured(FIGURES["mesh"], alone, remark),
        Measured(FIGURES["peer"], (heard - alone) / 8, f"{heard:,.0f} with eight"),
    ]


def _rows_apart(kind: str, count: int) -> float:
    argv = [sys.executable, "-m", "bench.memory", "--rows", kind, "--count", str(count)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise BenchError(done.stderr.strip()[-500:])
    return float(done.stdout)


def row_bytes(kind: str, count: int) -> float:
    """Resident bytes per row, of this process (to be run in one that has done nothing else)."""
    keys = [b"key-%06d" % i for i in range(count)]
    now_ns = 10**12
    # Made and thrown away once: what the first ones load or grow stays.
    mesh_set(1, keys[:10], now_ns)
    local_set(1).limit_set.rows((b"first",), now_ns)
    gc.collect()
    before = resident_bytes(Path("/proc/self/status").read_text())
    if kind == "local":
        kept = local_set(1)
    else:
        kept = mesh_set(1, keys, now_ns, peers=int(kind.removeprefix("mesh-")))
    for key in keys:
        kept.limit_set.admit(kept.limit_set.rows((key,), now_ns), (1,), now_ns)
    gc.collect()
    after = resident_bytes(Path("/proc/self/status").read_text())
    assert kept.limit_set is not None
    return (after - before) / count


Measure = Callable[[Path, int], list[Measured]]
# (name, measure, how many, how many with --quick)
PARTS: tuple[tuple[str, Measure, int, int], ...] = (
    ("worker", worker, 0, 0),
    ("plain", plain, 10_000, 200),
    ("tls", tls, 10_000, 200),
    ("slow", slow, 1_000, 50),
    ("rows", rows, 100_000, 5_000),
)


def lines_of(measured: Sequence[Measured]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| what | measured | target | |",
        "|------|---------:|-------:|-|",
    ]
    for figure, held, remark in measured:
        unit = "MiB" if figure.unit == MIB else "B"
        verdict = "" if held <= figure.target_bytes else " OVER"
        lines.append(
            f"| {figure.what} | {held / figure.unit:,.0f} {unit} "
            f"| {figure.target_bytes / figure.unit:,.0f} {unit} | {remark}{verdict} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="what egressd holds in memory")
    parser.add_argument("--quick", action="store_true", help="few of each")
    parser.add_argument("--only", choices=[part[0] for part in PARTS], action="append")
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        print(row_bytes(options.rows, options.count))
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    measured: list[Measured] = []
    for name, measure, many, few in PARTS:
        if not options.only or name in options.only:
            with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder:
                measured += measure(Path(folder), few if options.quick else many)
    print("\n".join(lines_of(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
