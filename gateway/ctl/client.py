"""Speaks to a node's admin interface, over TCP or a unix socket, by http.client.

Whatever goes wrong becomes an AdminError with a sentence and an exit status, so that a script can
tell "the node said no" from "nobody answers" from "the token is wrong".
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

__all__ = ["Admin", "AdminError", "NotAnswered", "Refused", "Unauthorized", "path_of"]

PREFIX = "/api/v1"
# A page of rows is at most some MiB; what is longer is not this interface.
ANSWER_BYTES_MAX = 256 * 1024 * 1024
EVENT_LINE_BYTES_MAX = 64 * 1024 * 1024


class AdminError(Exception):
    """It was not done; `exit_status` says why to a script."""

    exit_status = 1


class Refused(AdminError):
    """The node said no."""


class NotAnswered(AdminError):
    """Nobody answers there, or not an egressd."""

    exit_status = 3


class Unauthorized(AdminError):
    """The token is missing or wrong, or this caller may not ask."""

    exit_status = 4


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


def path_of(*parts: str) -> str:
    """A path below the API's prefix; each part is escaped."""
    return PREFIX + "".join("/" + quote(part, safe="") for part in parts)


class Admin:
    """One admin interface: "unix:PATH", "HOST:PORT" or "http://HOST:PORT"."""

    def __init__(self, where: str, token: str = "", timeout_seconds: float = 10.0) -> None:
        """Raises ValueError for an address that is none."""
        self.where = where
        self._token = token
        self._timeout = timeout_seconds
        self._unix = where.removeprefix("unix:") if where.startswith("unix:") else ""
        if self._unix or where.startswith("unix:"):
            if not self._unix:
                raise ValueError("unix: needs a path behind it")
            return
        parts = urlsplit(where if "://" in where else f"http://{where}")
        if parts.scheme != "http":
            raise ValueError(f"{where}: the admin interface speaks http:// or unix:PATH")
        if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise ValueError(f"{where}: must be HOST:PORT, http://HOST:PORT or unix:PATH")
        self._host = parts.hostname
        self._port = parts.port or 80

    def get(self, *path: str, **query: str | int | None) -> dict[str, Any]:
        """What a resource shows. Raises AdminError."""
        told = {name: value for name, value in query.items() if value is not None}
        target = path_of(*path) + ("?" + urlencode(told) if told else "")
        return self._ask("GET", target)

    def get_paged(
        self, *path: str, items: str, most: int, a_page: int, **query: str | int | None
    ) -> dict[str, Any]:
        """A list that comes by pages: at most `most` of its `items`, put together, and the last
        page's other fields, of which `next` says whether there are more. Raises AdminError."""
        found: list[Any] = []
        after: str | None = None
        while True:
            page = self.get(*path, after=after, count=min(a_page, most - len(found)), **query)
            found += page[items]
            after = page["next"]
            if after is None or len(found) >= most:
                return {**page, items: found}

    def tell(self, method: str, *path: str, **body: object) -> dict[str, Any]:
        """Asks for something to be done. Raises AdminError."""
        return self._ask(method, path_of(*path), json.dumps(body).encode())

    def snapshots(self, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The node's snapshots as they come, one a second. Raises AdminError when they end."""
        connection = self._connection()
        target = path_of("events") + (f"?snapshots={most}" if most else "")
        try:
            response = self._send(connection, "GET", target, None)
            if response.status != 200:
                self._raise(response.status, response.read(ANSWER_BYTES_MAX))
            while line := response.readline(EVENT_LINE_BYTES_MAX):
                name, _, value = line.partition(b":")
                if name == b"data":
                    yield self._json(value)
        except (OSError, http.client.HTTPException) as error:
            raise self._not_answered(error) from error
        finally:
            connection.close()
        if most is None:
            raise NotAnswered(f"{self.where}: the node closed the connection")

    def _ask(self, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
        connection = self._connection()
        try:
            response = self._send(connection, method, target, body)
            octets = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._not_answered(error) from error
        finally:
            connection.close()
        if response.status != 200:
            self._raise(response.status, octets)
        return self._json(octets)

    def _connection(self) -> http.client.HTTPConnection:
        if self._unix:
            return _UnixConnection(self._unix, self._timeout)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection.request(method, target, body, headers)
        return connection.getresponse()

    def _json(self, octets: bytes) -> dict[str, Any]:
        try:
            document = json.loads(octets)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise NotAnswered(f"{self.where}: the answer is not egressd's")
        return document

    def _raise(self, status: int, octets: bytes) -> None:
        try:
            problem = json.loads(octets)
            detail = str(problem["detail"])
            faults = [str(fault) for fault in problem.get("faults", ())]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NotAnswered(f"{self.where}: status {status}, and not from egressd") from None
        if status in (401, 403):
            raise Unauthorized(f"{self.where}: {detail}")
        raise Refused("\n".join([detail, *faults[1:]]))

    def _not_answered(self, error: Exception) -> NotAnswered:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return NotAnswered(f"{self.where}: {reason}")
