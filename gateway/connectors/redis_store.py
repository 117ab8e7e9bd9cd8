"""The central store of limits with `sync = "redis"`: one pipelined connection of a worker to Redis.

The questions of one turn of the loop go out in one write, and answers come back in their order, so
a request costs neither a task nor a future: its answer is a call. Only connecting and probing is a
task, one for the life of the worker.

At the first late or wrong answer the store is down: the connection is dropped, whoever waits for an
answer is decided by the limit behind (the mesh's), and nobody asks again until probes have found
the store well (`limits.store_health`). So a request waits for `timeout` at most, and once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from gateway.clock import MS, SECOND
from gateway.conf.redis_url import RedisUrl, parse_redis_url
from gateway.conf.secret import Secret
from gateway.limits.central import CentralRow
from gateway.limits.central_script import (
    SCRIPT,
    SCRIPT_SHA,
    arguments,
    probe_arguments,
    read_reply,
)
from gateway.limits.store_health import PROBE_NS, Health

if TYPE_CHECKING:
    from gateway.conf.schema import Redis
    from gateway.proxy.graph import Worker

__all__ = ["RedisStore"]

CONNECT_NS: Final = SECOND  # to connect, for TLS, and for the first answers
START_SECONDS: Final = 1.5  # a start waits so long for the first try; then it is down like later
# Answers to come, of calls that are at most `timeout` old: at 100,000 requests/s, which no worker
# reaches, 20 ms are 2,000.
PENDING_MAX: Final = 10_000
REPLY_BYTES_MAX: Final = 1 << 20  # an answer of the script's has some 100; this is no answer
PROBE_NAME: Final = b"egressd:probe"


class Question(Protocol):
    """What a request asks: `many` times its `costs`, a cost for each of the rows."""

    rows: Sequence[CentralRow]
    costs: Sequence[int]
    many: int

    def answered(self, granted: int, waits_ns: Sequence[int], now_ns: int) -> None: ...

    def failed(self, now_ns: int) -> None:
        """The store is gone (`up` is False by now)."""
        ...


class _Sent:
    """A command on its way. `script` has the arguments where it may have to go as EVAL."""

    __slots__ = ("due_ns", "future", "question", "script", "sent_ns")

    def __init__(self, sent_ns: int, due_ns: int) -> None:
        self.sent_ns = sent_ns
        self.due_ns = due_ns
        self.question: Question | None = None
        self.future: asyncio.Future[Any] | None = None
        self.script: list[bytes | int | float] | None = None


class _Link(asyncio.Protocol):
    """One connection: what was sent on it and not answered yet."""

    def __init__(self, store: RedisStore) -> None:
        import hiredis

        self._store = store
        self._pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command
        self._reply_error = hiredis.ReplyError
        self._protocol_error = hiredis.ProtocolError
        self._reader = hiredis.Reader()
        self._out: list[bytes] = []
        self.pending: deque[_Sent] = deque()
        self.transport: asyncio.Transport
        self.closed = False
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, error: Exception | None) -> None:
        self.close("closed")

    def data_received(self, data: bytes) -> None:
        now_ns = self._store.now_ns()
        try:
            self._reader.feed(data)
            while not self.closed:
                reply = self._reader.gets()
                if reply is False:  # not whole yet; no reply of RESP2 is False
                    break
                self._take(reply, now_ns)
        except self._protocol_error:
            self.close("garbage")
        if not self.closed and self._reader.len() > REPLY_BYTES_MAX:
            self.close("garbage")

    def send(self, command: tuple[Any, ...], sent: _Sent) -> None:
        """Puts a command into this turn's write."""
        if not self._out:
            self._store.loop.call_soon(self._flush)
        self._out.append(self._pack(command))
        self.pending.append(sent)

    def request(self, *command: Any, due_ns: int) -> asyncio.Future[Any]:
        """Sends what is none of a request's. Its result is the reply; ConnectionError if none."""
        sent = _Sent(self._store.now_ns(), due_ns)
        sent.future = self._store.loop.create_future()
        if self.closed:
            sent.future.set_exception(ConnectionError("closed"))
        else:
            self.send(command, sent)
            self._store.watch()
        return sent.future

    def close(self, reason: str) -> None:
        """Drops the connection; whoever waits for an answer hears that there will be none."""
        if self.closed:
            return
        self.closed = True
        self.gone.set()
        self.transport.abort()
        self._store.link_gone(self, reason)
        for sent in self.pending:
            if sent.question is not None:
                sent.question.failed(self._store.now_ns())
            elif sent.future is not None and not sent.future.done():
                sent.future.set_exception(ConnectionError(reason))
        self.pending.clear()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self.closed:
            self.transport.write(b"".join(out))

    def _take(self, reply: Any, now_ns: int) -> None:
        if not self.pending:
            self.close("garbage")  # nobody asked
            return
        sent = self.pending.popleft()
        if isinstance(reply, self._reply_error):
            self._take_error(str(reply), sent)
        elif sent.future is not None:
            if not sent.future.done():
                sent.future.set_result(reply)
        elif sent.question is not None:
            question = sent.question
            answer = read_reply(reply, len(question.rows))
            if answer is None:
                self.pending.appendleft(sent)
                self.close("garbage")
                return
            self._store.heard(now_ns - sent.sent_ns)
            question.answered(*answer, now_ns)

    def _take_error(self, text: str, sent: _Sent) -> None:
        code = error_code(text)
        if code == "NOSCRIPT" and sent.script is not None:
            # Somebody flushed the scripts: this call brings it again, and later ones find it.
            script, sent.script = sent.script, None
            self._store.counts["scripts_sent"] += 1
            self.send(("EVAL", SCRIPT, *script), sent)
            return
        if sent.future is not None and not sent.future.done():
            sent.future.set_exception(ConnectionError(code.lower()))
        elif sent.question is not None:
            self.pending.appendleft(sent)
        self.close(code.lower())


def error_code(text: str) -> str:
    """The first word of an error as Redis writes them, made safe for a log and a metric."""
    word = text.split(" ", 1)[0]
    known = word in _CODES
    return word if known else "ERROR"


# A server chooses its words, and a metric's label must not be anybody's to choose.
_CODES = frozenset(
    ("BUSY", "ERR", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM", "NOREPLICAS",
     "NOSCRIPT", "OOM", "READONLY", "WRONGPASS", "WRONGTYPE")
)  # fmt: skip


class RedisStore:
    """The store of a worker. Satisfies `limits.central.Store`."""

    def __init__(self, worker: Worker, log: Callable[..., None]) -> None:
        """`log(event, **facts)` hears when the store goes and comes."""
        self.up = False
        self.epoch = 0
        self.loop = worker.loop
        self.now_ns = worker.now_ns
        self.counts = dict.fromkeys(
            ("calls", "charges", "answers", "falls", "failed_over", "scripts_sent"), 0
        )
        self.reasons: dict[str, int] = {}
        self.delay_ns = 0.0  # of answers, smoothed over 32 or so
        self._worker = worker
        self._log = log
        self._health = Health(self.now_ns())
        self._url: RedisUrl | None = None
        self._timeout_ns = 20 * MS
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._excused = False
        self._said_down = False
        self._tried = asyncio.Event()

    @property
    def configured(self) -> bool:
        return self._url is not None

    @staticmethod
    def check(conf: Redis | None) -> None:
        """Whether a conf can be obeyed. Raises ImportError where the extra is not installed."""
        if conf is not None:
            try:
                import hiredis  # noqa: F401
            except ImportError:
                raise ImportError(
                    "[redis] needs a package that is not installed: pip install 'egressd[redis]'"
                ) from None

    def configure(self, conf: Redis | None) -> None:
        """Uses the server of that conf from now on, or none. The conf has been through `check`."""
        url = None
        if conf is not None:
            text = conf.url.reveal() if isinstance(conf.url, Secret) else conf.url
            url = parse_redis_url(text)
            self._timeout_ns = conf.timeout
        if url == self._url:
            return
        self._let_go()
        self._url = url
        if url is not None:
            self._health = Health(self.now_ns())
            self._tried.clear()
            self._keeper = self.loop.create_task(self._keep(url))

    async def first_try(self) -> None:
        """Until the server is up or was found not to be, so that a start does not give the limits'
        bursts away behind the store's back."""
        if self._url is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._tried.wait(), START_SECONDS)

    async def stop(self) -> None:
        """Drops the connection and tries no more."""
        keeper = self._keeper
        self._let_go()
        if keeper is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await keeper

    def _let_go(self) -> None:
        keeper, self._keeper, self._url = self._keeper, None, None
        if keeper is not None:
            keeper.cancel()
        if self._link is not None:
            self._link.close("stopped")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The limits' side.

    def ask(self, question: Question, now_ns: int) -> bool:
        """Sends a question; its answer is a call. False: the store is down, nothing was sent."""
        link = self._link
        if link is None or not self.up:
            return False
        if len(link.pending) >= PENDING_MAX:
            link.close("flooded")
            return False
        self.counts["calls"] += 1
        sent = self._run(link, arguments(question.rows, question.costs, question.many, now_ns))
        sent.question = question
        return True

    def charge(self, row: CentralRow, cost: int, now_ns: int) -> None:
        """Takes tokens that were used already; nobody waits for the answer."""
        link = self._link
        if link is not None and self.up and len(link.pending) < PENDING_MAX:
            self.counts["charges"] += 1
            self._run(link, arguments((row,), (cost,), 0, now_ns))

    # The link's side.

    def heard(self, delay_ns: int) -> None:
        """An answer came in time."""
        self.counts["answers"] += 1
        self.delay_ns += (delay_ns - self.delay_ns) / 32
        self._excused = False

    def link_gone(self, link: _Link, reason: str) -> None:
        """The store is down: rows decide with the limit behind them from now on."""
        if link is self._link:
            self._link = None
            self.counts["failed_over"] += sum(sent.question is not None for sent in link.pending)
            self._down(reason)

    def watch(self) -> None:
        """Sees to it that the oldest command's time is looked at when it is over."""
        if self._timer is None and self._link is not None and self._link.pending:
            self._set_timer(self._link.pending[0].due_ns)

    def document(self) -> dict[str, Any] | None:
        """What the admin interface shows; None where no store is configured."""
        if self._url is None:
            return None
        return {
            "server": self._url.shown,
            "up": self.up,
            "since_ns": self._health.changed_ns,
            "delay_ms": round(self.delay_ns / MS, 3),
            **self.counts,
            "reasons": dict(self.reasons),
        }

    # Inside.

    def _run(self, link: _Link, script: list[bytes | int | float]) -> _Sent:
        now_ns = self.now_ns()
        sent = _Sent(now_ns, now_ns + self._timeout_ns)
        sent.script = script
        link.send(("EVALSHA", SCRIPT_SHA, *script), sent)
        if self._timer is None:
            self._set_timer(sent.due_ns)
        return sent

    def _set_timer(self, due_ns: int) -> None:
        self._timer_ns = due_ns
        delay_ns = max(0, due_ns - self.now_ns())
        self._timer = self.loop.call_later(delay_ns / SECOND, self._due)

    def _due(self) -> None:
        self._timer = None
        link = self._link
        if link is None or not link.pending:
            return
        now_ns = self.now_ns()
        oldest_ns = link.pending[0].due_ns
        if oldest_ns > now_ns:
            self._set_timer(oldest_ns)
        elif now_ns - self._timer_ns > self._timeout_ns // 4 and not self._excused:
            # A timer so late says that this loop stood still: the answer may be here, unread.
            self._excused = True
            self._set_timer(now_ns + self._timeout_ns // 4)
        else:
            link.close("timeout")

    def _up(self) -> None:
        self.epoch += 1
        self.up = True
        self._said_down = False
        assert self._url is not None
        self._log("redis up", server=self._url.shown)

    def _down(self, reason: str) -> None:
        self.up = False
        fell = self._health.failed(self.now_ns())
        if self._url is None:
            return  # it was stopped: nobody misses it
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if fell:
            self.counts["falls"] += 1
            self._wake_held()
        if fell or not self._said_down:
            self._said_down = True
            self._log("redis down", server=self._url.shown, reason=reason)

    def _wake_held(self) -> None:
        """Who waits for a time that the store told may go by the limit behind it sooner."""
        waitroom = self._worker.waitroom
        for exchange in waitroom.exchanges():
            waitroom.poke(exchange.blocker)

    async def _keep(self, url: RedisUrl) -> None:
        """Connects, and again whenever the connection is gone, for as long as the store is wanted.

        Nothing that a server does ends it.
        """
        while True:
            try:
                link = await self._connect(url)
            except (OSError, TimeoutError, UnicodeError):  # the last: a name that is none
                self._down("unreachable")
            else:
                # What goes wrong from here on closes the link, which says why.
                with contextlib.suppress(ConnectionError):
                    await self._greet(link, url)
                    await self._probe(link)
                    await link.gone.wait()
            self._tried.set()
            await asyncio.sleep(self._health.retry_ns(self._worker.chance()) / SECOND)

    async def _connect(self, url: RedisUrl) -> _Link:
        """Raises OSError (ssl.SSLError is one) or TimeoutError."""
        async with asyncio.timeout(CONNECT_NS / SECOND):
            context = ssl.create_default_context() if url.tls else None
            _, link = await self.loop.create_connection(
                lambda: _Link(self), url.host, url.port, ssl=context
            )
        self._link = link
        return link

    async def _greet(self, link: _Link, url: RedisUrl) -> None:
        """Logs in, and leaves the script there. Raises ConnectionError."""
        due_ns = self.now_ns() + CONNECT_NS
        wanted = []
        if url.password:
            login = (url.user, url.password) if url.user else (url.password,)
            wanted.append(link.request("AUTH", *login, due_ns=due_ns))
        if url.database:
            wanted.append(link.request("SELECT", url.database, due_ns=due_ns))
        wanted.append(link.request("SCRIPT", "LOAD", SCRIPT, due_ns=due_ns))
        # All are looked at: a failure that nobody asks about would be logged as lost.
        for result in await asyncio.gather(*wanted, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _probe(self, link: _Link) -> None:
        """Asks as requests do until the store may be used. Raises ConnectionError."""
        while True:
            script = probe_arguments(PROBE_NAME)
            due_ns = self.now_ns() + self._timeout_ns
            reply = await link.request("EVALSHA", SCRIPT_SHA, *script, due_ns=due_ns)
            if read_reply(reply, 1) is None:
                link.close("garbage")
                raise ConnectionError("garbage")
            if self._health.answered(self.now_ns()):
                self._up()
            if self.up:
                self._tried.set()
                return
            await asyncio.sleep(PROBE_NS / SECOND)
