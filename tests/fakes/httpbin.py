"""httpbin on waitress, in a thread of its own: an origin that nobody here wrote."""

from __future__ import annotations

import logging
import threading

import waitress.server
import waitress.wasyncore

# It warns of a package that is not there to draw its landing page.
logging.getLogger("httpbin.core").disabled = True
from httpbin import app  # noqa: E402

__all__ = ["HttpBin", "app"]

LOOK_SECONDS = 0.05  # how soon the thread sees that it is to end


class HttpBin:
    """httpbin on a loopback port. Use as a context manager."""

    def __init__(self) -> None:
        self._server = waitress.server.create_server(
            app,
            host="127.0.0.1",
            port=0,
            threads=4,
            clear_untrusted_proxy_headers=False,  # what reaches it is to be seen
        )
        self.port = int(self._server.effective_port)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> HttpBin:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        sockets = self._server._map
        while not self._stopping.is_set():
            waitress.wasyncore.loop(timeout=LOOK_SECONDS, map=sockets, count=1, use_poll=True)
        self._server.task_dispatcher.shutdown()
        waitress.wasyncore.close_all(sockets)
