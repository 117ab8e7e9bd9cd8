"""A mesh under fire: a flood of garbage on its port, and keys that are rotated under traffic."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.load import Load, peak
from fakes.nodes import NodeProcess, until
from fakes.origin import Origin

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECOND = 1_000_000_000
RATE = 45
BURST = 5
UPSTREAM = """
[[upstream.api.limit]]
name = "account"
rate = "45/s"
burst = 5
[upstream.api.wait]
max = "200ms"
"""
MIB = 1 << 20
FLOOD_SECONDS = 4

# As fast as one process can: random octets, envelopes without a key of ours, and too long ones.
FLOOD = """
import random, socket, sys, time
target = ("127.0.0.1", int(sys.argv[1]))
chance = random.Random(5)
some = [chance.randbytes(chance.randrange(1, 1200)) for _ in range(400)]
some += [b"eg\\x01\\x01" + chance.randbytes(chance.randrange(24, 1196)) for _ in range(400)]
some += [bytes(1500)] * 50 + [b"eg\\x01\\x00" + bytes(100)] * 50
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for data in some:
        try:
            sock.sendto(data, target)
            sent += 1
        except OSError:
            pass
print(sent)
"""

MakeMesh = Callable[..., list[NodeProcess]]


def key_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(random.Random(name).randbytes(32).hex())
    path.chmod(0o600)
    return path


def resident_bytes(process: NodeProcess) -> int:
    fields = Path(f"/proc/{process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(process: NodeProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_flood_of_garbage_starves_nobody(
    mesh: MakeMesh, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = mesh(3, origin, UPSTREAM, keys=[key_file(tmp_path, "mesh.key")])
    victim = nodes[0]
    with Load([process.address for process in nodes], 90) as load:
        load.go_on(1.0)
        before, memory, cpu = victim.drops(), resident_bytes(victim), cpu_seconds(victim)
        flood = subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(victim.ports.mesh), str(FLOOD_SECONDS)],
            stdout=subprocess.PIPE,
        )
        try:
            load.go_on(FLOOD_SECONDS + 0.5)
            out, _ = flood.communicate(timeout=30)
        finally:
            flood.kill()
            flood.wait()
        after = victim.drops()
        used = cpu_seconds(victim) - cpu
        grown_bytes = resident_bytes(victim) - memory
        load.go_on(1.0)
    dropped = sum(after.values()) - sum(before.values())
    assert {"garbage", "unknown_key", "unsealed", "oversized"} <= after.keys()
    assert dropped > 1000
    assert grown_bytes < 20 * MIB
    # The proxy went on, and the limit of all nodes held.
    assert not load.failures
    stamps = [request.at_ns for request in list(origin.requests)]
    assert peak(stamps) <= RATE + BURST + 3 + RATE // 10
    assert all(len(process.live_members()) == 3 for process in nodes)
    with capsys.disabled():
        print(
            f"\nflood: {int(out) / FLOOD_SECONDS:,.0f} datagrams/s sent, "
            f"{dropped / FLOOD_SECONDS:,.0f}/s read and dropped, {used / FLOOD_SECONDS:.2f} of a "
            f"core, {1e6 * used / dropped:.1f} us each with the proxy's work, "
            f"{grown_bytes / MIB:+.1f} MiB"
        )


def test_keys_rotate_by_reloads_without_a_dropped_datagram(
    mesh: MakeMesh, origin: Origin, tmp_path: Path
) -> None:
    old, new = key_file(tmp_path, "old.key"), key_file(tmp_path, "new.key")
    nodes = mesh(3, origin, UPSTREAM, keys=[old])
    entry_old, entry_new = (f'{{ file = "{path}" }}' for path in (old, new))
    begun_ns = time.monotonic_ns()
    with Load([process.address for process in nodes], 90) as load:
        load.go_on(1.0)
        for keys in ((entry_old, entry_new), (entry_new, entry_old), (entry_new,)):
            for process in nodes:
                lines = process.path.read_text().splitlines()
                changed = [
                    f"keys = [{', '.join(keys)}]" if line.startswith("keys = ") else line
                    for line in lines
                ]
                process.reload("\n".join(changed) + "\n")
            load.go_on(0.5)
        load.go_on(1.0)
    assert not load.failures
    for process in nodes:
        drops = process.drops()
        assert drops.keys() <= {"unknown_boot"}, drops
        assert not process.log("member suspected")
    settled = [r.at_ns for r in list(origin.requests) if r.at_ns > begun_ns + SECOND]
    assert peak(settled) <= RATE + BURST + 1
    until(lambda: all(len(p.live_members()) == 3 for p in nodes), 2.0, "all are members")
