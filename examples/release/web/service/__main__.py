"""``python3 -m service`` serves on port 8080; ``--check VARIANT`` serves on a free one and asks itself everything."""

import os
import platform
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DOCS = "/srv/docs/index.txt"


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    def do_GET(self) -> None:
        if self.path == "/":
            version = os.environ.get("SERVICE_VERSION", "dev")
            self.answer(200, f"service {version}, Python {platform.python_version()}, {platform.machine()}\n")
        elif self.path == "/healthz":
            self.answer(200, "well\n")
        elif self.path == "/docs" and os.path.exists(DOCS):
            with open(DOCS, encoding="utf-8") as file:
                self.answer(200, file.read())
        else:
            self.answer(404, "there is nothing here\n")

    def answer(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def check(variant: str) -> None:
    """Raise ``AssertionError`` unless a service of ``variant`` answers as it should."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    status, text = ask("/")
    print(text, end="")
    assert status == 200 and os.environ["SERVICE_VERSION"] in text
    assert ask("/healthz") == (200, "well\n")
    assert ask("/docs")[0] == (200 if variant == "full" else 404)
    assert ask("/nothing")[0] == 404


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check(sys.argv[2])
    else:
        ThreadingHTTPServer(("", 8080), Handler).serve_forever()
