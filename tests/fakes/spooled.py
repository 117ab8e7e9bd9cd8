"""A gateway with a spool, in a thread: what tests of accepted requests ask of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from fakes.gateway import Gateway, Response

__all__ = ["Spooled"]


class Spooled(Gateway):
    """A gateway, with what tests of the spool ask of it."""

    _is_stopped = False

    def stop(self) -> None:
        """Ends the gateway before its time: nothing of it is left but its files."""
        super().__exit__(None)
        self._is_stopped = True

    def __exit__(self, exc_type: object, *exc: object) -> None:
        if not self._is_stopped:
            super().__exit__(exc_type, *exc)

    def post(
        self, body: bytes = b"hello", fields: bytes = b"", path: bytes = b"/a", *, asks: bool = True
    ) -> Response:
        """Sends a POST on a connection of its own; `asks` for a 202."""
        wish = b"Prefer: respond-async\r\n" if asks else b""
        with self.client() as client:
            client.send(
                b"POST %s HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n%s%s\r\n%s"
                % (path, len(body), wish, fields, body)
            )
            return client.response()

    def ask(self, path: bytes, fields: bytes = b"") -> Response:
        """GETs a status, or a stored response."""
        with self.client() as client:
            return client.get(path, b"gw.test", fields)

    def state(self, path: bytes) -> dict[str, Any]:
        """The status document."""
        response = self.ask(path)
        assert response.status == 200, response.raw_head
        document: dict[str, Any] = json.loads(response.body)
        return document

    def until_state(self, path: bytes, state: str) -> dict[str, Any]:
        """Asks until it is so. Raises TimeoutError."""
        found: dict[str, Any] = {}

        def is_so() -> bool:
            found.update(self.state(path))
            return found["state"] == state

        self.poll(is_so)
        return found

    def poll(self, condition: Callable[[], bool]) -> None:
        """Asks from this thread until a condition holds."""
        end = time.monotonic() + 15
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.01)

    @property
    def spool(self) -> Any:
        return self.server.durable.spool
