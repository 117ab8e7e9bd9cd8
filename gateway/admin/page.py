"""The dashboard's files: read once, served from memory to whoever asks, for they tell nothing.

What they show comes from `/api/v1/`, which is behind the gate. Nothing of them changes while the
process runs, so a validator is enough: the browser asks each time and is told 304 (RFC 9110
section 13.1.2). There is no path to a folder: a file is one of those read at the start, or none.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGE_PATHS", "page_routes"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, in nobody's frame; and text can never become a script or
# markup, because the one thing that the page does not control is what names its data has.
_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_FIELDS = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_ETAG_HEX_DIGITS = 32  # 128 bits: two versions of a file do not meet


class _File(NamedTuple):
    body: bytes
    kind: str
    etag: str


def _read() -> dict[str, _File]:
    """The files by the path that they are asked for by."""
    found = {}
    for path in files("gateway.admin").joinpath("static").iterdir():
        kind = _TYPES.get(path.name.rpartition(".")[2])
        if kind is not None:
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:_ETAG_HEX_DIGITS]}"'
            where = "/" if path.name == "index.html" else f"/static/{path.name}"
            found[where] = _File(body, kind, etag)
    return found


_FILES = _read()
PAGE_PATHS = frozenset(_FILES)


def page_routes() -> list[Route]:
    """A route for each file; GET and HEAD."""
    return [Route(path, _serve, methods=["GET"]) for path in _FILES]


async def _serve(request: Request) -> Response:
    file = _FILES[request.scope["path"]]
    fields = {**_FIELDS, "etag": file.etag}
    if _knows(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=fields)
    return Response(file.body, headers=fields, media_type=file.kind)


def _knows(field: str, etag: str) -> bool:
    """Whether If-None-Match names the tag; a weak one is as good here (RFC 9110 section 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for tag in field.split(",")]
    return etag in tags or "*" in tags
