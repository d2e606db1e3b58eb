"""Attack 68 (review): a header of a registry or of the server behind a URL ends the program with a traceback.

A ``Location`` whose host is no name (RFC 5891), or a ``Retry-After`` of a year beyond all, was an error that nobody had
expected: the build broke off without a word of which server, and what it had begun there was not called off.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.context import http
from executor.image.manifest import Descriptor
from executor.registry.client import Client
from executor.registry.reference import parse
from executor.registry.registry_session import TransferOptions
from executor.retry import RetryPolicy
from platforms.errors import KanifoldError

ONCE = TransferOptions(RetryPolicy(attempts=1, connect_attempts=1))
ASKED_ONCE = http.RequestOptions(retry=ONCE.retry)
HOSTS = ("xn--0000000000000000", "a" * 300 + ".example", "..example", "a..b", "xn--a-ecp.example", "-", "%00", "[::1")
ANSWERS = {
    **{f"to {host[:30]}": f"302 Found\r\nLocation: http://{host}/" for host in HOSTS},
    **{f"token of {host[:30]}": f'401 Who\r\nWWW-Authenticate: Bearer realm="http://{host}/"' for host in HOSTS},
    **{
        f"retry after {date}": f"503 Later\r\nRetry-After: {date}"
        for date in (
            "Mon, 00 Jan 0000 00:00:00 +9999999999999999999999",
            "Fri, 31 Dec 9999 23:59:59 -2359",
            "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
            "9" * 5000,
        )
    },
}
DIGEST = "sha256:" + "a" * 64
LAYER = Descriptor("application/octet-stream", DIGEST, 5)


@contextlib.contextmanager
def server(answer: str) -> Iterator[str]:
    """The address of a server that says ``answer`` to everything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, connection.makefile("rb") as asked, contextlib.suppress(OSError):
                        while asked.readline().strip():
                            pass
                        said = f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        connection.sendall(said.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


QUESTIONS: dict[str, Callable[[Client, str, Path], object]] = {
    "resolve": lambda client, host, _: client.resolve(parse(f"{host}/a/b:1")),
    "manifest": lambda client, host, _: client.manifest(parse(f"{host}/a/b:1")),
    "blob": lambda client, host, _: client.read_blob(parse(f"{host}/a/b:1"), LAYER),
    "check": lambda client, host, _: client.check_push(parse(f"{host}/a/b:1")),
    "push": lambda client, host, _: client.push(parse(f"{host}/a/b:1"), LAYER, lambda: io.BytesIO(b"hello")),
    "put": lambda client, host, _: client.put_manifest(parse(f"{host}/a/b:1"), b"{}", "application/json"),
    "download": lambda _, host, folder: http.download(f"http://{host}/", str(folder), ASKED_ONCE),
    "unchanged": lambda _, host, __: http.unchanged(f"http://{host}/", http.Validators("x"), ASKED_ONCE),
    "destination": lambda _, host, __: http.destination(f"http://{host}/"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_header_is_more_than_an_error(question: str, tmp_path: Path) -> None:
    for answer in ANSWERS.values():
        # Whatever is no error of ours ends the test, as it would have ended the program.
        with server(answer) as host, Client(options=ONCE) as client, contextlib.suppress(KanifoldError):
            QUESTIONS[question](client, host, tmp_path)
