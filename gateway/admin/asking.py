"""How the supervisor asks its workers: each has an interface on a unix socket in a private folder.

They are asked by threads (http.client), a few of them and rarely, so the supervisor's loop waits
for none.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gateway.admin.problems import Problem

if TYPE_CHECKING:
    from gateway.conf.schema import Conf

__all__ = ["Answer", "Asker", "CrewMember", "Question"]

ASK_SECONDS = 5.0  # a worker's answer takes milliseconds; behind 100,000 rows a few tens
ANSWER_BYTES_MAX = 64 << 20  # a page of everything; more is a fault of ours


class CrewMember(Protocol):
    """What is shown of a worker."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def admin_path(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def stalls(self) -> int: ...


class Asker(Protocol):
    """Whose workers are asked."""

    @property
    def conf(self) -> Conf: ...
    @property
    def members(self) -> Sequence[CrewMember]: ...


class Question(NamedTuple):
    """One request of a worker; `body` is a verb's."""

    method: str
    path: str
    body: dict[str, Any] | None = None

    async def all(self, asker: Asker) -> list[Answer]:
        """The answers of the workers that give one; who is starting or gone is left out."""
        asked = (self.one(asker, member) for member in asker.members if member.pid)
        return [answer for answer in await asyncio.gather(*asked) if answer is not None]

    async def one(self, asker: Asker, member: CrewMember) -> Answer | None:
        """What that worker answers, if it does."""
        admin = asker.conf.admin
        headers = {"content-type": "application/json"}
        if admin is not None and admin.token is not None:
            headers["authorization"] = f"Bearer {admin.token.reveal()}"
        return await asyncio.to_thread(self._ask, member, member.pid, headers)

    def _ask(self, member: CrewMember, pid: int, headers: dict[str, str]) -> Answer | None:
        connection = _UnixConnection(member.admin_path)
        body = json.dumps(self.body) if self.body is not None else None
        try:
            connection.request(self.method, self.path, body, headers)
            response = connection.getresponse()
            return Answer(member, pid, response.status, response.read(ANSWER_BYTES_MAX))
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


class Answer(NamedTuple):
    """What a worker said."""

    member: CrewMember
    pid: int  # of the process that was asked
    status: int
    body: bytes

    @property
    def done(self) -> bool:
        return self.status == http.client.OK

    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document

    def problem(self) -> Problem:
        """Why it was not done."""
        document = self.document()
        return Problem(self.status, document["detail"], document.get("faults"))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ASK_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
