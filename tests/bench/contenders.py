"""Who is compared: each contender's configuration, how it is started, and where its log goes.

All do the same work: reverse proxy to one origin over kept connections, one limit that never says
no (far above the load, so that its cost is measured and not its refusals), and one access log line
per request into a file. What a contender has no counterpart for is said in `remarks`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, NamedTuple

import trustme
from bench.packages import virtual_environment, which
from bench.process import Process, wait_for_port
from fakes.nodes import free_port

__all__ = ["CONTENDERS", "HOST", "Contender", "Origin", "Stage"]

HOST = "bench.internal"
SMALL_BYTES = 128
LARGE_BYTES = 64 * 1024
COMPILED = Path(__file__).parents[2] / ".venv-compiled"  # of `make compiled`
FILES_MAX = 4096  # connections that nginx, HAProxy and Squid prepare for; 2 x 256 are used


class Stage(NamedTuple):
    """Where the play is: the work folder, and a core for each side."""

    folder: Path
    core: int  # of the contender
    load_core: int  # of origin and client


class Origin:
    """nginx with nothing to do: a fixed text of 128 octets and a file of 64 KiB, http and https."""

    def __init__(self, stage: Stage) -> None:
        self.port = free_port()
        self.tls_port = free_port()
        self._stage = stage
        self._folder = stage.folder / "origin"
        self.ca = self._folder / "ca.pem"
        self._process: Process | None = None

    def start(self) -> None:
        folder = self._folder
        folder.mkdir(exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "leaf.pem"))
        (folder / "64KiB").write_bytes(bytes(LARGE_BYTES))
        (folder / "nginx.conf").write_text(self._conf())
        argv = [which("nginx") or "nginx", "-e", "stderr", "-c", str(folder / "nginx.conf")]
        self._process = Process(argv, self._stage.load_core, folder / "output")
        wait_for_port(self._process, self.port)

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _conf(self) -> str:
        return f"""{nginx_frame(self._folder)}
            access_log off;
            sendfile on;
            tcp_nopush on;
            server {{
                listen 127.0.0.1:{self.port} backlog=1024;
                listen 127.0.0.1:{self.tls_port} ssl backlog=1024;
                ssl_certificate {self._folder}/leaf.pem;
                ssl_certificate_key {self._folder}/leaf.pem;
                location = /small {{ return 200 "{"x" * SMALL_BYTES}"; }}
                location = /64KiB {{ root {self._folder}; }}
            }}
        }}
        """


def nginx_frame(folder: Path) -> str:
    """What both nginx's share, up to the opened http block: one worker, everything in `folder`."""
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{user}
        daemon off;
        worker_processes 1;
        pid {folder}/pid;
        events {{ worker_connections {FILES_MAX}; }}
        http {{
            {temporary}
            keepalive_requests 1000000000;
            keepalive_timeout 600s;
        """


class Contender:
    """One proxy in front of the origin, over http or https."""

    name: ClassVar[str]
    program: ClassVar[str]
    sink: ClassVar[str]
    remarks: ClassVar[str] = ""

    def __init__(self, stage: Stage, origin: Origin, scheme: str) -> None:
        self.port = free_port()
        self.scheme = scheme
        self.origin = origin
        self.stage = stage
        self.folder = stage.folder / f"{self.name}-{scheme}"
        self._process: Process | None = None

    def start(self) -> None:
        """Starts it and waits until it listens. Raises BenchError where it does not."""
        self.folder.mkdir(exist_ok=True)
        self.conf_path.write_text(self.conf())
        self._process = Process(self.argv(), self.stage.core, self.folder / "output")
        try:
            wait_for_port(self._process, self.port)
        except BaseException:
            self._process.stop()
            raise

    @property
    def process(self) -> Process:
        assert self._process is not None, "not started"
        return self._process

    def target(self, body: str) -> str:
        """What the request-line names; a forward proxy is told the whole of it."""
        return f"/{body}"

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    @property
    def conf_path(self) -> Path:
        return self.folder / "conf"

    @classmethod
    def prepare(cls, stage: Stage) -> str:
        """Installs what it needs; says why it cannot take part, or nothing."""
        return "" if which(cls.program) else f"{cls.program} is not there"

    @classmethod
    def version(cls, stage: Stage) -> str:
        return _version_of([which(cls.program) or cls.program, "-v"])

    def conf(self) -> str:
        raise NotImplementedError(self.name)

    def argv(self) -> list[str]:
        raise NotImplementedError(self.name)


def _version_of(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+\S*( \(\w+\))?", done.stdout + done.stderr)
    return found.group() if found else "?"


class Egressd(Contender):
    """As an operator would install it: what `make compiled` made, if that was possible here."""

    name = "egressd"
    program = "egressd"
    sink = "file, JSON, drained every 200 ms"
    remarks = "one smooth limit, breaker by default, codec auto"

    @classmethod
    def _path(cls) -> Path:
        compiled = COMPILED / "bin" / cls.program
        return compiled if compiled.exists() else EgressdInterpreted._path()

    @classmethod
    def prepare(cls, stage: Stage) -> str:
        return "" if cls._path().exists() else f"{cls._path()} is not there"

    @classmethod
    def version(cls, stage: Stage) -> str:
        return _version_of([*cls._command(), "--version"])

    def conf(self) -> str:
        origin = f"http://127.0.0.1:{self.origin.port}"
        way = ""
        if self.scheme == "https":
            origin = f"https://localhost:{self.origin.tls_port}"
            way = f'addresses = ["127.0.0.1:{self.origin.tls_port}"]\n'
            way += f'tls = {{ ca = "{self.origin.ca}" }}\n'
        return f"""
[[listen]]
bind = "127.0.0.1:{self.port}"
[log]
access = "{self.folder}/access.log"
[upstream.origin]
origin = "{origin}"
{way}connections = 1000
[[upstream.origin.limit]]
name = "all"
rate = "1000000/s"
burst = 100000
[[route]]
host = "{HOST}"
upstream = "origin"
"""

    @classmethod
    def _command(cls) -> list[str]:
        # PYTHONPATH would put the sources before what is installed.
        return ["env", "-u", "PYTHONPATH", str(cls._path())]

    def argv(self) -> list[str]:
        return [*self._command(), "run", "-c", str(self.conf_path)]


class EgressdInterpreted(Egressd):
    """The same source as plain Python: this environment's."""

    name = "egressd-interpreted"

    @classmethod
    def _path(cls) -> Path:
        return Path(sys.executable).parent / cls.program

    @classmethod
    def _command(cls) -> list[str]:
        return [str(cls._path())]


class Haproxy(Contender):
    name = "haproxy"
    program = "haproxy"
    sink = "standard output into a file, httplog, a write per line"
    remarks = "stick table with http_req_rate of the Host, 429 above 1,000,000/s; no breaker"

    def conf(self) -> str:
        server = f"127.0.0.1:{self.origin.port}"
        if self.scheme == "https":
            server = f"127.0.0.1:{self.origin.tls_port} ssl verify required"
            server += f" ca-file {self.origin.ca} verifyhost localhost sni str(localhost)"
        return f"""
global
    nbthread 1
    maxconn {FILES_MAX}
    log stdout format raw local0 info
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 600s
    timeout server 60s
    http-reuse always
frontend in
    bind 127.0.0.1:{self.port}
    stick-table type string len 64 size 100k expire 60s store http_req_rate(1s)
    http-request track-sc0 hdr(host)
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 1000000 }}
    default_backend out
backend out
    server origin {server}
"""

    def argv(self) -> list[str]:
        return [which("haproxy") or "haproxy", "-db", "-f", str(self.conf_path)]


class Nginx(Contender):
    name = "nginx"
    program = "nginx"
    sink = "file, combined, unbuffered as by default"
    remarks = "limit_req of the Host with nodelay; no breaker (max_fails counts no statuses)"

    def conf(self) -> str:
        server = f"127.0.0.1:{self.origin.port}"
        secure = ""
        if self.scheme == "https":
            server = f"127.0.0.1:{self.origin.tls_port}"
            secure = f"""
                    proxy_ssl_verify on;
                    proxy_ssl_trusted_certificate {self.origin.ca};
                    proxy_ssl_server_name on;
                    proxy_ssl_name localhost;"""
        return f"""{nginx_frame(self.folder)}
            access_log {self.folder}/access.log combined;
            limit_req_zone $host zone=all:10m rate=1000000r/s;
            upstream origin {{
                server {server};
                keepalive 512;
                keepalive_requests 1000000000;
            }}
            server {{
                listen 127.0.0.1:{self.port} backlog=1024;
                location / {{
                    limit_req zone=all burst=100000 nodelay;
                    proxy_pass {self.scheme}://origin;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";{secure}
                }}
            }}
        }}
        """

    def argv(self) -> list[str]:
        return [which("nginx") or "nginx", "-e", "stderr", "-c", str(self.conf_path)]


class Squid(Contender):
    """As a forward proxy, which is its work: with cache_peer version 5.7 takes 60 us instead of 46
    and keeps 15 KiB of every request for ever."""

    name = "squid"
    program = "squid"
    sink = "file (stdio:), squid format"
    remarks = "forward proxy without cache; no limit (delay pools count octets); no breaker"

    def target(self, body: str) -> str:
        if self.scheme == "https":
            return f"https://127.0.0.1:{self.origin.tls_port}/{body}"
        return f"http://127.0.0.1:{self.origin.port}/{body}"

    def conf(self) -> str:
        return f"""
http_port 127.0.0.1:{self.port}
http_access allow all
cache deny all
tls_outgoing_options cafile={self.origin.ca}
access_log stdio:{self.folder}/access.log squid
cache_log {self.folder}/cache.log
pid_filename {self.folder}/pid
coredump_dir {self.folder}
visible_hostname bench
pinger_enable off
icp_port 0
shutdown_lifetime 0 seconds
max_filedescriptors {FILES_MAX}
"""

    def start(self) -> None:
        # Started as root it turns into the user "proxy", who must write here and get there.
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o777)
        super().start()

    def argv(self) -> list[str]:
        return [which("squid") or "squid", "-N", "-f", str(self.conf_path)]


class Mitmproxy(Contender):
    name = "mitmproxy"
    program = "mitmdump"
    sink = "standard output into a file, a line per flow (its default)"
    remarks = "reverse mode; no limit, no breaker"

    @classmethod
    def _folder(cls, stage: Stage) -> Path:
        return stage.folder / "venv-mitmproxy"

    @classmethod
    def prepare(cls, stage: Stage) -> str:
        return virtual_environment(cls._folder(stage), ["mitmproxy"])

    @classmethod
    def version(cls, stage: Stage) -> str:
        return _version_of([str(cls._folder(stage) / "bin" / cls.program), "--version"])

    def conf(self) -> str:
        target = f"http://127.0.0.1:{self.origin.port}"
        if self.scheme == "https":
            target = f"https://localhost:{self.origin.tls_port}"
        return f"""
mode: ["reverse:{target}"]
listen_host: 127.0.0.1
listen_port: {self.port}
ssl_verify_upstream_trusted_ca: {self.origin.ca}
"""

    @property
    def conf_path(self) -> Path:
        return self.folder / "config.yaml"

    def argv(self) -> list[str]:
        program = self._folder(self.stage) / "bin" / self.program
        return [str(program), "--set", f"confdir={self.folder}"]


CONTENDERS: tuple[type[Contender], ...] = (
    Egressd,
    EgressdInterpreted,
    Haproxy,
    Nginx,
    Squid,
    Mitmproxy,
)
