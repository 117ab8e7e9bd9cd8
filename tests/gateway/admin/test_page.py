"""The dashboard's files as a browser gets them, and the rules that keep the page harmless."""

import asyncio
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

from gateway.admin.app import make_app
from gateway.admin.events import Snapshots
from gateway.admin.page import PAGE_PATHS

MakeServed = Callable[..., Any]
SCRIPTS = {
    path.name: path.read_text()
    for path in files("gateway.admin").joinpath("static").iterdir()
    if path.name.endswith(".js")
}
PAGE = files("gateway.admin").joinpath("static/index.html").read_text()
STYLE = files("gateway.admin").joinpath("static/style.css").read_text()


def get(
    served: Any, path: str, *fields: tuple[bytes, bytes], method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """(status, fields, body) of one request to the whole application."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [(b"host", b"localhost"), *fields], "root_path": "",
        "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    asyncio.run(make_app(served, Snapshots(served))(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(part.get("body", b"") for part in sent[1:])


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_a_file_has_its_type_a_validator_and_the_policy(make_served: MakeServed, path: str) -> None:
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    served = make_served(token="secret")  # the page must come to whoever has not told it yet
    status, fields, body = get(served, path)
    assert status == 200
    assert fields["content-type"].startswith(kinds.get(path.rpartition(".")[2], "text/html"))
    assert fields["content-length"] == str(len(body))
    assert fields["cache-control"] == "no-cache"
    assert fields["x-content-type-options"] == "nosniff"
    policy = fields["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    tag = fields["etag"].encode()
    for known in (tag, b"W/" + tag, b'"other", ' + tag, b"*"):
        status, fields, body = get(served, path, (b"if-none-match", known))
        assert (status, body) == (304, b"")
        assert fields["etag"].encode() == tag
    assert get(served, path, (b"if-none-match", b'"other"'))[0] == 200


def test_it_is_read_and_never_written(make_served: MakeServed) -> None:
    status, fields, _ = get(make_served(), "/", method="HEAD")
    assert status == 200
    assert int(fields["content-length"]) > 1000
    assert get(make_served(), "/", method="POST")[0] == 405


@pytest.mark.parametrize(
    "path",
    ["/static", "/static/", "/static/nothing.js", "/static/../gate.py", "/static//app.js",
     "/static/%2e%2e/gate.py", "/index.html", "/static/index.html", "/favicon.ico"],
)  # fmt: skip
def test_no_other_file_is_to_be_had(make_served: MakeServed, path: str) -> None:
    assert get(make_served(), path)[0] == 404
    assert get(make_served(token="secret"), path)[0] == 401


def test_the_page_names_files_that_there_are_and_nothing_from_elsewhere() -> None:
    named = re.findall(r'(?:src|href)="([^"#]+)"', PAGE)
    named += [f"static/{name}" for text in SCRIPTS.values() for name in imported(text)]
    assert len(named) > len(SCRIPTS)
    assert {f"/{name}" for name in named} <= PAGE_PATHS
    outside = re.compile(r"(?:https?:)?//(?!www\.w3\.org/)[a-z]")
    for text in (PAGE, STYLE, *SCRIPTS.values()):
        assert not [m for m in outside.findall(text) if "://" in m or '"//' in m]
    assert "url(" not in STYLE
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", PAGE)


def imported(text: str) -> list[str]:
    return re.findall(r'from "\./([\w.]+)"', text)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_never_makes_markup_or_code_of_text(name: str) -> None:
    banned = r"(inner|outer|Adjacent)HTML|document\.write|\beval\b|new Function|DOMParser"
    assert not re.search(banned, SCRIPTS[name])
    assert not re.search(r'setAttribute\("(?:on|style|href|src)', SCRIPTS[name])


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_is_as_tidy_as_the_rest(name: str) -> None:
    lines = SCRIPTS[name].splitlines()
    assert lines[0].startswith("// ")  # why it is there
    assert len(lines) <= 400
    assert not [line for line in lines if len(line) > 100]
    names = re.findall(r"import \{([^}]*)\}", SCRIPTS[name])
    used = [name.strip() for group in names for name in group.split(",") if name.strip()]
    body = re.sub(r"import \{[^}]*\} from [^;]*;", "", SCRIPTS[name])
    assert not [one for one in used if not re.search(rf"\b{one}\b", body)], "imported, never used"
