"""Hosts made of network namespaces on one bridge, and what is said there by ARP. Needs root.

Nothing of it touches the machine's own network: the bridge has a namespace too.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

__all__ = ["ArpReply", "ArpWatch", "Host", "Network", "why_not"]

CLONE_NEWNET = 0x40000000  # sched.h
ETH_P_ARP = 0x0806  # linux/if_ether.h
PREFIX = "egressd-test-"
COMMAND_SECONDS = 20.0
NAMES = Path("/run/netns")


def why_not(*programs: str) -> str:
    """Why namespaces or the programs cannot be had here; "" if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", *programs) if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (`make vip-tools` installs them on Debian)"
    name = f"{PREFIX}{os.getpid()}-probe"
    try:
        ip("netns", "add", name)
        # A container's root may have namespaces, and no right or no module for what is in them.
        for link in (("br0", "type", "bridge"), ("one", "type", "veth", "peer", "name", "two")):
            ip("-n", name, "link", "add", *link)
    except AssertionError as error:
        return f"no network of namespaces here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


def ip(*words: str) -> str:
    """Runs ip(8). Raises AssertionError with what it said."""
    return run("ip", *words)


def run(*words: str) -> str:
    """Runs a command to its end. Raises AssertionError with what it said."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


class Host:
    """One namespace with an interface eth0 and a loopback."""

    def __init__(self, name: str, address: str, namespace: str, port: str) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self._port = port  # the bridge's end of the cable

    @property
    def prefix(self) -> Sequence[str]:
        """The words before a command that is to run here."""
        return in_namespace(self.namespace)

    def run(self, *words: str) -> str:
        return run(*self.prefix, *words)

    def enter(self) -> None:
        """Takes the calling thread here; sockets that it makes from now on are this host's."""
        libc = ctypes.CDLL(None, use_errno=True)
        with (NAMES / self.namespace).open() as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.namespace}")

    def mac(self) -> bytes:
        shown = json.loads(ip("-n", self.namespace, "-j", "link", "show", "eth0"))
        return bytes.fromhex(shown[0]["address"].replace(":", ""))

    def holds(self) -> set[str]:
        """The addresses on eth0, beside its own."""
        shown = json.loads(ip("-n", self.namespace, "-j", "-4", "addr", "show", "dev", "eth0"))
        found = {info["local"] for info in shown[0]["addr_info"]}
        return found - {self.address}

    def unplug(self) -> None:
        """Nothing leaves or comes in any more, as without power."""
        ip("-n", bridge_of(self.namespace), "link", "set", self._port, "down")

    def plug_in(self) -> None:
        ip("-n", bridge_of(self.namespace), "link", "set", self._port, "up")

    def cut_off(self) -> None:
        """The bridge drops all that comes from here or goes here; the host notices nothing.

        On the host itself rules would not do: packet sockets, by which keepalived says where an
        address is, pass them by.
        """
        rules = "add table bridge cut; "
        rules += "add chain bridge cut between { type filter hook forward priority 0; }; "
        for word in ("iifname", "oifname"):
            rules += f"add rule bridge cut between {word} {self._port} drop; "
        run(*in_namespace(bridge_of(self.namespace)), "nft", rules)

    def heal(self) -> None:
        run(*in_namespace(bridge_of(self.namespace)), "nft", "delete table bridge cut")


def in_namespace(name: str) -> Sequence[str]:
    """The words before a command that is to run in a namespace."""
    return ("ip", "netns", "exec", name)


def bridge_of(namespace: str) -> str:
    return namespace.rpartition("-")[0] + "-lan"


class Network:
    """Hosts on one bridge: `{name: address}`, all in one /24. Use as a context manager.

    Leaving it deletes the namespaces; whoever runs in them must have ended. Those of runs that
    were killed are deleted at the beginning of the next.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = dict(addresses)
        self._base = f"{PREFIX}{os.getpid()}"
        self._stack = ExitStack()
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        forget_the_dead()
        with self._stack as stack:
            self._lan = self._namespace("lan")
            ip("-n", self._lan, "link", "add", "br0", "type", "bridge")
            ip("-n", self._lan, "link", "set", "br0", "up")
            for number, (name, address) in enumerate(self._addresses.items()):
                self.hosts[name] = self._host(number, name, address)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _namespace(self, name: str) -> str:
        namespace = f"{self._base}-{name.replace('-', '')}"
        ip("netns", "add", namespace)
        self._stack.callback(ip, "netns", "del", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _host(self, number: int, name: str, address: str) -> Host:
        namespace = self._namespace(name)
        port = f"port{number}"
        cable = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("-n", self._lan, "link", "add", port, *cable)
        ip("-n", self._lan, "link", "set", port, "master", "br0", "up")
        ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "eth0", "up")
        return Host(name, address, namespace, port)


def forget_the_dead() -> None:
    """Deletes namespaces whose test run has ended without doing so."""
    for path in NAMES.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            ip("netns", "del", path.name)


class ArpReply(NamedTuple):
    """A gratuitous ARP: a host says of itself where an address is (RFC 5227 section 3)."""

    at_ns: int
    address: str
    mac: bytes


class ArpWatch:
    """Records the gratuitous ARPs that a host hears. Use as a context manager."""

    def __init__(self, host: Host) -> None:
        self.heard: list[ArpReply] = []
        self._host = host
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ArpWatch:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def first(self, address: str, mac: bytes, after_ns: int) -> int:
        """When that address was first said to be at that host after a moment; 0: not yet."""
        for reply in list(self.heard):
            if reply.at_ns >= after_ns and (reply.address, reply.mac) == (address, mac):
                return reply.at_ns
        return 0

    def _run(self) -> None:
        self._host.enter()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP)) as sock:
            sock.settimeout(0.1)
            self._ready.set()
            while not self._stop.is_set():
                try:
                    frame = sock.recv(128)
                except TimeoutError:
                    continue
                # RFC 826: after 14 octets of Ethernet and 8 of types, sender and target.
                mac, sender, _, target = struct.unpack_from("!6s4s6s4s", frame, 22)
                if sender == target:
                    now_ns = time.monotonic_ns()
                    self.heard.append(ArpReply(now_ns, socket.inet_ntoa(sender), mac))
