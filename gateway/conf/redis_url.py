"""The address of a Redis server as one text: redis://[USER:]PASSWORD@HOST:PORT/DB, or rediss://.

The text may hold a password, so no error repeats any of it.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["RedisUrl", "parse_redis_url"]

_PORT = 6379
_DATABASE_MAX = 65_535  # servers have 16 unless told otherwise


class RedisUrl(NamedTuple):
    """Where a server is; "" for no user and no password."""

    host: str
    port: int
    user: str
    password: str
    database: int
    tls: bool

    @property
    def shown(self) -> str:
        """The address without what is secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


def parse_redis_url(text: str) -> RedisUrl:
    """Takes the URL apart. Raises ValueError, which repeats nothing of it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL; write redis://HOST:PORT/DB") from None
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("must begin with redis:// or rediss:// (TLS)")
    if not parts.hostname:
        raise ValueError("names no host; write redis://HOST:PORT/DB")
    if parts.query or parts.fragment:
        raise ValueError("has a query or a fragment, which mean nothing here")
    if port == 0:
        raise ValueError("has port 0, where nobody listens")
    database = parts.path.removeprefix("/") or "0"
    if not (database.isascii() and database.isdigit()) or len(database) > 5:
        raise ValueError("names no database behind the host; it is a number, as in redis://HOST/0")
    if int(database) > _DATABASE_MAX:
        raise ValueError(f"names a database above {_DATABASE_MAX}")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if user and not password:
        raise ValueError("has a user and no password; a password alone is :PASSWORD@HOST")
    tls = parts.scheme == "rediss"
    return RedisUrl(parts.hostname, port or _PORT, user, password, int(database), tls)
