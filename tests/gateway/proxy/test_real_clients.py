"""Clients that people use, in proxy form: absolute targets for http, CONNECT for https."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx
import pytest
import requests
import trustme
import urllib3


class Call(NamedTuple):
    """One request to make: `ca` is the file of the authority to trust."""

    url: str
    proxy: str
    ca: str


def with_requests(call: Call) -> tuple[int, bytes]:
    proxies = {"http": call.proxy, "https": call.proxy}
    answer = requests.get(call.url, proxies=proxies, verify=call.ca, timeout=10)
    return answer.status_code, answer.content


def with_httpx(call: Call) -> tuple[int, bytes]:
    trusted = ssl.create_default_context(cafile=call.ca)
    with httpx.Client(proxy=call.proxy, verify=trusted, timeout=10) as client:
        answer = client.get(call.url)
        return answer.status_code, answer.content


def with_urllib3(call: Call) -> tuple[int, bytes]:
    with urllib3.ProxyManager(call.proxy, ca_certs=call.ca) as manager:
        answer = manager.request("GET", call.url, timeout=10, retries=False)
        return answer.status, answer.data


def with_aiohttp(call: Call) -> tuple[int, bytes]:
    async def fetch() -> tuple[int, bytes]:
        trusted = ssl.create_default_context(cafile=call.ca)
        async with (
            aiohttp.ClientSession() as session,
            session.get(call.url, proxy=call.proxy, ssl=trusted) as answer,
        ):
            return answer.status, await answer.read()

    return asyncio.run(fetch())


def with_curl(call: Call) -> tuple[int, bytes]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-sS", "-m", "10", "-x", call.proxy, "--cacert", call.ca]
    done = subprocess.run(
        [*command, "-w", "\n%{http_code}", call.url], capture_output=True, check=False
    )
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status or 0), body


# node's fetch has no setting for a proxy: its http module sends the absolute form, and its tls
# module speaks through what a CONNECT by hand has opened, as its proxy agents do.
NODE = """
const [proxy, ca, url] = process.argv.slice(1);
const [{hostname, port}, target] = [new URL(proxy), new URL(url)];
const read = async response => {
  let body = "";
  for await (const piece of response) body += piece;
  console.log(body + "\\n" + response.statusCode);
};
const http = require("http");
if (target.protocol === "http:") {
  http.request({hostname, port, path: url, headers: {host: target.host}}, read).end();
} else {
  const connect = http.request({hostname, port, method: "CONNECT", path: target.host});
  connect.on("connect", (answer, socket) => {
    const options = {socket, servername: target.hostname, ca: require("fs").readFileSync(ca)};
    const secured = require("tls").connect(options, () => http.request(
      {createConnection: () => secured, path: target.pathname, headers: {host: target.host}},
      response => read(response).then(() => secured.end()),
    ).end());
  }).end();
}
"""


def with_node(call: Call) -> tuple[int, bytes]:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    command = ["node", "-e", NODE, call.proxy, call.ca, call.url]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    body, _, status = done.stdout.strip().rpartition(b"\n")
    return int(status), body


CLIENTS = [with_requests, with_httpx, with_urllib3, with_aiohttp, with_curl, with_node]


@pytest.fixture(params=CLIENTS, ids=lambda client: client.__name__.removeprefix("with_"))
def fetch(request: pytest.FixtureRequest) -> Callable[[Call], tuple[int, bytes]]:
    return request.param


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


def proxy_url(gateway) -> str:
    host, port = gateway.address
    return f"http://{host}:{port}"


def test_http_proxy(make, fetch, authority, tmp_path: Path) -> None:
    gateway, origin = make()
    call = Call(f"{origin.url}/a?b=c+d", proxy_url(gateway), str(tmp_path / "ca.pem"))
    assert fetch(call) == (200, b"hello")
    request = origin.next_request()
    assert request.target == b"/a?b=c+d"
    assert request.values(b"proxy-connection") == []
    assert request.values(b"via") == [b"1.1 egressd-gw-test"]


def test_https_proxy(make, fetch, authority, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    gateway, origin = make(upstream="tunnel = true", ssl_context=context)
    call = Call(f"{origin.url}/a", proxy_url(gateway), str(tmp_path / "ca.pem"))
    assert fetch(call) == (200, b"hello")
    assert origin.next_request().values(b"via") == []  # nobody looks into a tunnel


def test_a_limit_seen_through_a_proxy_setting(make, fetch, authority, tmp_path: Path) -> None:
    gateway, origin = make(
        upstream='wait = { max = "0s" }\n[[upstream.api.limit]]\nname = "l"\n'
        'rate = "1/min"\nburst = 1\n'
    )
    call = Call(origin.url, proxy_url(gateway), str(tmp_path / "ca.pem"))
    assert [fetch(call)[0] for _ in range(2)] == [200, 429]
