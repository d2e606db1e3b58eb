"""Services that keep objects, in memory: S3, and GitHub's cache service with the blobs that it hands out URLs of.

Both do what the real ones do with the requests of a cache, and what they are told to do instead (``Service.faults``):
refuse, fall silent, send something else. Written from the services' documentation: the REST API of S3, Blob service of
Azure, and ``github.actions.results.api.v1.CacheService`` of actions/toolkit.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

READ, WRITE = 1, 2
"""The bits of a scope's permission."""


@dataclass(frozen=True)
class Request:
    """A request as a service got it; ``query`` has each name once."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """By name in lower case."""
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    """Whether nothing is sent, for as long as the client waits."""


Fault = Callable[[Request], Reply | None]
"""What is replied instead; None for the true reply."""
SILENCE = Reply(0, silent=True)


class Service:
    """Answers HTTP requests on a port of its own by ``reply``, unless one of ``faults`` does."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.url = ""

    def reply(self, request: Request) -> Reply:
        raise NotImplementedError

    def changed(self, request: Request, reply: Reply) -> Reply:
        """Return what is sent in place of the true ``reply``."""
        return reply

    def asked(self, method: str, part: str) -> list[Request]:
        """The requests so far with ``method`` and with ``part`` in their path."""
        return [each for each in self.requests if each.method == method and part in each.path]


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve ``service``; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except ConnectionError:
                self.close_connection = True

        def answer(self) -> None:
            parsed = urlsplit(self.path)
            length = int(self.headers.get("content-length") or 0)
            query = {name: values[0] for name, values in parse_qs(parsed.query, keep_blank_values=True).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, unquote(parsed.path), query, headers, self.rfile.read(length))
            with service.lock:
                service.requests.append(request)
                instead = next((found for fault in service.faults if (found := fault(request)) is not None), None)
                reply = instead or service.changed(request, service.reply(request))
            if reply.silent:
                service.ended.wait(60)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield service.url
    finally:
        service.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


# -- S3 -------------------------------------------------------------------------------------------------------------


class S3(Service):
    """A bucket, whose name is the first part of the path. Signatures are not verified; keys and tokens are."""

    def __init__(self, key: str = "key", token: str = "") -> None:
        super().__init__()
        self.key = key
        self.token = token
        self.objects: dict[str, bytes] = {}
        self.ages: dict[str, float] = {}
        """Seconds since the objects were written; 0 unless it is set."""

    def reply(self, request: Request) -> Reply:
        if f"Credential={self.key}/" not in request.headers.get("authorization", ""):
            return _error(403, "InvalidAccessKeyId", "The access key does not exist.")
        if request.headers.get("x-amz-security-token", "") != self.token:
            return _error(400, "ExpiredToken", "The provided token has expired.")
        bucket, _, key = request.path.removeprefix("/").partition("/")
        if bucket != "bucket":
            return _error(404, "NoSuchBucket", "The specified bucket does not exist.")
        match request.method:
            case "GET" if "list-type" in request.query:
                return self._list(request.query.get("prefix", ""))
            case "GET" | "HEAD":
                return self._read(request, key)
            case "PUT" if "x-amz-copy-source" in request.headers:
                source = unquote(request.headers["x-amz-copy-source"]).removeprefix("/").partition("/")[2]
                if source == key:
                    return _error(400, "InvalidRequest", "copy an object to itself without changing its metadata")
                self._write(key, self.objects[source])
                return Reply(200, b"<CopyObjectResult><ETag>&quot;e&quot;</ETag></CopyObjectResult>")
            case "PUT":
                self._write(key, request.body)
                return Reply(200, headers={"ETag": '"e"'})
            case "POST" if "delete" in request.query:
                keys = re.findall(r"<Key>([^<]*)</Key>", request.body.decode())
                for each in keys:
                    self.objects.pop(unescape(each), None)
                told = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
                return Reply(200, f"<DeleteResult>{told}</DeleteResult>".encode(), {"Content-Type": "application/xml"})
            case "DELETE":
                self.objects.pop(key, None)
                return Reply(204)
        return _error(405, "MethodNotAllowed", "no such request")

    def _write(self, key: str, data: bytes) -> None:
        self.objects[key] = data
        self.ages.pop(key, None)

    def _date(self, key: str) -> float:
        return time.time() - self.ages.get(key, 0.0)

    def _read(self, request: Request, key: str) -> Reply:
        data = self.objects.get(key)
        if data is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        headers = {"Last-Modified": formatdate(self._date(key), usegmt=True), "ETag": '"e"'}
        if request.method == "HEAD":
            return Reply(200, b"", {**headers, "Content-Length": str(len(data))})
        return ranged(request, data, headers)

    def _list(self, prefix: str) -> Reply:
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>e</ETag><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(self._date(key)))}</LastModified></Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return Reply(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode())


def _error(status: int, code: str, message: str) -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return Reply(status, body, {"Content-Type": "application/xml"})


def ranged(request: Request, data: bytes, headers: dict[str, str]) -> Reply:
    """Return the part of ``data`` that the request wants (RFC 9110, 14)."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return Reply(200, data, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    span = f"bytes {first}-{last}/{len(data)}"
    return Reply(206, data[first : last + 1], {**headers, "Content-Range": span})


# -- GitHub's cache service -------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """An entry of the cache service: what is written to its URL counts once it is ``whole``."""

    scope: str
    key: str
    version: str
    data: bytes = b""
    blocks: dict[str, bytes] = field(default_factory=dict)
    whole: bool = False


def token(*scopes: tuple[str, int], seconds: float = 3600) -> str:
    """Return a token of a workflow's job: a JWT with the permissions on each ref. Nobody verifies its signature."""
    access = json.dumps([{"Scope": scope, "Permission": permission} for scope, permission in scopes])
    parts = ({"alg": "none"}, {"ac": access, "exp": int(time.time() + seconds), "nbf": 0})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join((*encoded, "sig"))


MAIN = token(("refs/heads/main", READ | WRITE))
PULL = token(("refs/pull/7/merge", READ | WRITE), ("refs/heads/main", READ))
FORK = token(("refs/pull/8/merge", READ), ("refs/heads/main", READ))


class CacheService(Service):
    """GitHub's cache service, version 2, and the blobs whose signed URLs it hands out."""

    PREFIX = "/twirp/github.actions.results.api.v1.CacheService/"

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.signature = "first"
        """The signature of URLs that are valid."""

    def reply(self, request: Request) -> Reply:
        if request.path.startswith("/blobs/"):
            return self._blob(request)
        if request.path == "/repos/owner/project/actions/caches" and request.method == "GET":
            return self._list(request)
        if not request.path.startswith(self.PREFIX) or request.method != "POST":
            return Reply(404, b'{"code":"bad_route"}')
        scopes = self._scopes(request.headers.get("authorization", ""))
        if scopes is None:
            return _twirp(401, "unauthenticated", "token is expired")
        body = json.loads(request.body)
        match request.path.removeprefix(self.PREFIX):
            case "CreateCacheEntry":
                return self._create(scopes, body["key"], body["version"])
            case "FinalizeCacheEntryUpload":
                return self._finalize(scopes, body["key"], body["version"], int(body["size_bytes"]))
            case "GetCacheEntryDownloadURL":
                return self._find(scopes, body["key"], body["restore_keys"], body["version"])
        return _twirp(404, "bad_route", request.path)

    def keys(self, scope: str) -> list[str]:
        """The keys of the entries of a ref."""
        return [each.key for each in self.entries if each.scope == scope and each.whole]

    def _scopes(self, authorization: str) -> list[tuple[str, int]] | None:
        claims = authorization.removeprefix("Bearer ").split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        if found["exp"] < time.time():
            return None
        return [(each["Scope"], each["Permission"]) for each in json.loads(found["ac"])]

    def _create(self, scopes: Sequence[tuple[str, int]], key: str, version: str) -> Reply:
        assert len(key) <= 512
        assert "," not in key
        scope = next((scope for scope, permission in scopes if permission & WRITE), None)
        if scope is None:
            return _twirp(403, "permission_denied", "no scope that may be written")
        if any((each.scope, each.key, each.version) == (scope, key, version) for each in self.entries):
            return _twirp(409, "already_exists", "cache entry with the same key, version, and scope already exists")
        self.entries.append(Entry(scope, key, version))
        return self._json(ok=True, signed_upload_url=self._url(len(self.entries) - 1))

    def _finalize(self, scopes: Sequence[tuple[str, int]], key: str, version: str, size: int) -> Reply:
        known = {scope for scope, permission in scopes if permission & WRITE}
        for number, each in enumerate(self.entries):
            if each.scope in known and (each.key, each.version) == (key, version) and not each.whole:
                each.whole = len(each.data) == size
                return self._json(ok=each.whole, entry_id=str(number))
        return _twirp(404, "not_found", "no such entry")

    def _find(self, scopes: Sequence[tuple[str, int]], key: str, restore: Sequence[str], version: str) -> Reply:
        for scope, permission in scopes:
            there = [
                (number, each)
                for number, each in reversed(list(enumerate(self.entries)))
                if permission & READ and each.whole and (each.scope, each.version) == (scope, version)
            ]
            exact = [found for found in there if found[1].key == key]
            begun = [found for prefix in restore for found in there if found[1].key.startswith(prefix)]
            for number, each in (*exact, *begun):
                return self._json(ok=True, signed_download_url=self._url(number), matched_key=each.key)
        return self._json(ok=False)

    def _list(self, request: Request) -> Reply:
        """List GitHub Actions caches for a repository (GitHub's REST API)."""
        if request.headers.get("authorization") != "Bearer rest-token":
            return Reply(401, b'{"message":"Bad credentials"}')
        begin = (int(request.query["page"]) - 1) * int(request.query["per_page"])
        found = [
            {"id": number, "ref": each.scope, "key": each.key, "version": each.version, "size_in_bytes": len(each.data)}
            for number, each in enumerate(self.entries)
            if each.whole and each.key.startswith(request.query["key"])
        ]
        page = found[begin : begin + int(request.query["per_page"])]
        return self._json(total_count=len(found), actions_caches=page)

    def _url(self, number: int) -> str:
        return f"{self.url}/blobs/{number}?se=2030&sig={self.signature}"

    def _json(self, **fields: object) -> Reply:
        return Reply(200, json.dumps(fields).encode(), {"Content-Type": "application/json"})

    def _blob(self, request: Request) -> Reply:
        if request.query.get("sig") != self.signature:
            return _error(403, "AuthenticationFailed", "Signature not valid in the specified time frame")
        assert "authorization" not in request.headers, "a signed URL has its own authorization"
        each = self.entries[int(request.path.rpartition("/")[2])]
        if request.method == "GET":
            return ranged(request, each.data, {}) if each.whole else _error(404, "BlobNotFound", "no blob")
        match request.query.get("comp", ""):
            case "":
                if request.headers.get("x-ms-blob-type") != "BlockBlob":
                    return _error(400, "MissingRequiredHeader", "x-ms-blob-type")
                each.data = request.body
            case "block":
                each.blocks[request.query["blockid"]] = request.body
            case "blocklist":
                names = re.findall(r"<Latest>([^<]*)</Latest>", request.body.decode())
                each.data = b"".join(each.blocks[name] for name in names)
        return Reply(201)


def _twirp(status: int, code: str, message: str) -> Reply:
    return Reply(status, json.dumps({"code": code, "msg": message}).encode(), {"Content-Type": "application/json"})


class FirstCacheService(Service):
    """The cache service as of version 1 of its protocol, as of GitHub Enterprise Server and of act: without scopes."""

    PREFIX = "/_apis/artifactcache/"

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    def reply(self, request: Request) -> Reply:
        path = request.path.removeprefix(self.PREFIX)
        if path.startswith("artifacts/"):
            assert "authorization" not in request.headers
            return ranged(request, self.entries[int(path.partition("/")[2])].data, {})
        assert request.headers["authorization"] == "Bearer first"
        assert "api-version=6.0-preview" in request.headers["accept"]
        match request.method, path.partition("/"):
            case "GET", ("cache", _, _):
                return self._find(request.query["keys"].lower(), request.query["version"])
            case "POST", ("caches", _, ""):
                body = json.loads(request.body)
                if any((each.key, each.version) == (body["key"], body["version"]) for each in self.entries):
                    return Reply(409, b"{}")
                self.entries.append(Entry("", body["key"], body["version"]))
                return Reply(201, json.dumps({"cacheId": len(self.entries) - 1}).encode())
            case "PATCH", ("caches", _, number):
                entry = self.entries[int(number)]
                span = re.fullmatch(r"bytes (\d+)-(\d+)/\*", request.headers["content-range"])
                assert span is not None
                first = int(span[1])
                assert int(span[2]) - first + 1 == len(request.body)
                entry.data = entry.data[:first] + request.body
                return Reply(204)
            case "POST", ("caches", _, number):
                entry = self.entries[int(number)]
                entry.whole = json.loads(request.body)["size"] == len(entry.data)
                return Reply(204 if entry.whole else 400)
        return Reply(404)

    def _find(self, key: str, version: str) -> Reply:
        for number, each in reversed(list(enumerate(self.entries))):
            if each.whole and each.version == version and each.key.startswith(key):
                place = f"{self.url}{self.PREFIX}artifacts/{number}"
                return Reply(200, json.dumps({"cacheKey": each.key, "archiveLocation": place}).encode())
        return Reply(204)


# -- using them ----------------------------------------------------------------------------------------------------


def bucket(service: S3, *more: str) -> str:
    place = f"type=s3,bucket=bucket,region=eu-west-1,endpoint_url={service.url}"
    return ",".join((place, f"access_key_id={service.key}", "secret_access_key=very-secret", *more))


def workflow(service: CacheService, own: str = MAIN) -> dict[str, str]:
    """The environment of a job of a workflow whose token is ``own``."""
    return {
        "ACTIONS_RESULTS_URL": f"{service.url}/", "ACTIONS_RUNTIME_TOKEN": own, "ACTIONS_CACHE_SERVICE_V2": "True",
        "GITHUB_REPOSITORY": "owner/project",
    }  # fmt: skip
