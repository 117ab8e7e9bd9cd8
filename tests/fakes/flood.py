"""A flood of datagrams at a rate that one Python process reaches: sendmmsg(2), Linux only.

    python -m fakes.flood HOST PORT RATE SECONDS SEED [KEY_ID]

Sends random octets, envelopes under keys that nobody has, in clear, and of other versions, too long
ones, and, where the id of the members' key is given (hex; anybody on the wire can read it), forged
ones; then prints what it sent and how long it took. One system call a datagram makes 30,000/s.
"""

from __future__ import annotations

import ctypes
import json
import random
import socket
import sys
import time

__all__ = ["flood", "garbage"]

BATCH = 256  # 2.6 ms of 100,000/s
BEHIND_SECONDS_MAX = 0.05


class _Piece(ctypes.Structure):
    """struct iovec, readv(2)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr, sendmsg(2)."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("pieces", ctypes.POINTER(_Piece)),
        ("pieces_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr, sendmmsg(2)."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


def garbage(chance: random.Random, key_id: bytes = b"") -> list[bytes]:
    """A batch of what is no datagram of the mesh, most of it small as a flood's would be."""
    made: list[bytes] = []
    while len(made) < BATCH:
        size = 28 + int(1170 * chance.random() ** 4)
        made += [
            chance.randbytes(size),
            b"eg\x01\x01" + chance.randbytes(size),
            b"eg\x01\x00" + chance.randbytes(size),
            b"eg\x07\x01" + chance.randbytes(size),
        ]
        if len(made) % 32 == 0:
            made.append(bytes(1400))
        if key_id:
            made.append(b"eg\x01\x01" + key_id + chance.randbytes(size))
    chance.shuffle(made)
    return made[:BATCH]


def flood(
    target: tuple[str, int], rate: float, seconds: float, datagrams: list[bytes]
) -> tuple[int, float]:
    """Sends BATCH datagrams over and over: how many left, and in how many seconds.

    What it falls behind by more than BEHIND_SECONDS_MAX is not made good. Raises OSError.
    """
    send = ctypes.CDLL(None, use_errno=True).sendmmsg
    kept = [ctypes.create_string_buffer(data, len(data)) for data in datagrams]
    pieces = [_Piece(ctypes.addressof(buffer), len(buffer)) for buffer in kept]
    messages = (_Message * len(datagrams))()
    for message, piece in zip(messages, pieces, strict=True):
        message.header.pieces = ctypes.pointer(piece)
        message.header.pieces_count = 1
    count = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(target)
        begun = due = time.monotonic()
        while due - begun < seconds:
            sent = send(sock.fileno(), messages, len(datagrams), 0)
            if sent < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            count += sent
            due += sent / rate
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            elif pause < -BEHIND_SECONDS_MAX:
                due -= pause + BEHIND_SECONDS_MAX
        return count, time.monotonic() - begun


def main() -> None:
    host, port, rate, seconds, seed, *key_id = sys.argv[1:]
    datagrams = garbage(random.Random(seed), bytes.fromhex("".join(key_id)))
    count, took = flood((host, int(port)), float(rate), float(seconds), datagrams)
    print(json.dumps({"sent": count, "seconds": took}))


if __name__ == "__main__":
    main()
