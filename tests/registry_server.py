"""Registries for tests: Debian's docker-registry on a free port, and one in this process with faults.

``docker_registry`` starts the real program. ``served`` runs a function as an HTTP server on a loopback port and records
the requests. ``MemoryRegistry`` is such a function: a small, correct registry with a hook for faults.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PROGRAM = shutil.which("docker-registry")
USER, PASSWORD = "crab", "pinch-42"
HTPASSWD = "crab:$2b$05$RecHdKOyl6f6xP9mJWIIFeFfABVoKHuBcvy8TrXbhVQc6y7TMVCPy"
"""``USER`` and ``PASSWORD`` as bcrypt, the only form that docker-registry reads."""


@contextmanager
def docker_registry(directory: Path, *, auth: str = "", tls: str = "") -> Iterator[str]:
    """Run a real registry with its content in ``directory``; yields ``127.0.0.1:PORT``.

    ``auth``: YAML of the configuration's ``auth`` section. ``tls``: that of ``http.tls``.
    """
    if PROGRAM is None:
        import pytest

        pytest.skip("docker-registry is not installed (Debian package docker-registry)")
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        "version: 0.1",
        "log: {level: info, formatter: json}",
        f"storage: {{filesystem: {{rootdirectory: {json.dumps(str(directory / 'data'))}}}, delete: {{enabled: true}}}}",
        "http:",
        "  addr: 127.0.0.1:0",
        *([f"  tls: {tls}"] if tls else []),
        *([f"auth: {auth}"] if auth else []),
    ]
    config = directory / "config.yml"
    config.write_text("\n".join(lines) + "\n")
    environment = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
    log = directory / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [PROGRAM, "serve", str(config)], stdout=out, stderr=subprocess.PIPE, env=environment
        ) as process,
    ):
        try:
            yield _address_from(process)
        finally:
            process.terminate()


def _address_from(process: subprocess.Popen[bytes]) -> str:
    """Return the address at which the registry listens; its further output is drained."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        found = re.search(rb"listening on (127\.0\.0\.1:\d+)", line)
        if found:
            threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
            return found[1].decode()
    raise AssertionError(b"".join(seen).decode())


def _drain(stream: object) -> None:
    try:
        for _ in stream:  # type: ignore[attr-defined]
            pass
    except ValueError:
        return


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Make a key and a self-signed certificate for 127.0.0.1, as PEM files."""
    key, certificate = directory / "key.pem", directory / "cert.pem"
    program = shutil.which("openssl")
    if program is None:
        import pytest

        pytest.skip("openssl is not installed")
    request = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    command = [program, *request.split(), "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


# -- servers in this process -----------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A request as received. ``headers`` in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def target(self) -> str:
        """Path and query as sent."""
        return self.path + ("?" + urllib.parse.urlencode(self.query, doseq=True) if self.query else "")


@dataclass
class Said:
    """A response: ``body``, then ``stream`` piece by piece. After ``cut`` bytes of the body the connection is reset."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Iterator[bytes] | None = None
    cut: int | None = None
    length: int | None = None
    """The value of Content-Length if it is to be wrong."""


Handler = Callable[[Asked], Said | None]
"""Returns the response to a request; None closes the connection without one."""


class Served:
    """A running server: its address and the requests so far."""

    def __init__(self, handler: Handler, server: ThreadingHTTPServer) -> None:
        self.handler = handler
        self.port = int(server.server_address[1])
        self.host = f"{server.server_address[0]!s}:{self.port}"
        self.asked: list[Asked] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def seen(self, method: str, part: str = "") -> list[Asked]:
        """Return the requests of ``method`` whose path contains ``part``, in order."""
        with self.lock:
            return [each for each in self.asked if each.method == method and part in each.path]

    def secrets(self) -> list[str]:
        """Return every Authorization header that was received."""
        with self.lock:
            return [each.headers["authorization"] for each in self.asked if "authorization" in each.headers]


@contextmanager
def served(handler: Handler, address: str = "127.0.0.1") -> Iterator[Served]:
    """Run ``handler`` as an HTTP/1.1 server on a free port of ``address``."""
    served: Served

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError, ValueError):
                self.close_connection = True

        def answer(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            asked = Asked(self.command, parts.path, urllib.parse.parse_qs(parts.query), headers)
            length = int(headers.get("content-length", "0"))
            asked.body = self.rfile.read(length)
            with served.lock:
                served.asked.append(asked)
            said = served.handler(asked) if len(asked.body) == length else None
            if said is None:
                self.reset()
                return
            self.say(said)

        def say(self, said: Said) -> None:
            self.send_response(said.status)
            headers = {key.lower(): value for key, value in said.headers.items()}
            if said.length is not None:
                headers["content-length"] = str(said.length)
            elif said.stream is not None:
                headers["connection"] = "close"
                self.close_connection = True
            else:
                headers.setdefault("content-length", str(len(said.body)))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if said.cut is not None:
                self.wfile.write(said.body[: said.cut])
                self.wfile.flush()
                self.reset()
                return
            self.wfile.write(said.body)
            for piece in said.stream or ():
                self.wfile.write(piece)
            if said.length is not None and said.length != len(said.body):
                self.close_connection = True

        def reset(self) -> None:
            """End the connection with a reset rather than an orderly close."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815 - http.server's names

    server = ThreadingHTTPServer((address, 0), Request)
    server.daemon_threads = True
    served = Served(handler, server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of ``data``, independent of kanifold's code."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class MemoryRegistry:
    """A correct registry as a handler: blobs with ranges, uploads whole and in chunks, mounts, manifests.

    With ``immutable``, an existing tag cannot be pushed again. ``fault`` is called with each request first; what it
    returns is the response, unless it is ``Ellipsis``: then the request is served normally.
    """

    def __init__(self, fault: Callable[[Asked], object] | None = None) -> None:
        self.fault = fault
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.ranges = True
        self.patches = True
        self.immutable = False
        self.lists_referrers = False
        """Whether it has the API of distribution-spec 1.1 for referrers, with two of them on a page."""
        self.lock = threading.Lock()

    def add_blob(self, repository: str, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[repository, digest] = data
        return digest

    def add_manifest(self, repository: str, tag: str, media_type: str, data: bytes) -> str:
        digest = digest_of(data)
        self.manifests[repository, digest] = self.manifests[repository, tag] = (media_type, data)
        return digest

    def add_layout(self, repository: str, layout: Path) -> None:
        """All that the OCI layout directory ``layout`` holds; its only root is ``latest``."""
        for path in (layout / "blobs" / "sha256").iterdir():
            self.add_blob(repository, path.read_bytes())
        waiting = [(json.loads((layout / "index.json").read_bytes())["manifests"][0], "latest")]
        while waiting:
            descriptor, tag = waiting.pop()
            data = self.blobs[repository, descriptor["digest"]]
            self.add_manifest(repository, tag, descriptor["mediaType"], data)
            waiting += [(each, each["digest"]) for each in json.loads(data).get("manifests", ())]

    def __call__(self, asked: Asked) -> Said | None:
        if self.fault is not None:
            answer = self.fault(asked)
            if answer is not ...:
                return answer  # type: ignore[return-value]
        with self.lock:
            return self.serve(asked)

    def serve(self, asked: Asked) -> Said:
        match = re.fullmatch(r"/v2/(.+?)/(blobs/uploads|blobs|manifests|referrers)/(.*)", asked.path)
        if match is None:
            return Said(200 if asked.path == "/v2/" else 404)
        repository, kind, name = match.groups()
        if kind == "referrers":
            return self.referrers(repository, name, int(asked.query.get("from", ["0"])[0]))
        if kind == "manifests":
            return self.manifest(asked, repository, name)
        if kind == "blobs/uploads":
            return self.upload(asked, repository, name)
        return self.blob(asked, self.blobs.get((repository, name)))

    def manifest(self, asked: Asked, repository: str, name: str) -> Said:
        if asked.method == "PUT":
            if self.immutable and ":" not in name and (repository, name) in self.manifests:
                return error(400, "TAG_INVALID", f"the tag {name!r} exists already, and the repository is immutable")
            digest = self.add_manifest(repository, name, asked.headers["content-type"], asked.body)
            return Said(201, {"Docker-Content-Digest": digest, "Location": asked.path})
        if (repository, name) not in self.manifests:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if asked.method == "DELETE":
            del self.manifests[repository, name]
            return Said(202)
        media_type, data = self.manifests[repository, name]
        return Said(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(data)}, data)

    def referrers(self, repository: str, digest: str, start: int) -> Said:
        if not self.lists_referrers:
            return error(404, "UNSUPPORTED", "no such endpoint")
        found = []
        for (place, name), (media_type, data) in self.manifests.items():
            document = json.loads(data)
            if place == repository and ":" in name and document.get("subject", {}).get("digest") == digest:
                described = {"mediaType": media_type, "digest": name, "size": len(data)}
                found.append(described | {"artifactType": document.get("artifactType", "")})
        index = "application/vnd.oci.image.index.v1+json"
        body = {"schemaVersion": 2, "mediaType": index, "manifests": found[start : start + 2]}
        following = f'</v2/{repository}/referrers/{digest}?from={start + 2}>; rel="next"'
        more = {"Link": following} if len(found) > start + 2 else {}
        return Said(200, {"Content-Type": index, **more}, json.dumps(body).encode())

    def blob(self, asked: Asked, data: bytes | None) -> Said:
        if data is None:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        wanted = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
        if wanted is None or not self.ranges:
            return Said(200, {}, data)
        start = int(wanted[1])
        if start >= len(data):
            return Said(416, {"Content-Range": f"bytes */{len(data)}"})
        return Said(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:])

    def upload(self, asked: Asked, repository: str, name: str) -> Said:
        if asked.method == "POST":
            source, digest = asked.query.get("from", [""])[0], asked.query.get("mount", [""])[0]
            if (source, digest) in self.blobs:
                self.blobs[repository, digest] = self.blobs[source, digest]
                return Said(201, {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest})
            name = str(len(self.uploads))
            self.uploads[name] = bytearray()
            return self.stands(202, repository, name)
        held = self.uploads.get(name)
        if held is None:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown")
        if asked.method == "DELETE":
            del self.uploads[name]
            return Said(204)
        if asked.method == "GET":
            return self.stands(204, repository, name)
        if asked.method == "PATCH":
            if not self.patches:
                return error(405, "UNSUPPORTED", "no chunks here")
            start, _, end = asked.headers["content-range"].partition("-")
            if int(start) != len(held) or int(end) - int(start) + 1 != len(asked.body):
                return Said(416)
            held += asked.body
            return self.stands(202, repository, name)
        held += asked.body
        digest = asked.query["digest"][0]
        del self.uploads[name]
        if digest_of(bytes(held)) != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs[repository, digest] = bytes(held)
        return Said(201, {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest})

    def stands(self, status: int, repository: str, name: str) -> Said:
        last = max(0, len(self.uploads[name]) - 1)
        return Said(status, {"Location": f"/v2/{repository}/blobs/uploads/{name}", "Range": f"0-{last}"})


class OddRegistry(MemoryRegistry):
    """A registry whose uploads deviate as those of some real registries do.

    ``counting``: what ``Range`` contains after a chunk: ``stuck`` the end of the first chunk, ``last`` only the bytes
    of the latest, ``over`` one too many; "" is correct. ``largest_chunk``: bytes of a PATCH above which the response is
    416.
    """

    def __init__(self, counting: str = "", largest_chunk: int | None = None) -> None:
        super().__init__()
        self.counting = counting
        self.largest_chunk = largest_chunk
        self.chunks: dict[str, list[int]] = {}

    def upload(self, asked: Asked, repository: str, name: str) -> Said:
        if asked.method == "PATCH":
            if self.largest_chunk is not None and len(asked.body) > self.largest_chunk:
                return error(416, "REQUESTED_RANGE_NOT_SATISFIABLE", "the request body is too large")
            if not asked.headers["content-range"].startswith(f"{len(self.uploads[name])}-"):
                said = self.stands(416, repository, name)
                return Said(416, said.headers)
            self.chunks.setdefault(name, []).append(len(asked.body))
        return super().upload(asked, repository, name)

    def stands(self, status: int, repository: str, name: str) -> Said:
        said = super().stands(status, repository, name)
        chunks = self.chunks.get(name)
        if chunks and self.counting:
            total = len(self.uploads[name])
            last = {"stuck": chunks[0] - 1, "last": chunks[-1] - 1, "over": total}[self.counting]
            said.headers["Range"] = f"0-{last}"
        return said


def error(status: int, code: str, message: str) -> Said:
    """Return a response in the error format of the distribution specification."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Said(status, {"Content-Type": "application/json"}, body)
