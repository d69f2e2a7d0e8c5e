"""An object store on loopback, behind a proxy in which tests plant faults."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from ptft_lightning.data import remote

Fault = Callable[[Any], bool]


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server, but for those that a fault takes; counts what was asked."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.asked = behind, list[str]()
        self.fault: Fault = lambda request: False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.command == "GET":
            self.server.asked.append(self.path)
        if self.server.fault(self):
            return
        status, headers, body = self.fetch()
        self.answer(status, headers, body)

    do_HEAD = do_GET

    def fetch(self) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        request = Request(self.server.behind + self.path, headers=headers, method=self.command)
        try:
            with urlopen(request) as response:
                return response.status, dict(response.headers), response.read()
        except HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", len(body)) if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def object_store() -> Iterator[str]:
    """The endpoint of a server of S3's protocol."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@contextmanager
def proxied(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """An endpoint before a server that everything in this process and its children uses."""
    proxy = Proxy(server)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    kind = fsspec.get_filesystem_class("s3")
    # As few attempts of the library's own as it allows: ours are what is tested.
    monkeypatch.setattr(kind, "retries", 1)
    settings = {"endpoint_url": proxy.url, "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    kind.clear_instance_cache()
    yield proxy
    proxy.shutdown()
    kind.clear_instance_cache()
